package countersign_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// advisory is what went wrong in another authority, with the tests by which it would be noticed here. Where we have no such thing at all, absent says so.
type advisory struct {
	name   string // the rows of research/ca.md section 3
	proofs string // "directory Test" with commas between them
	absent string
}

// advisories are all rows of research/ca.md section 3, in its order.
func advisories() []advisory {
	return []advisory{
		{name: "step-ca CVE-2025-44005: a credential of one method at the endpoint of another", proofs: "api TestMutatingRoutesRefuseOtherCredentials, api TestEveryRouteWithEveryCredential"},
		{name: "step-ca CVE-2026-30836: an unknown kind falls through a switch", proofs: "api TestAuthorise, ca TestCallersThatGetNone, ca TestCheckTBS"},
		{name: "step-ca CVE-2025-66406: revoking serials of others", proofs: "ca TestRevoke, ca TestPolicyDecides, cmd/countersign TestRevokedPeers"},
		{name: "step-ca CVE-2026-40097: a panic in an ASN.1 parser", proofs: "ca FuzzCSR, api FuzzForwardedCertificate, api TestAPanicIsOneAnswer"},
		{name: "OpenBao GHSA-g892: names of the CSR escape the policy", proofs: "ca TestOnlyPolicyNames, ca TestCheckTBS, ca TestOneWayToSign, cmd/countersign TestBadCSRs"},
		{name: "OpenBao GHSA-59w7: metacharacters in a name widen the policy", proofs: "storage/policy TestGoldenFaults, storage/policy TestOneFault, cmd/countersign TestBrokenPolicies, . FuzzParseID"},
		{name: "OpenBao CVE-2026-39388: renewal by another valid certificate", proofs: "ca TestLineageProperty, ca TestFork, ca TestKeyBelongsToOneID"},
		{name: "OpenBao CVE-2025-62513 and -62705, Vault CVE-2024-8365, step-ca #2280: secrets in audit log and log", proofs: "api TestMutatingRoutesRefuseOtherCredentials, api TestAttest, api TestClientAssertion"},
		{name: "Vault and OpenBao CVE-2025-6203, -59043, -12044: bodies exhaust memory before authentication", proofs: "cmd/countersign TestMemoryUnderAttack, cmd/countersign TestMemoryOfEachInput, api TestBodies, api TestDecodeJSON"},
		{name: "Vault CVE-2026-5052: ACME validation asks inside addresses", absent: "there is no ACME yet"},
		{name: "Vault CVE-2023-0665: an issuer is changed without a right", proofs: "api TestMutatingRoutesRefuseOtherCredentials, api TestRoutesGolden"},
		{name: "Vault CVE-2021-29653: revoked certificates leave the list before they end", proofs: "ca TestCRLLasts, ca TestManyRevocations"},
		{name: "Vault CVE-2022-41316, CVE-2024-2660: revocation counts only after the first request", proofs: "cmd/countersign TestRevocationSurvives, cmd/countersign TestRevocationKill"},
		{name: "Vault CVE-2025-6037: a pinned leaf as an anchor", absent: "callers are verified by our own roots alone; no certificate can be pinned", proofs: "cmd/countersign TestWrongPeers"},
		{name: "Vault CVE-2024-7594: no names mean any name", proofs: "ca TestOnlyPolicyNames, ca TestCheckTBS"},
		{name: "OpenBao CVE-2026-45808, -40264: an id of another tenant", absent: "a daemon has one tenant", proofs: "ca TestRevoke"},
		{name: "fulcio CVE-2025-66506: a token of dots", proofs: "cmd/countersign TestMemoryUnderAttack, sts/jwt TestHugeTokenCostsNothing"},
		{name: "fulcio CVE-2026-22772, -49478, istio CVE-2026-41413: issuers by pattern, discovery follows redirects", proofs: "sts/jwt TestDiscoveryRefuses, sts/jwt TestNewRemoteRefuses, api TestAttestRefusals"},
		{name: "cert-manager CVE-2024-12401, CVE-2026-25518: quadratic PEM", proofs: "ca FuzzCSR, ca TestBadCSR, cmd/countersign TestMemoryOfEachInput"},
		{name: "SPIRE 1.13.4, 1.13.6: costly chains and keys; other bytes are read than were verified", proofs: "ca TestBadCSR, ca TestElements, api TestForwardedCertificateIsJudged, cmd/countersign TestWrongPeers"},
		{name: "boulder 2020: one name is checked for all; a second too long; signed and not stored", proofs: "ca TestInterval, ca TestCrashPoints, ca TestCheckTBS, cmd/countersign TestFaultKill"},
		{name: "cfssl #250, #788: a sibling endpoint skips authentication", proofs: "api TestEveryRouteNamesItsAuthentication, api TestMountRefusesARouteWithoutAuthentication, api TestMutatingRoutesRefuseOtherCredentials"},
		{name: "probed: a forged token uses up the genuine one's id", proofs: "sts TestAssertionIsRecordedAfterVerification, ca TestJoinTokenRefused"},
		{name: "probed: a malleated signature is another token", proofs: "sts TestAssertionReplay, api TestAttestOnce"},
		{name: "probed: the successor of a compromised certificate renews; its key is signed again", proofs: "ca TestRevokedWithItsSuccessors, ca TestRevokeKey, ca TestAlternatingRenewals"},
		{name: "probed: a body of 300 MiB", proofs: "cmd/countersign TestMemoryUnderAttack"},
		{name: "probed: kill -9 under load, two processes on one store", proofs: "cmd/countersign TestFaultKill, storage/bolt TestHeldByAnotherProcess"},
	}
}

// Each row of research/ca.md section 3 has tests that exist, or a reason why there is nothing to test.
func TestAdvisories(t *testing.T) {
	for _, a := range advisories() {
		if a.proofs == "" && a.absent == "" {
			t.Errorf("%s: no test", a.name)
		}
		for proof := range strings.SplitSeq(a.proofs, ", ") {
			if proof == "" {
				continue
			}
			dir, name, _ := strings.Cut(proof, " ")
			paths, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, path := range paths {
				source, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				found = found || regexp.MustCompile(`(?m)^func `+name+`\(`).Match(source)
			}
			if !found {
				t.Errorf("%s: there is no %s", a.name, proof)
			}
		}
	}
}
