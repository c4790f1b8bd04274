import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.net.http.HttpClient;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyManagementException;
import java.security.KeyStore;
import java.security.SecureRandom;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Predicate;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLContextSpi;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLServerSocketFactory;
import javax.net.ssl.SSLSessionContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509ExtendedTrustManager;

/**
 * Who this service is: the key store and the trust store of its identity directory, read again when they change. A connection is made
 * with what is there when it is made.
 */
final class Identity {
    private static final int URI_NAME = 6; // RFC 5280 4.2.1.6, uniformResourceIdentifier
    private static final Duration PATIENCE = Duration.ofSeconds(10);

    private final Path keyStore;
    private final Path trustStore;
    private final char[] password;
    private final Predicate<X509Certificate> callers; // who may open a connection to this service
    private volatile Version current;

    /** What one version of the directory holds, ready for use. */
    private record Version(Path directory, X509Certificate leaf, KeyManager[] keys, X509ExtendedTrustManager trust, SSLContext server,
        Map<String, HttpClient> clients) {}

    Identity(Path keyStore, Path trustStore, String password, Predicate<X509Certificate> callers) throws IOException, GeneralSecurityException {
        this.keyStore = keyStore;
        this.trustStore = trustStore;
        this.password = password.toCharArray();
        this.callers = callers;
        this.current = load(keyStore.toRealPath());
    }

    /** The serial of the certificate with which connections are made now. */
    String serial() {
        return current.leaf.getSerialNumber().toString(16);
    }

    /** This service's ID. */
    String id() throws CertificateException {
        return idOf(current.leaf);
    }

    /** The ID of another service of the same trust domain. */
    String idOf(String service) throws CertificateException {
        String own = id();
        return own.substring(0, own.indexOf('/', "spiffe://".length()) + 1) + service;
    }

    /** Looks whether the agent has put another version in place; a version that can't be read is tried again, and the old one serves. */
    boolean reload() {
        try {
            Path now = keyStore.toRealPath();
            if (now.getParent().equals(current.directory)) {
                return false;
            }
            current = load(now);
            return true;
        } catch (IOException | GeneralSecurityException e) {
            Orders.log("the identity can't be read again, the old one serves: " + e.getMessage());
            return false;
        }
    }

    /**
     * A TLS context for servers that follows the identity: HttpsServer takes one once. Sessions belong to the version under it, so that
     * none is resumed by a caller whose certificate the new version would not take.
     */
    SSLContext serverContext() {
        return new SSLContext(new Following(), null, "TLS") {};
    }

    /** A client that talks to this service only; after a renewal another one, whose connections are new (RFC 8705 3). */
    HttpClient client(String service) throws GeneralSecurityException {
        Version version = current;
        String id = idOf(service);
        HttpClient client = version.clients.get(id);
        if (client == null) {
            SSLContext context = context(version.keys, new Only(version.trust, leaf -> idOf(leaf).equals(id), leaf -> false));
            var only13 = new SSLParameters();
            only13.setProtocols(new String[] {"TLSv1.3"});
            client = HttpClient.newBuilder().sslContext(context).sslParameters(only13).connectTimeout(PATIENCE).build();
            version.clients.putIfAbsent(id, client);
            client = version.clients.get(id);
        }
        return client;
    }

    /** The one URI name of a certificate: whom it proves. */
    static String idOf(X509Certificate leaf) throws CertificateException {
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

    /** Both stores of one version: a renewal between the two reads must not pair a new key with old roots. */
    private Version load(Path realKeyStore) throws IOException, GeneralSecurityException {
        Path directory = realKeyStore.getParent();
        KeyStore own = read(realKeyStore);
        KeyStore roots = read(directory.resolve(trustStore.getFileName()));
        if (roots.size() == 0) {
            throw new KeyStoreEmpty(trustStore + " holds no root: is its password right?");
        }
        var keys = KeyManagerFactory.getInstance("SunX509");
        keys.init(own, password);
        var trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(roots);
        var chain = (X509ExtendedTrustManager) trust.getTrustManagers()[0];
        var leaf = (X509Certificate) own.getCertificate(own.aliases().nextElement());
        SSLContext server = context(keys.getKeyManagers(), new Only(chain, peer -> false, callers));
        return new Version(directory, leaf, keys.getKeyManagers(), chain, server, new ConcurrentHashMap<>());
    }

    private KeyStore read(Path path) throws IOException, GeneralSecurityException {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream in = Files.newInputStream(path)) {
            store.load(in, password);
        }
        return store;
    }

    private static SSLContext context(KeyManager[] keys, X509ExtendedTrustManager trust) throws GeneralSecurityException {
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys, new TrustManager[] {trust}, null);
        return context;
    }

    private static final class KeyStoreEmpty extends GeneralSecurityException {
        private static final long serialVersionUID = 1;

        KeyStoreEmpty(String message) {
            super(message);
        }
    }

    private interface Judge {
        boolean test(X509Certificate leaf) throws CertificateException;
    }

    /** Demands of a peer, beyond chain and host name, that it is one that is meant: before a byte of a request is sent or read. */
    private static final class Only extends X509ExtendedTrustManager {
        private final X509ExtendedTrustManager chain;
        private final Judge servers;
        private final Predicate<X509Certificate> clients;

        Only(X509ExtendedTrustManager chain, Judge servers, Predicate<X509Certificate> clients) {
            this.chain = chain;
            this.servers = servers;
            this.clients = clients;
        }

        @Override
        public void checkServerTrusted(X509Certificate[] peer, String auth, SSLEngine engine) throws CertificateException {
            chain.checkServerTrusted(peer, auth, engine);
            if (!servers.test(peer[0])) {
                throw new CertificateException("the server is " + idOf(peer[0]) + ", which is not meant");
            }
        }

        @Override
        public void checkClientTrusted(X509Certificate[] peer, String auth, SSLEngine engine) throws CertificateException {
            chain.checkClientTrusted(peer, auth, engine);
            if (!clients.test(peer[0])) {
                Orders.log("refused at the handshake: " + idOf(peer[0]));
                throw new CertificateException(idOf(peer[0]) + " is no caller of this service");
            }
        }

        @Override
        public void checkServerTrusted(X509Certificate[] peer, String auth, Socket socket) throws CertificateException {
            throw new CertificateException("only engines are used here");
        }

        @Override
        public void checkServerTrusted(X509Certificate[] peer, String auth) throws CertificateException {
            throw new CertificateException("without a connection there is no host name to compare");
        }

        @Override
        public void checkClientTrusted(X509Certificate[] peer, String auth, Socket socket) throws CertificateException {
            throw new CertificateException("only engines are used here");
        }

        @Override
        public void checkClientTrusted(X509Certificate[] peer, String auth) throws CertificateException {
            throw new CertificateException("only engines are used here");
        }

        @Override
        public X509Certificate[] getAcceptedIssuers() {
            return chain.getAcceptedIssuers();
        }
    }

    /** Hands out what the current version makes. */
    private final class Following extends SSLContextSpi {
        private SSLContext now() {
            return current.server;
        }

        @Override
        protected SSLEngine engineCreateSSLEngine() {
            return now().createSSLEngine();
        }

        @Override
        protected SSLEngine engineCreateSSLEngine(String host, int port) {
            return now().createSSLEngine(host, port);
        }

        @Override
        protected SSLSessionContext engineGetServerSessionContext() {
            return now().getServerSessionContext();
        }

        @Override
        protected SSLSessionContext engineGetClientSessionContext() {
            return now().getClientSessionContext();
        }

        @Override
        protected SSLServerSocketFactory engineGetServerSocketFactory() {
            return now().getServerSocketFactory();
        }

        @Override
        protected SSLSocketFactory engineGetSocketFactory() {
            return now().getSocketFactory();
        }

        @Override
        protected SSLParameters engineGetDefaultSSLParameters() {
            return now().getDefaultSSLParameters();
        }

        @Override
        protected SSLParameters engineGetSupportedSSLParameters() {
            return now().getSupportedSSLParameters();
        }

        @Override
        protected void engineInit(KeyManager[] keys, TrustManager[] trust, SecureRandom random) throws KeyManagementException {
            throw new KeyManagementException("it follows the identity directory");
        }
    }
}
