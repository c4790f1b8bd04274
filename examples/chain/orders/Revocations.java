import java.io.IOException;
import java.math.BigDecimal;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

/**
 * What the issuer has revoked: its signed list, fetched every 2 seconds. Without one that is younger than 5 minutes no token is taken.
 * The list is never long: a revocation stands in it as long as a token that it reaches may live.
 */
final class Revocations {
    private static final int MAX_PAGE = 1 << 20;
    private static final Duration STALE = Duration.ofMinutes(5);

    private final Authority authority;
    private final Keys keys;
    private final String own; // this service's ID
    private volatile List<Map<String, Object>> list = List.of();
    private volatile Instant fetched = Instant.MIN;

    Revocations(Authority authority, Keys keys, String own) {
        this.authority = authority;
        this.keys = keys;
        this.own = own;
    }

    void fetch() throws IOException, InterruptedException, GeneralSecurityException {
        var found = new ArrayList<Map<String, Object>>();
        Instant began = Instant.now();
        boolean more = true;
        for (long since = 0; more; ) {
            HttpResponse<String> response = authority.get(authority.issuer + "/oauth2/revocations?since=" + since, Duration.ZERO,
                "Accept", "application/jwt");
            if (response.statusCode() != 200) {
                throw new IOException("the revocations can't be had: the answer is " + response.statusCode());
            }
            var page = new Jwt(response.body(), MAX_PAGE);
            page.verify(List.of("ES256"), "revocations+jwt", keys.get(page.kid()));
            if (!page.required("iss").equals(authority.issuer) || page.time("exp") < began.getEpochSecond() || page.time("since") != since) {
                throw new GeneralSecurityException("the revocations are another issuer's, old, or not those that were asked for");
            }
            found.addAll(Json.objects(page.claims(), "revocations"));
            more = Boolean.TRUE.equals(page.claims().get("more"));
            if (more && page.time("cursor") <= since) {
                throw new GeneralSecurityException("the revocations go on where they began");
            }
            since = page.time("cursor");
        }
        list = found;
        fetched = began;
    }

    /** Refuses a token that is revoked, and every token when that is not known. */
    void check(Jwt token) throws GeneralSecurityException {
        if (Instant.now().isAfter(fetched.plus(STALE))) {
            throw new GeneralSecurityException("what is revoked is not known");
        }
        for (Map<String, Object> revocation : list) {
            if (reaches(revocation, token)) {
                throw new GeneralSecurityException("the token is revoked by its " + revocation.get("kind"));
            }
        }
    }

    private boolean reaches(Map<String, Object> revocation, Jwt token) throws GeneralSecurityException {
        String value = Json.string(revocation, "value");
        switch (String.valueOf(revocation.get("kind"))) {
            case "jti": // and all that were made from it
                return (token.required("jti") + ".").startsWith(value + ".");
            case "txn":
                return value.equals(token.claims().get("txn"));
            case "sid":
                return value.equals(hash(token.claims().get("sub_iss") + "\0" + token.claims().get("sid")));
            case "sub": // the list is public, and a sub may be an address: it holds hashes
                return value.equals(hash(token.required("sub"))) && before(revocation, token);
            case "service":
                boolean named = value.equals(token.required("client_id")) || value.equals(own) || token.chain().contains(value);
                return named && before(revocation, token);
            default: // to pass over it would be to take what is revoked
                throw new GeneralSecurityException("a kind of revocation that is not known here");
        }
    }

    private static String hash(String text) throws GeneralSecurityException {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8)));
    }

    private static boolean before(Map<String, Object> revocation, Jwt token) {
        return revocation.get("before") instanceof BigDecimal before && token.time("iat") <= before.longValue();
    }
}
