package local

import (
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/countersign/countersign/ca/mtls"
)

func source(t *testing.T) *mtls.Source {
	t.Helper()
	src, err := mtls.Open(t.Context(), mtls.Config{Dir: t.TempDir(), ReadOnly: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// Everything that is wrong with a configuration is told at once, and nothing of it is guessed.
func TestConfigFaults(t *testing.T) {
	src := source(t)
	good := func() Config {
		return Config{Socket: "/run/agent.sock", Identities: []Identity{{Name: "a", Source: src}}, Rules: []Rule{{UID: uid(1), Identity: "a"}}}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no socket":             {func(c *Config) { c.Socket = "" }, "absolute path"},
		"a relative socket":     {func(c *Config) { c.Socket = "agent.sock" }, "absolute path"},
		"a long path":           {func(c *Config) { c.Socket = "/" + strings.Repeat("x", maxSocketPath) }, "absolute path"},
		"a name twice":          {func(c *Config) { c.Identities = append(c.Identities, c.Identities[0]) }, "name of its own"},
		"no name":               {func(c *Config) { c.Identities[0].Name = "" }, "name of its own"},
		"no source":             {func(c *Config) { c.Identities[0].Source = nil }, "a source"},
		"an empty rule":         {func(c *Config) { c.Rules[0] = Rule{Identity: "a"} }, "a rule for everybody does not exist"},
		"a program alone":       {func(c *Config) { c.Rules[0] = Rule{Exe: "/bin/x", Identity: "a"} }, "stands alone"},
		"a relative program":    {func(c *Config) { c.Rules[0].Exe = "bin/x" }, "clean absolute path"},
		"an unclean program":    {func(c *Config) { c.Rules[0].Exe = "/bin/../bin/x" }, "clean absolute path"},
		"a program with a zero": {func(c *Config) { c.Rules[0].Exe = "/bin/x\x00y" }, "clean absolute path"},
		"nobody's user":         {func(c *Config) { c.Rules[0].UID = uid(65534) }, "another user namespace"},
		"no user":               {func(c *Config) { c.Rules[0].UID = uid(^uint32(0)) }, "another user namespace"},
		"nobody's group":        {func(c *Config) { c.Rules[0].GID = uid(65534) }, "another user namespace"},
		"no identity":           {func(c *Config) { c.Rules[0].Identity = "" }, "names no identity"},
		"an unknown identity":   {func(c *Config) { c.Rules[0].Identity = "b" }, `no identity "b"`},
		"a negative limit":      {func(c *Config) { c.Limits.Streams = -1 }, "negative"},
	} {
		cfg := good()
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := good()
	cfg.Socket, cfg.Rules = "", append(cfg.Rules, Rule{Identity: "b"})
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "absolute path") || !strings.Contains(err.Error(), "rule 2") {
		t.Errorf("two faults: %v", err)
	}
}

func TestDecide(t *testing.T) {
	runs := func(path string) (bool, bool) { return path == "/app", path != "/unknown" }
	rules := []Rule{
		{UID: uid(1), GID: uid(9), Identity: "both"},
		{UID: uid(1), Exe: "/other", Identity: "other"},
		{UID: uid(1), Exe: "/app", Identity: "app"},
		{UID: uid(2), Exe: "/unknown", Identity: "unknown"},
		{UID: uid(2), Identity: "wide"},
		{GID: uid(9), Identity: "group"},
		{Identity: "everybody"}, // which New refuses
		{UID: uid(overflow), Identity: "overflow"},
		{GID: uid(overflow), Identity: "overflow"},
	}
	for _, c := range []struct {
		uid, gid uint32
		want     string
	}{
		{1, 9, "both"}, {1, 8, "app"}, {2, 9, ""}, {3, 9, "group"}, {3, 8, ""}, {0, 0, ""}, {overflow, 8, ""}, {8, overflow, ""}, {overflow, overflow, ""},
	} {
		got, reason := decide(rules, caller{uid: c.uid, gid: c.gid, runs: runs})
		if got != c.want || (got == "") != (reason != "") {
			t.Errorf("uid %d gid %d: %q, %q", c.uid, c.gid, got, reason)
		}
	}
	if got, _ := decide(nil, caller{runs: runs}); got != "" {
		t.Errorf("no rules: %q", got)
	}
}

// FuzzDecide draws rules and a caller. Whoever gets an identity fits a rule that gives it, and fits no rule before that one,
// whether or not its program can be told.
func FuzzDecide(f *testing.F) {
	f.Add([]byte{1, 1, 0, 0, 3, 1, 2, 1}, uint32(1), uint32(1), byte(1))
	f.Add([]byte{5, 1, 0, 0, 1, 1, 0, 0}, uint32(1), uint32(2), byte(3))
	f.Add([]byte{0, 0, 0, 0}, uint32(0), uint32(0), byte(0))
	f.Fuzz(func(t *testing.T, data []byte, user, group uint32, programs byte) {
		var rules []Rule
		for ; len(data) >= 4; data = data[4:] {
			r := Rule{Identity: string('a' + rune(len(rules)%26))}
			if data[0]&1 != 0 {
				r.UID = uid(uint32(data[1]))
			}
			if data[0]&2 != 0 {
				r.GID = uid(uint32(data[2]))
			}
			if data[0]&4 != 0 {
				r.Exe = "/" + string('0'+rune(data[3]%4))
			}
			rules = append(rules, r)
		}
		runs := func(path string) (bool, bool) { // two bits a program: 0 no, 1 yes, 2 and 3 unknown
			n := programs >> (2 * (path[1] - '0')) & 3
			return n == 1, n < 2
		}
		fits := func(r Rule) (yes, open bool) {
			if r.UID == nil && r.GID == nil || r.UID != nil && *r.UID != user || r.GID != nil && *r.GID != group {
				return false, false
			}
			if r.Exe == "" {
				return true, false
			}
			is, known := runs(r.Exe)
			return is && known, !known
		}
		want := ""
		for _, r := range rules {
			yes, open := fits(r)
			if yes {
				want = r.Identity
			}
			if yes || open {
				break
			}
		}
		got, reason := decide(rules, caller{uid: user, gid: group, runs: runs})
		if got != want || (got == "") == (reason == "") {
			t.Errorf("%v for uid %d gid %d: %q (%s), want %q", rules, user, group, got, reason, want)
		}
		for _, r := range rules {
			if r.UID == nil && r.GID == nil && r.fault(func(string) bool { return true }) == nil {
				t.Errorf("a rule for everybody passes: %v", r)
			}
		}
	})
}

// FuzzExchangeRequest: what is taken is one audience and a list of scopes, one token without spaces, and nothing twice.
func FuzzExchangeRequest(f *testing.F) {
	f.Add("audience=inventory&scope=a+b", "Bearer x")
	f.Add("audience=a&audience=b", "bearer  y")
	f.Add("audience=%00;scope=", "Bearer x y")
	f.Fuzz(func(t *testing.T, query, authorization string) {
		audience, scopes, fault := exchangeQuery(query)
		if fault == "" {
			if audience == "" || len(audience) > 512 || strings.Count(query, "audience") < 1 {
				t.Errorf("%q gives %q", query, audience)
			}
			for _, s := range scopes {
				if s == "" || strings.ContainsAny(s, " \t\n") {
					t.Errorf("%q gives the scope %q", query, s)
				}
			}
		}
		token, fault := bearer([]string{authorization})
		if fault == "" && (token == "" || strings.ContainsAny(token, " \t") || !strings.HasSuffix(authorization, token) || len(token) > maxToken) {
			t.Errorf("%q gives %q", authorization, token)
		}
		if _, fault := bearer([]string{authorization, authorization}); fault == "" {
			t.Error("two headers are taken")
		}
	})
}
