import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.util.Map;
import java.util.stream.Collectors;

/** Requests to Countersign: by mTLS with this service's certificate, which is the OAuth client too (RFC 8705 2). */
final class Authority {
    static final String NAME = "countersign";
    private static final Duration PATIENCE = Duration.ofSeconds(10);

    final String issuer;
    private final Identity identity;

    Authority(String issuer, Identity identity) {
        this.issuer = issuer;
        this.identity = identity;
    }

    HttpResponse<String> get(String url, Duration wait, String... headers) throws IOException, InterruptedException, GeneralSecurityException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).timeout(PATIENCE.plus(wait));
        if (headers.length > 0) {
            request.headers(headers);
        }
        return send(request);
    }

    HttpResponse<String> post(String url, Map<String, String> form) throws IOException, InterruptedException, GeneralSecurityException {
        String body = form.entrySet().stream().map(e -> encode(e.getKey()) + "=" + encode(e.getValue())).collect(Collectors.joining("&"));
        return send(HttpRequest.newBuilder(URI.create(url)).timeout(PATIENCE)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .POST(HttpRequest.BodyPublishers.ofString(body)));
    }

    /** The answer is the authority's: the connection is to nobody else. */
    private HttpResponse<String> send(HttpRequest.Builder request) throws IOException, InterruptedException, GeneralSecurityException {
        return identity.client(NAME).send(request.build(), HttpResponse.BodyHandlers.ofString());
    }

    private static String encode(String text) {
        return URLEncoder.encode(text, StandardCharsets.UTF_8);
    }
}
