import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsExchange;
import com.sun.net.httpserver.HttpsParameters;
import com.sun.net.httpserver.HttpsServer;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.Principal;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Executors;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509ExtendedKeyManager;
import javax.net.ssl.X509ExtendedTrustManager;

/**
 * A service as plain Java 17 writes it: JSSE, the JDK's HTTPS server and HTTP client, and the PKCS#12 stores of an identity
 * directory. It obeys one command a line, fields parted by tabs, and answers each with one line. KEYS and TRUST are identity
 * directories, the same one unless a test wants a stranger's key.
 *
 * <pre>
 * serve KEYS TRUST ALLOWED-ID...               ok PORT
 * get   KEYS TRUST PEER-ID URL BEARER          ok STATUS BODY    (BEARER may be empty)
 * post  KEYS TRUST PEER-ID URL NAME=VALUE...   ok STATUS BODY    (a form)
 * refused                                      ok REASONS        why clients were refused in handshakes since the last time
 * </pre>
 *
 * Anything that fails is answered with "failed" and the reasons.
 */
public final class Peer {
    private static final char[] PASSWORD = "changeit".toCharArray();
    private static final Duration PATIENCE = Duration.ofSeconds(30);
    private static final int URI_NAME = 6; // RFC 5280 4.2.1.6, as getSubjectAlternativeNames numbers the kinds
    private static final List<String> REFUSED = new ArrayList<>(); // the JDK's server hangs up without telling why

    public static void main(String[] args) throws IOException {
        var commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = commands.readLine()) != null; ) {
            String answer;
            try {
                answer = "ok\t" + obey(line.split("\t", -1));
            } catch (Exception e) {
                answer = "failed\t" + reasons(e);
            }
            System.out.println(answer.replaceAll("\\s*\\R\\s*", " "));
        }
        System.exit(0); // the servers' threads would go on
    }

    private static String obey(String[] c) throws Exception {
        if (c[0].equals("refused")) {
            synchronized (REFUSED) {
                String all = String.join("; ", REFUSED);
                REFUSED.clear();
                return all;
            }
        }
        Path keys = Path.of(c[1]);
        Path trust = Path.of(c[2]);
        List<String> rest = List.of(c).subList(3, c.length);
        switch (c[0]) {
            case "serve":
                return serve(context(keys, trust, rest), rest);
            case "get": {
                var request = HttpRequest.newBuilder(URI.create(rest.get(1)));
                if (!rest.get(2).isEmpty()) {
                    request.header("Authorization", "Bearer " + rest.get(2));
                }
                return send(context(keys, trust, rest.subList(0, 1)), request);
            }
            case "post": {
                var form = new ArrayList<String>();
                for (String field : rest.subList(2, rest.size())) {
                    int at = field.indexOf('=');
                    form.add(field.substring(0, at) + "=" + URLEncoder.encode(field.substring(at + 1), StandardCharsets.UTF_8));
                }
                var request = HttpRequest.newBuilder(URI.create(rest.get(1)))
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .POST(HttpRequest.BodyPublishers.ofString(String.join("&", form)));
                return send(context(keys, trust, rest.subList(0, 1)), request);
            }
            default:
                throw new IllegalArgumentException("no such command: " + c[0]);
        }
    }

    /** Serves each allowed peer its own ID, and any other service of the same authority 403. */
    private static String serve(SSLContext context, List<String> allowed) throws IOException {
        var server = HttpsServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(context) {
            @Override
            public void configure(HttpsParameters parameters) {
                SSLParameters p = context.getDefaultSSLParameters();
                p.setNeedClientAuth(true);
                p.setProtocols(new String[] {"TLSv1.3"});
                parameters.setSSLParameters(p);
            }
        });
        server.createContext("/", exchange -> {
            String peer = peerOf(exchange);
            byte[] body = peer.getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(allowed.contains(peer) ? 200 : 403, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
        return Integer.toString(server.getAddress().getPort());
    }

    private static String peerOf(HttpExchange exchange) throws IOException {
        try {
            Certificate leaf = ((HttpsExchange) exchange).getSSLSession().getPeerCertificates()[0];
            return idOf((X509Certificate) leaf);
        } catch (CertificateException e) {
            throw new IOException(e);
        }
    }

    private static String send(SSLContext context, HttpRequest.Builder request) throws Exception {
        var only13 = new SSLParameters();
        only13.setProtocols(new String[] {"TLSv1.3"});
        var client = HttpClient.newBuilder().sslContext(context).sslParameters(only13).connectTimeout(PATIENCE).build();
        HttpResponse<String> response = client.send(request.timeout(PATIENCE).build(), HttpResponse.BodyHandlers.ofString());
        return response.statusCode() + "\t" + response.body();
    }

    /** The one URI name of a certificate: whom it proves. */
    private static String idOf(X509Certificate leaf) throws CertificateException {
        var found = new ArrayList<String>();
        if (leaf.getSubjectAlternativeNames() != null) {
            for (List<?> name : leaf.getSubjectAlternativeNames()) {
                if (name.get(0).equals(URI_NAME)) {
                    found.add((String) name.get(1));
                }
            }
        }
        if (found.size() != 1) {
            throw new CertificateException("the peer has " + found.size() + " URI names");
        }
        return found.get(0);
    }

    private static SSLContext context(Path keys, Path trust, List<String> peers) throws Exception {
        var trustManagers = TrustManagerFactory.getInstance("PKIX");
        trustManagers.init(load(trust.resolve("truststore.p12")));
        var keyManagers = KeyManagerFactory.getInstance("SunX509");
        KeyStore store = load(keys.resolve("keystore.p12"));
        keyManagers.init(store, PASSWORD);
        var key = (X509ExtendedKeyManager) keyManagers.getKeyManagers()[0];
        if (!keys.equals(trust)) {
            key = new Insistent(key, Collections.list(store.aliases()).get(0));
        }
        var context = SSLContext.getInstance("TLS");
        context.init(new X509ExtendedKeyManager[] {key},
            new X509ExtendedTrustManager[] {new Named((X509ExtendedTrustManager) trustManagers.getTrustManagers()[0], peers)}, null);
        return context;
    }

    private static KeyStore load(Path path) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream in = Files.newInputStream(path)) {
            store.load(in, PASSWORD);
        }
        return store;
    }

    private static String reasons(Throwable e) {
        var all = new ArrayList<String>();
        for (; e != null; e = e.getCause()) {
            all.add(e.toString());
        }
        return String.join(" <- ", all);
    }

    /** Demands of a server, beyond chain and host name, that it is one of the named services: before a byte is sent to it. */
    private static final class Named extends X509ExtendedTrustManager {
        private final X509ExtendedTrustManager chain;
        private final List<String> servers;

        Named(X509ExtendedTrustManager chain, List<String> servers) {
            this.chain = chain;
            this.servers = servers;
        }

        @Override
        public void checkServerTrusted(X509Certificate[] peer, String auth, SSLEngine engine) throws CertificateException {
            chain.checkServerTrusted(peer, auth, engine);
            demand(peer[0]);
        }

        @Override
        public void checkServerTrusted(X509Certificate[] peer, String auth, Socket socket) throws CertificateException {
            chain.checkServerTrusted(peer, auth, socket);
            demand(peer[0]);
        }

        @Override
        public void checkServerTrusted(X509Certificate[] peer, String auth) throws CertificateException {
            throw new CertificateException("without a connection there is no host name to compare");
        }

        @Override
        public void checkClientTrusted(X509Certificate[] peer, String auth, SSLEngine engine) throws CertificateException {
            try {
                chain.checkClientTrusted(peer, auth, engine);
            } catch (CertificateException e) {
                synchronized (REFUSED) {
                    REFUSED.add(reasons(e));
                }
                throw e;
            }
        }

        @Override
        public void checkClientTrusted(X509Certificate[] peer, String auth, Socket socket) throws CertificateException {
            chain.checkClientTrusted(peer, auth, socket);
        }

        @Override
        public void checkClientTrusted(X509Certificate[] peer, String auth) throws CertificateException {
            chain.checkClientTrusted(peer, auth);
        }

        @Override
        public X509Certificate[] getAcceptedIssuers() {
            return chain.getAcceptedIssuers();
        }

        private void demand(X509Certificate leaf) throws CertificateException {
            String id = idOf(leaf);
            if (!servers.contains(id)) {
                throw new CertificateException("the server is " + id + ", not " + servers);
            }
        }
    }

    /** Presents its key whatever issuers the other side asks for, as an attacker would. */
    private static final class Insistent extends X509ExtendedKeyManager {
        private final X509ExtendedKeyManager keys;
        private final String alias;

        Insistent(X509ExtendedKeyManager keys, String alias) {
            this.keys = keys;
            this.alias = alias;
        }

        @Override
        public String chooseEngineClientAlias(String[] types, Principal[] issuers, SSLEngine engine) {
            return alias;
        }

        @Override
        public String chooseClientAlias(String[] types, Principal[] issuers, Socket socket) {
            return alias;
        }

        @Override
        public String chooseEngineServerAlias(String type, Principal[] issuers, SSLEngine engine) {
            return alias;
        }

        @Override
        public String chooseServerAlias(String type, Principal[] issuers, Socket socket) {
            return alias;
        }

        @Override
        public String[] getClientAliases(String type, Principal[] issuers) {
            return new String[] {alias};
        }

        @Override
        public String[] getServerAliases(String type, Principal[] issuers) {
            return new String[] {alias};
        }

        @Override
        public X509Certificate[] getCertificateChain(String name) {
            return keys.getCertificateChain(name);
        }

        @Override
        public PrivateKey getPrivateKey(String name) {
            return keys.getPrivateKey(name);
        }
    }
}
