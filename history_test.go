package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// history is what happened to others (CVEs, advisories and issues of token services and their libraries), and the tests that hold
// that it does not happen here. A row without a test is a fault.
func history() map[string][]string {
	return map[string][]string{
		"Keycloak CVE-2022-1245, #48104: exchange for any target client":              {"sts.TestDecideTarget", "sts.TestRefusals", "sts.TestAttenuation"},
		"Keycloak #52691: may_act without the named actor":                            {"sts.TestDecideMayAct", "cmd/countersign.TestHostileTokens"},
		"Keycloak #51633: a revoked ancestor blocks every further hop":                {"sts.TestRevoke", "sts.TestRevokeDuringAnExchange", "cmd/countersign.TestRevocationSurvives"},
		"Authorizer, Dex: a subject token that is addressed to somebody else":         {"sts.TestReadExternal", "sts.TestReadOwn", "cmd/countersign.TestHostileTokens"},
		"Keycloak CVE-2026-8922, CVE-2023-0091: revocation marks, the strictest":      {"..TestRevocations", "sts.TestRevokeInTheSameSecond", "sts.TestRevokeToken"},
		"Zitadel GHSA-wxg7-w2v3-w38g: no exp or iat, eternal tokens":                  {"sts/jwt.TestTimes", "sts.TestReadExternal", "cmd/countersign.TestHostileTokens"},
		"Zitadel CVE-2025-31123: expired keys are accepted":                           {"sts.TestJWKS", "storage/keyring.TestState", "cmd/countersign.TestRotateNowAndRetire"},
		"Zitadel CVE-2026-55672: an assertion is bound to its client":                 {"sts.TestAssertionRefusals", "sts.TestAssertionNextToCertificate"},
		"Zitadel CVE-2026-27840: truncated and extended tokens":                       {"sts/jwt.TestShape", "sts/jwt.TestEveryBit"},
		"zitadel/oidc #704: opaque and empty tokens":                                  {"sts/jwt.TestShape", "sts/jwt.FuzzParse"},
		"go-jose CVE-2024-28180, CVE-2025-27144, CVE-2026-34986; CVE-2025-30204":      {"sts/jwt.TestShape", "sts/jwt.TestHeader", "sts/jwt.TestHugeTokenCostsNothing"},
		"golang-jwt CVE-2024-51744: expired and badly signed":                         {"sts/jwt.TestSignature", "sts.TestReadExternal"},
		"jwx, CVE-2015-9235, Spring CVE-2026-22748: none, HMAC with a public key":     {"sts/jwt.TestAlgorithm", "cmd/countersign.TestHostileTokens"},
		"CVE-2018-0114: embedded jwk, jku, x5u, x5c; kid injection":                   {"sts/jwt.TestHeader", "cmd/countersign.TestHostileTokens"},
		"Centrifugo CVE-2026-32301, Spring CVE-2026-22752: a key URL from a token":    {"sts.TestAcceptedFrom", "sts/verify.TestStrangersCostNoFetch", "sts/jwt.TestBadAnswers"},
		"jwkset CVE-2025-22149: removed keys stay trusted":                            {"sts/jwt.TestReplaced", "sts.TestUpstreamRotation", "sts/jwt.TestVerifiedAsksTheKeys"},
		"PyJWT CVE-2026-32597, Authlib CVE-2025-59420: unknown crit":                  {"sts/jwt.TestHeader", "sts/jwt.TestParseProof"},
		"audience injection of private_key_jwt (7523bis); Abblix #187: replay":        {"sts.TestAssertionRefusals", "sts.TestAssertionReplay"},
		"node-jws CVE-2025-65945: a key look-up from an unverified payload":           {"sts/jwt.TestAlgorithm", "sts.TestAcceptedFrom"},
		"HAProxy, CVE-2022-21449, cjose: the form and range of ES256 signatures":      {"sts/jwt.TestSignature", "sts/jwt.TestCheckSignature"},
		"duplicate members, case folding, depth":                                      {"sts/jwt.TestShape", "sts/jwt.TestHeader", "cmd/countersign.TestHostileTokens"},
		"confusion of typ":                                                            {"sts.TestKinds", "sts.TestIDTokens", "sts.TestAssertionsAreNoSubjectTokens", "sts.TestFeedIsNoToken", "sts/verify.TestTypes"},
		"mTLS headers (RFC 9700 4.13), Keycloak CVE-2023-2422, Spring CVE-2026-22747": {"api.TestForwardedByOthersIsIgnored", "api.TestForwardedCertificateIsJudged", "cmd/countersign.TestWrongPeers"},
		"TLS resumption keeps an old proof":                                           {"api.TestNoResumption"},
		"octo-sts: policies that match by pattern":                                    {"sts.TestDecideTarget", "sts.TestWorkloadAssertionRefusals"},
		"DPoP: two headers, cnf downgrade, iat, htu, ath, private jwk":                {"sts/verify.TestProofChecks", "sts/verify.TestSchemes", "sts/verify.TestNormalURI", "sts/jwt.TestParseProof"},
		"depth and loops: one hop more, A-B-A, an injected act, a client as a user":   {"sts.TestMaxHops", "sts.TestDecideChain", "cmd/countersign.TestHostileChains", "cmd/countersign.TestActIsOurs"},
	}
}

func TestHistory(t *testing.T) {
	known := map[string]map[string]bool{}
	for row, tests := range history() {
		if len(tests) == 0 {
			t.Errorf("%s: no test", row)
		}
		for _, name := range tests {
			dot := strings.LastIndexByte(name, '.')
			dir, test := name[:dot], name[dot+1:]
			if known[dir] == nil {
				known[dir] = testsIn(t, dir)
			}
			if !known[dir][test] {
				t.Errorf("%s: there is no %s", row, name)
			}
		}
	}
}

// testsIn are the tests and fuzz targets of a package, by its folder.
func testsIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files of tests, %v", dir, len(files), err)
	}
	found := map[string]bool{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				found[f.Name.Name] = true
			}
		}
	}
	return found
}
