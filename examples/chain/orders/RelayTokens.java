import java.io.IOException;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.cert.CertificateEncodingException;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import java.time.Instant;
import java.util.List;

/** Verifies the relay tokens that requests carry: signature, issuer, audience, times, and that the one who sends it is who it was made for. */
final class RelayTokens {
    private static final long SKEW = 30; // seconds
    private static final long RENEWING = 5; // seconds that a renewal may take

    /** Why a request is not served: 401 or 403, and what the client learns (RFC 6750 3.1). */
    static final class Refused extends Exception {
        private static final long serialVersionUID = 1;
        final int status;
        final String error;

        Refused(int status, String error, String reason) {
            super(reason);
            this.status = status;
            this.error = error;
        }
    }

    private final String issuer;
    private final List<String> audiences;
    private final List<String> algorithms;
    private final Keys keys;
    private final Revocations revocations;

    RelayTokens(String issuer, List<String> audiences, List<String> algorithms, Keys keys, Revocations revocations) {
        this.issuer = issuer;
        this.audiences = audiences;
        this.algorithms = algorithms;
        this.keys = keys;
        this.revocations = revocations;
    }

    /** The token of one Authorization header; peer is the certificate of the connection. */
    Jwt verify(List<String> authorization, X509Certificate peer, String scope) throws Refused {
        if (authorization == null || authorization.size() != 1 || !authorization.get(0).regionMatches(true, 0, "Bearer ", 0, 7)) {
            throw new Refused(401, "", "there is no token"); // RFC 6750 3.1: no error code
        }
        Jwt token;
        try {
            token = new Jwt(authorization.get(0).substring(7));
            token.verify(algorithms, "JWT", keys.get(token.kid())); // as the policy has it for this service
            judge(token, peer, Instant.now().getEpochSecond());
            revocations.check(token);
        } catch (IOException e) {
            throw new Refused(503, "temporarily_unavailable", e.getMessage());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new Refused(503, "temporarily_unavailable", "this service ends");
        } catch (GeneralSecurityException | IllegalArgumentException e) {
            throw new Refused(401, "invalid_token", e.getMessage());
        }
        if (!token.scopes().contains(scope)) {
            throw new Refused(403, "insufficient_scope", "the token lacks the scope " + scope);
        }
        return token;
    }

    private void judge(Jwt token, X509Certificate peer, long now) throws GeneralSecurityException {
        if (!issuer.equals(token.required("iss"))) {
            throw new GeneralSecurityException("the token is of another issuer");
        }
        if (token.audience().size() != 1 || !audiences.contains(token.audience().get(0))) {
            throw new GeneralSecurityException("the token is for another service");
        }
        if (now >= token.time("exp") + SKEW) {
            throw new GeneralSecurityException("the token has expired");
        }
        if (now + SKEW < token.time("iat") || token.claims().containsKey("nbf") && now + SKEW < token.time("nbf")) {
            throw new GeneralSecurityException("the token is not good yet");
        }
        if (!Identity.idOf(peer).equals(token.required("client_id"))) {
            throw new GeneralSecurityException("the token was made for another caller");
        }
        if (token.claims().containsKey("cnf")) {
            bound(token, peer);
        }
    }

    /** cnf.x5t#S256 (RFC 8705 3.1), or a certificate that the caller got after the token: its renewal does not cost the token. */
    private static void bound(Jwt token, X509Certificate peer) throws GeneralSecurityException {
        String wanted = Json.string(Json.members(token.claims().get("cnf")), "x5t#S256");
        if (wanted == null) {
            throw new GeneralSecurityException("the token is bound in a way that is not known here");
        }
        if (MessageDigest.isEqual(wanted.getBytes(), thumbprint(peer).getBytes())) {
            return;
        }
        if (issued(peer) + RENEWING < token.time("iat")) {
            throw new GeneralSecurityException("the token is bound to another certificate than that of the connection");
        }
    }

    /** Countersign sets notBefore a minute, or a tenth of the lifetime if that is less, before its clock. */
    private static long issued(X509Certificate certificate) {
        long from = certificate.getNotBefore().toInstant().getEpochSecond();
        long lifetime = certificate.getNotAfter().toInstant().getEpochSecond() - from + 1;
        return from + Math.min(60, lifetime / 10);
    }

    private static String thumbprint(X509Certificate certificate) throws CertificateException, GeneralSecurityException {
        try {
            return Jwt.encode(MessageDigest.getInstance("SHA-256").digest(certificate.getEncoded()));
        } catch (CertificateEncodingException e) {
            throw new CertificateException(e);
        }
    }
}
