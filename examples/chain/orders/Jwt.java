import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.PublicKey;
import java.security.Signature;
import java.security.interfaces.ECPublicKey;
import java.security.interfaces.RSAPublicKey;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** A signed JWT (RFC 7515, 7519), read as RFC 8725 wants it. Nothing of it is proved before {@link #verify}. */
final class Jwt {
    private static final int MAX = 16 << 10;

    private final Map<String, Object> header;
    private final Map<String, Object> claims;
    private final byte[] signed;
    private final byte[] signature;

    Jwt(String compact, int max) {
        String[] parts = compact.split("\\.", -1);
        if (compact.length() > max || parts.length != 3) {
            throw new IllegalArgumentException("no signed JWT");
        }
        header = Json.object(new String(decode(parts[0]), StandardCharsets.UTF_8));
        claims = Json.object(new String(decode(parts[1]), StandardCharsets.UTF_8));
        signature = decode(parts[2]);
        signed = (parts[0] + "." + parts[1]).getBytes(StandardCharsets.US_ASCII);
        for (String name : Set.of("jku", "jwk", "x5u", "x5c", "crit", "b64")) {
            if (header.containsKey(name)) { // RFC 8725 3.10, RFC 7515 4.1.11
                throw new IllegalArgumentException("the header has " + name);
            }
        }
    }

    Jwt(String compact) {
        this(compact, MAX);
    }

    /** Base64url without padding, in its one canonical form: else one token has several texts. */
    static byte[] decode(String text) {
        byte[] bytes = Base64.getUrlDecoder().decode(text);
        if (!encode(bytes).equals(text)) {
            throw new IllegalArgumentException("base64url that is not canonical");
        }
        return bytes;
    }

    static String encode(byte[] bytes) {
        return Base64.getUrlEncoder().withoutPadding().encodeToString(bytes);
    }

    String kid() {
        String kid = Json.string(header, "kid");
        if (kid == null) {
            throw new IllegalArgumentException("the header has no kid");
        }
        return kid;
    }

    Map<String, Object> claims() {
        return claims;
    }

    /** A claim that is a string and must be there. */
    String required(String name) {
        String value = Json.string(claims, name);
        if (value == null || value.isEmpty()) {
            throw new IllegalArgumentException("there is no " + name);
        }
        return value;
    }

    /** A claim that is a time, in seconds since the epoch, and must be there. */
    long time(String name) {
        if (claims.get(name) instanceof BigDecimal number) {
            return number.longValue();
        }
        throw new IllegalArgumentException("there is no time " + name);
    }

    /** The audience as a list: one string means a list of one (RFC 7519 4.1.3). */
    List<?> audience() {
        return claims.get("aud") instanceof String one ? List.of(one) : Json.list(claims, "aud");
    }

    List<String> scopes() {
        String scope = Json.string(claims, "scope"); // RFC 8693 4.2
        return scope == null || scope.isEmpty() ? List.of() : List.of(scope.split(" "));
    }

    /** The services that the request came through, the nearest first. For showing and the log, never to grant (RFC 8693 4.1). */
    List<String> chain() {
        var found = new ArrayList<String>();
        Map<String, Object> act = Json.members(claims.get("act"));
        while (!act.isEmpty()) {
            found.add(Json.string(act, "sub"));
            act = Json.members(act.get("act"));
        }
        return found;
    }

    /** The type, and the signature by an algorithm that is configured and that the key is for: never by the header alone (RFC 8725 3.1). */
    void verify(List<String> algorithms, String type, PublicKey key) throws GeneralSecurityException {
        String algorithm = Json.string(header, "alg");
        if (!algorithms.contains(algorithm)) {
            throw new GeneralSecurityException("the alg is none of " + algorithms);
        }
        String typ = Json.string(header, "typ");
        if (typ == null || !typ.equalsIgnoreCase(type)) {
            throw new GeneralSecurityException("the typ is not " + type);
        }
        Signature verifier;
        if (algorithm.equals("RS256") && key instanceof RSAPublicKey rsa && rsa.getModulus().bitLength() >= 2048) {
            verifier = Signature.getInstance("SHA256withRSA");
        } else if (algorithm.equals("ES256") && key instanceof ECPublicKey && signature.length == 64) {
            verifier = Signature.getInstance("SHA256withECDSAinP1363Format");
        } else {
            throw new GeneralSecurityException("the key is none for " + algorithm);
        }
        verifier.initVerify(key);
        verifier.update(signed);
        if (!verifier.verify(signature)) {
            throw new GeneralSecurityException("the signature does not fit");
        }
    }
}
