import java.io.IOException;
import java.net.http.HttpResponse;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.Locale;
import java.util.Map;
import java.util.Set;

/** Who may call this service: the edges of the call graph that lead to it, less what is revoked (GET /v1/callers, a long poll). */
final class Callers {
    private static final Duration WAIT = Duration.ofSeconds(20);

    private volatile Set<String> ids = Set.of(); // before the first answer: nobody
    private volatile Set<String> serials = Set.of();
    private volatile Set<String> keys = Set.of();
    private String etag = "";

    /** Asks once; an answer that is no news comes after a while. */
    void fetch(Authority authority) throws IOException, InterruptedException, GeneralSecurityException {
        String url = authority.issuer + "/v1/callers?wait=" + (etag.isEmpty() ? 0 : WAIT.toSeconds()) + "s";
        HttpResponse<String> response = etag.isEmpty() ? authority.get(url, WAIT) : authority.get(url, WAIT, "If-None-Match", etag);
        if (response.statusCode() == 304) {
            return;
        }
        if (response.statusCode() != 200) {
            throw new IOException("the callers can't be had: the answer is " + response.statusCode());
        }
        Map<String, Object> answer = Json.object(response.body());
        var now = new HashSet<String>();
        for (Map<String, Object> caller : Json.objects(answer, "callers")) {
            now.add(Json.string(caller, "id"));
        }
        Map<String, Object> revoked = Json.members(answer.get("revoked"));
        var without = new HashSet<String>();
        strings(revoked, "serials").forEach(serial -> without.add(serial.replaceFirst("^0+", "")));
        serials = without;
        keys = strings(revoked, "keys");
        ids = now;
        etag = response.headers().firstValue("ETag").orElse("");
    }

    /** At the handshake, and on each request of a connection that is kept. */
    boolean admits(X509Certificate leaf) {
        try {
            leaf.checkValidity();
            byte[] key = MessageDigest.getInstance("SHA-256").digest(leaf.getPublicKey().getEncoded());
            return ids.contains(Identity.idOf(leaf)) && !serials.contains(serial(leaf)) && !keys.contains(HexFormat.of().formatHex(key));
        } catch (CertificateException | NoSuchAlgorithmException e) {
            return false;
        }
    }

    private static String serial(X509Certificate leaf) {
        return leaf.getSerialNumber().toString(16);
    }

    private static Set<String> strings(Map<String, Object> object, String name) {
        var found = new HashSet<String>();
        for (Object value : Json.list(object, name)) {
            found.add(((String) value).toLowerCase(Locale.ROOT));
        }
        return found;
    }
}
