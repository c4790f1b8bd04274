import java.io.IOException;
import java.math.BigInteger;
import java.net.http.HttpResponse;
import java.security.AlgorithmParameters;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.ECParameterSpec;
import java.security.spec.ECPoint;
import java.security.spec.ECPublicKeySpec;
import java.security.spec.RSAPublicKeySpec;
import java.time.Duration;
import java.time.Instant;
import java.util.HashMap;
import java.util.Map;

/**
 * The issuer's public keys (RFC 7517), kept for 5 minutes. A key that is not known is looked for once in 30 seconds at most, so that
 * nobody makes this service ask for keys as often as he likes. The last good answer is used while the issuer is down.
 */
final class Keys {
    private static final Duration KEEP = Duration.ofMinutes(5);
    private static final Duration REST = Duration.ofSeconds(30);

    private final Authority authority;
    private final String uri;
    private Map<String, PublicKey> known = Map.of();
    private Instant fetched = Instant.MIN;
    private Instant missed = Instant.MIN;

    Keys(Authority authority, String uri) {
        this.authority = authority;
        this.uri = uri;
    }

    synchronized PublicKey get(String kid) throws IOException, InterruptedException, GeneralSecurityException {
        Instant now = Instant.now();
        if (now.isAfter(fetched.plus(KEEP))) {
            fetch(now);
        }
        if (!known.containsKey(kid) && now.isAfter(missed.plus(REST))) {
            missed = now;
            fetch(now);
        }
        PublicKey key = known.get(kid);
        if (key == null) {
            throw new GeneralSecurityException("the issuer has no such key");
        }
        return key;
    }

    private void fetch(Instant now) throws InterruptedException, GeneralSecurityException, IOException {
        HttpResponse<String> response;
        try {
            response = authority.get(uri, Duration.ZERO);
            if (response.statusCode() != 200) {
                throw new IOException("the answer is " + response.statusCode());
            }
        } catch (IOException e) {
            if (known.isEmpty()) {
                throw new IOException("the issuer's keys can't be had: " + e.getMessage(), e);
            }
            return;
        }
        var keys = new HashMap<String, PublicKey>();
        for (Map<String, Object> jwk : Json.objects(Json.object(response.body()), "keys")) {
            PublicKey key = key(jwk);
            if (key != null) {
                keys.put(Json.string(jwk, "kid"), key);
            }
        }
        if (!keys.isEmpty()) { // an empty answer evicts nothing
            known = keys; // replaced, not merged: a key that was taken back is gone
            fetched = now;
        }
    }

    /** The public key of a JWK (RFC 7518 6); null if it is of a kind that is not used here. */
    private static PublicKey key(Map<String, Object> jwk) throws GeneralSecurityException {
        if ("RSA".equals(jwk.get("kty"))) {
            return KeyFactory.getInstance("RSA").generatePublic(new RSAPublicKeySpec(number(jwk, "n"), number(jwk, "e")));
        }
        if (!"EC".equals(jwk.get("kty")) || !"P-256".equals(jwk.get("crv"))) {
            return null;
        }
        var parameters = AlgorithmParameters.getInstance("EC");
        parameters.init(new ECGenParameterSpec("secp256r1"));
        var point = new ECPoint(number(jwk, "x"), number(jwk, "y"));
        return KeyFactory.getInstance("EC").generatePublic(new ECPublicKeySpec(point, parameters.getParameterSpec(ECParameterSpec.class)));
    }

    private static BigInteger number(Map<String, Object> jwk, String name) {
        return new BigInteger(1, Jwt.decode(Json.string(jwk, name)));
    }
}
