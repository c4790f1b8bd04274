import java.io.*;
import java.nio.file.*;
import java.security.cert.*;
import java.util.*;
import java.util.stream.*;

/** Verifies chains as JSSE does: Verify SECONDS ROOTS CHAIN... (seconds since 1970) prints a line for each chain, "ok" or why it does not verify. */
public class Verify {
    public static void main(String[] args) throws Exception {
        Set<TrustAnchor> anchors = read(args[1]).stream().map(c -> new TrustAnchor(c, null)).collect(Collectors.toSet());
        for (String file : List.of(args).subList(2, args.length)) {
            PKIXParameters parameters = new PKIXParameters(anchors);
            parameters.setRevocationEnabled(false);
            parameters.setDate(new Date(1000 * Long.parseLong(args[0])));
            CertPath path = CertificateFactory.getInstance("X.509").generateCertPath(read(file));
            try {
                CertPathValidator.getInstance("PKIX").validate(path, parameters);
                System.out.println("ok");
            } catch (CertPathValidatorException e) {
                System.out.println(e.getReason() + " " + e.getMessage());
            }
        }
    }

    static List<X509Certificate> read(String file) throws Exception {
        List<X509Certificate> all = new ArrayList<>();
        try (InputStream in = Files.newInputStream(Path.of(file))) {
            for (Certificate c : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                all.add((X509Certificate) c);
            }
        }
        return all;
    }
}
