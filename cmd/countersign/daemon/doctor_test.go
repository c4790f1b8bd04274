package daemon

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// sound are facts of which nothing is wrong, at now.
func sound(now time.Time) Facts {
	cert := func(before, after time.Duration) wire.AuthorityCertificate {
		return wire.AuthorityCertificate{State: "signing", KeyID: "k", NotBefore: now.Add(-before), NotAfter: now.Add(after)}
	}
	return Facts{
		Now: now, Dir: "x", Own: []*x509.Certificate{{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}}, Free: 1 << 40,
		Live: &Live{
			Status:    wire.Status{Ready: true, Time: now, Issuers: []wire.IssuerKeys{{Issuer: "idp", Fetched: now}}},
			Authority: wire.Authority{Roots: []wire.AuthorityCertificate{cert(time.Hour, 9*time.Hour)}, Intermediates: []wire.AuthorityCertificate{cert(time.Hour, 9*time.Hour)}},
			Clock:     wire.Clock{Trusted: true},
		},
	}
}

// Each broken fact is exactly one finding that is wrong, and says how to mend it; nothing else changes.
func TestJudge(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		check string
		harm  func(*Facts)
	}{
		"sound":                 {"", func(*Facts) {}},
		"configuration":         {"configuration", func(f *Facts) { f.Config = errors.New("bad\nworse") }},
		"not ready":             {"daemon", func(f *Facts) { f.Live.Status.Ready = false }},
		"locked, not answering": {"daemon", func(f *Facts) { f.Live, f.Lock = nil, errors.New("held") }},
		"sealed":                {"key-encryption key", func(f *Facts) { f.Live.Status.Sealed, f.KEK = true, errors.New("none") }},
		"own certificate late":  {"own certificate", func(f *Facts) { f.Own[0].NotAfter = now.Add(time.Minute) }},
		"own certificate gone":  {"own certificate", func(f *Facts) { f.Own, f.OwnErr = nil, errors.New("absent") }},
		"intermediate expired":  {"intermediate", func(f *Facts) { f.Live.Authority.Intermediates[0].NotAfter = now.Add(-time.Second) }},
		"intermediate late":     {"intermediate", func(f *Facts) { f.Live.Authority.Intermediates[0].NotAfter = now.Add(time.Minute) }},
		"no intermediate":       {"intermediate", func(f *Facts) { f.Live.Authority.Intermediates = nil }},
		"root expired":          {"root", func(f *Facts) { f.Live.Authority.Roots[0].NotAfter = now.Add(-time.Second) }},
		"clock":                 {"clock", func(f *Facts) { f.Live.Clock = wire.Clock{Why: "it leapt"} }},
		"clock before the log":  {"clock", func(f *Facts) { f.Live, f.Newest = nil, now.Add(time.Hour) }},
		"rights":                {"permissions", func(f *Facts) { f.Modes = []ModeFault{{"x", "y", "z"}} }},
		"disk":                  {"disk", func(f *Facts) { f.Free = 100 << 20 }},
		"disk, large database":  {"disk", func(f *Facts) { f.Free, f.Database = 1<<30, 1<<30 }},
		"token lost": {"daemon,token pkcs11:token=t", func(f *Facts) {
			f.Live.Keys.Keys = []wire.Key{{ID: "k", KMS: "pkcs11:token=t;id=0a;object=x"}}
			f.Live.Status.Ready, f.Live.Status.Reasons = false, []string{"the token pkcs11:token=t is lost: nothing"}
		}},
		"backup beside the KEK": {"backups", func(f *Facts) { f.Backups = []string{"x"} }},
		"issuer down":           {"issuer idp", func(f *Facts) { f.Live.Status.Issuers[0].Fetched = time.Time{} }},
		"issuer failing":        {"issuer idp", func(f *Facts) { f.Live.Status.Issuers[0].Failing = true }},
		"issuer stale":          {"issuer idp", func(f *Facts) { f.Live.Status.Issuers[0].Fetched = now.Add(-3 * time.Hour) }},
		"audit chain":           {"audit chain", func(f *Facts) { f.Live, f.Audit, f.AuditSeen = nil, errors.New("cut"), true }},
	} {
		f := sound(now)
		c.harm(&f)
		var wrong []string
		for _, found := range f.Judge() {
			if found.State == FindingWrong {
				wrong = append(wrong, found.Check)
			}
			if (found.State == FindingOK) != (found.Next == "") || found.What == "" {
				t.Errorf("%s: %+v", name, found)
			}
		}
		if strings.Join(wrong, ",") != c.check {
			t.Errorf("%s: %q is wrong, want %q", name, wrong, c.check)
		}
	}
	waits := sound(now)
	waits.Live.Authority.Intermediates[0].NotAfter = now.Add(time.Minute)
	next := waits.Live.Authority.Intermediates[0]
	next.State, next.NotAfter = "pending", now.Add(time.Hour)
	waits.Live.Authority.Intermediates = append(waits.Live.Authority.Intermediates, next)
	for _, found := range waits.Judge() {
		if found.State == FindingWrong {
			t.Errorf("a successor waits, and yet: %+v", found)
		}
	}
}
