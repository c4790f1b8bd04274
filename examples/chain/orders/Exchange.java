import java.io.IOException;
import java.math.BigDecimal;
import java.net.http.HttpResponse;
import java.security.GeneralSecurityException;
import java.time.Instant;
import java.util.LinkedHashMap;
import java.util.Map;

/** Exchanges the token of a request for one that is good for the next service only (RFC 8693). */
final class Exchange {
    private static final int MAX = 1000;

    /** What is kept: by the token that was verified, where to, and the certificate that a bound token is bound to. */
    private record Key(String token, String audience, String scope, String serial) {}

    private record Held(String token, Instant until) {}

    private final Authority authority;
    private final Identity identity;
    private final Map<Key, Held> held = new LinkedHashMap<>() { // the oldest goes when there are too many
        private static final long serialVersionUID = 1;

        @Override
        protected boolean removeEldestEntry(Map.Entry<Key, Held> eldest) {
            return size() > MAX;
        }
    };

    Exchange(Authority authority, Identity identity) {
        this.authority = authority;
        this.identity = identity;
    }

    String exchange(String subject, String audience, String scope) throws IOException, InterruptedException, GeneralSecurityException {
        var key = new Key(subject, audience, scope, identity.serial());
        synchronized (held) {
            Held known = held.get(key);
            if (known != null && Instant.now().isBefore(known.until)) {
                return known.token;
            }
        }
        var form = new LinkedHashMap<String, String>();
        form.put("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
        form.put("client_id", identity.id());
        form.put("subject_token", subject);
        form.put("subject_token_type", "urn:ietf:params:oauth:token-type:access_token");
        form.put("audience", audience);
        form.put("scope", scope);
        Instant asked = Instant.now();
        HttpResponse<String> response = authority.post(authority.issuer + "/oauth2/token", form);
        Map<String, Object> answer = Json.object(response.body());
        if (response.statusCode() != 200) {
            throw new IOException("no token for " + audience + ": " + Json.string(answer, "error"));
        }
        String token = Json.string(answer, "access_token");
        long seconds = answer.get("expires_in") instanceof BigDecimal number ? number.longValue() : 0;
        synchronized (held) {
            held.put(key, new Held(token, asked.plusSeconds(Math.max(0, seconds - 10)))); // not to the last second
        }
        return token;
    }
}
