import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsExchange;
import com.sun.net.httpserver.HttpsParameters;
import com.sun.net.httpserver.HttpsServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.time.Instant;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLParameters;

/**
 * Service A of the chain: orders, in plain Java 17. It is configured by the file that the agent generates for Spring Boot, serves
 * mTLS, verifies relay tokens, exchanges them for the next service, and calls that.
 *
 * <pre>java -cp CLASSES Orders INVENTORY-URL CONFIGURATION.yaml...</pre>
 */
public final class Orders {
    private static final String SCOPE = "orders:read"; // to ask for orders
    private static final String NEXT = "inventory";
    private static final String NEXT_SCOPE = "stock:read";
    private static final Duration PATIENCE = Duration.ofSeconds(10);

    private final Identity identity;
    private final Callers callers;
    private final RelayTokens tokens;
    private final Exchange exchange;
    private final String inventory;

    private Orders(Identity identity, Callers callers, RelayTokens tokens, Exchange exchange, String inventory) {
        this.identity = identity;
        this.callers = callers;
        this.tokens = tokens;
        this.exchange = exchange;
        this.inventory = inventory;
    }

    public static void main(String[] args) throws Exception {
        System.setProperty("sun.net.httpserver.nodelay", "true"); // else each answer waits for the peer's delayed ACK
        Settings settings = Settings.read(Arrays.asList(args).subList(1, args.length));
        var callers = new Callers();
        var identity = new Identity(settings.path("server.ssl.key-store"), settings.path("server.ssl.trust-store"),
            settings.get("server.ssl.key-store-password"), callers::admits);

        String jwt = "spring.security.oauth2.resourceserver.jwt.";
        var authority = new Authority(settings.get(jwt + "issuer-uri"), identity);
        var keys = new Keys(authority, settings.get(jwt + "jwk-set-uri"));
        var revocations = new Revocations(authority, keys, identity.id());
        var tokens = new RelayTokens(authority.issuer, settings.list(jwt + "audiences"), settings.list(jwt + "jws-algorithms"), keys, revocations);

        callers.fetch(authority);
        revocations.fetch();
        repeat("callers", 0, () -> callers.fetch(authority)); // it waits for news by itself
        repeat("revocations", 2000, revocations::fetch);
        repeat("identity", 200, () -> {
            if (identity.reload()) {
                log("serves with the certificate " + identity.serial());
            }
        });
        new Orders(identity, callers, tokens, new Exchange(authority, identity), args[0]).serve(Integer.parseInt(settings.get("server.port")));
    }

    private void serve(int port) throws IOException {
        HttpsServer server = HttpsServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(identity.serverContext()) {
            @Override
            public void configure(HttpsParameters parameters) {
                var p = new SSLParameters();
                p.setProtocols(new String[] {"TLSv1.3"});
                p.setNeedClientAuth(true);
                parameters.setSSLParameters(p);
            }
        });
        server.createContext("/", this::handle);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.start();
        System.out.println("listening on https://127.0.0.1:" + server.getAddress().getPort());
    }

    /** One answer: its status, and what stands in it. */
    private record Answer(int status, Map<String, Object> body) {
        static Answer error(int status, String reason) {
            return new Answer(status, Map.of("service", "orders", "error", reason));
        }
    }

    private void handle(HttpExchange request) {
        try (request) {
            Answer answer = serve(request);
            byte[] bytes = Json.write(answer.body).getBytes(StandardCharsets.UTF_8);
            request.getResponseHeaders().set("Content-Type", "application/json");
            request.sendResponseHeaders(answer.status, bytes.length);
            request.getResponseBody().write(bytes);
        } catch (IOException e) {
            log("the caller is gone: " + e.getMessage());
        }
    }

    private Answer serve(HttpExchange request) throws IOException {
        var peer = (X509Certificate) ((HttpsExchange) request).getSSLSession().getPeerCertificates()[0];
        if (!callers.admits(peer)) { // a connection must not outlive what the policy, a revocation or time took away
            request.getResponseHeaders().set("Connection", "close");
            return Answer.error(403, "you are no caller of this service any more");
        }
        try {
            List<String> authorization = request.getRequestHeaders().get("Authorization");
            Jwt token = tokens.verify(authorization, peer, SCOPE);
            return new Answer(200, order(token, authorization.get(0).substring("Bearer ".length()), peer));
        } catch (RelayTokens.Refused e) {
            log("refused: " + e.getMessage()); // the caller learns the standard error and no more (RFC 6750 3.1)
            request.getResponseHeaders().set("WWW-Authenticate", e.error.isEmpty() ? "Bearer" : "Bearer error=\"" + e.error + "\"");
            return Answer.error(e.status, e.error.isEmpty() ? "no token" : e.error);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return Answer.error(503, "this service ends");
        } catch (GeneralSecurityException | IOException | RuntimeException e) {
            log("failed: " + e);
            return Answer.error(502, e.getMessage() == null ? NEXT + " can't be reached" : e.getMessage());
        }
    }

    /** The business: the order, with what is in stock. */
    private Map<String, Object> order(Jwt token, String bearer, X509Certificate peer) throws IOException, InterruptedException, GeneralSecurityException {
        var order = new LinkedHashMap<String, Object>();
        order.put("service", "orders");
        order.put("runs", "Java " + Runtime.version().feature() + ", its own HTTPS server and client");
        order.put("caller", Identity.idOf(peer));
        order.put("user", token.required("sub"));
        order.put("scopes", token.scopes());
        order.put("chain", token.chain());
        order.put("transaction", token.claims().get("txn"));
        order.put("kid", token.kid());
        String next = exchange.exchange(bearer, NEXT, NEXT_SCOPE); // never the token that came: it is good for this service only
        HttpResponse<String> stock = identity.client(NEXT).send(HttpRequest.newBuilder(URI.create(inventory)).timeout(PATIENCE)
            .header("Authorization", "Bearer " + next).build(), HttpResponse.BodyHandlers.ofString());
        if (stock.statusCode() != 200) {
            throw new IOException(NEXT + " answers " + stock.statusCode());
        }
        order.put("next", Json.object(stock.body()));
        return order;
    }

    private interface Task {
        void run() throws Exception;
    }

    /** Does a task again and again, whatever happens: a service does not give up on what keeps it safe. */
    private static void repeat(String name, long pauseMillis, Task task) {
        var thread = new Thread(() -> {
            boolean failed = false;
            while (true) {
                try {
                    task.run();
                    failed = false;
                    TimeUnit.MILLISECONDS.sleep(pauseMillis);
                } catch (Exception e) {
                    if (!failed) {
                        log(name + ": " + e);
                    }
                    failed = true;
                    pause();
                }
            }
        }, name);
        thread.setDaemon(true);
        thread.start();
    }

    private static void pause() {
        try {
            TimeUnit.SECONDS.sleep(1);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    /** Ids, serials and reasons; never a token. */
    static void log(String line) {
        System.err.println(Instant.now() + " orders: " + line);
    }
}
