package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const wholeConfig = `server: https://ca.shop.internal:8443
root: /etc/countersign/root.pem
socket: /run/countersign/agent.sock
ops: {listen: "127.0.0.1:8445"}
log: {level: info, format: json}
identities:
  - name: orders
    dir: /etc/orders/identity
    join_file: /etc/orders/join
    key: RSA-3072
    survive: 8h
    p12_password_file: /etc/orders/password
    spring: {audience: orders, issuer: "https://ca.shop.internal:8443", algorithms: [RS256]}
    reload:
      exec: [nginx, -s, reload]
      signal: HUP
      pid_file: /run/nginx.pid
      systemd: nginx.service
      timeout: 10s
    verify: {address: "tcp://127.0.0.1:8443", server_name: orders.shop.internal, within: 2m}
  - dir: /etc/batch/identity
    attest: /var/run/secrets/token
    id: spiffe://shop.internal/batch
    ttl: 1h
api:
  socket: /run/countersign/workload.sock
  rules: [{uid: 1000, identity: orders}, {gid: 7, exe: /usr/bin/batch, identity: identity}]
`

func TestParse(t *testing.T) {
	cfg, err := Parse("agent.yaml", []byte(wholeConfig))
	if err != nil {
		t.Fatal(err)
	}
	a, b := cfg.Identities[0], cfg.Identities[1]
	if a.name() != "orders" || b.name() != "identity" || a.Reload.Signal.String() != "HUP" || a.lifetime() != 24*time.Hour || b.lifetime() != time.Hour {
		t.Errorf("%+v, lifetime %s", cfg, a.lifetime())
	}
	if *cfg.API.Rules[0].UID != 1000 || cfg.API.Rules[1].Exe != "/usr/bin/batch" || time.Duration(a.Verify.Within) != 2*time.Minute {
		t.Errorf("%+v", cfg)
	}
}

// Each fault is told with its place; what is told is enough to mend it.
func TestParseFaults(t *testing.T) {
	const one = "identities: [{dir: /a}]\n"
	for document, want := range map[string]string{
		"":                                       "f: it is empty",
		"identities: []\n":                       "f:1:13: identities: at least one",
		"identities: [{dir: /a}, {dir: /b/a}]\n": "f:1:25: identities[1].name: the name a is that of identities[0] too",
		"identities: [{dir: /a, name: x}, {dir: /a/}]\n":                         "f:1:40: identities[1].dir: the dir /a is that of identities[0] too",
		one + "serverr: x\n":                                                     "f:2:1: serverr: there is no such key; did you mean server?",
		one + "zzz: x\n":                                                         "there are api, identities, log, ops, root, server, socket",
		one + "server: http://x:1\n":                                             "f:2:9: server: \"http://x:1\" must be https://host:port",
		one + "server: [x]\n":                                                    "f:2:9: server: must be a single value, not a list",
		one + "server:\n":                                                        "server: must be a single value, not nothing",
		one + "ops: x\n":                                                         "f:2:6: ops: must be a section",
		one + "ops: {listen: \"0.0.0.0:1\"}\n":                                   "f:2:15: ops.listen: \"0.0.0.0:1\" is not an address of loopback: write 127.0.0.1:1",
		one + "ops: {listen: \"localhost:1\"}\n":                                 "is not an address of loopback",
		one + "ops: {listen: \"127.0.0.1\"}\n":                                   "is no address to listen on",
		one + "ops: {listen: \"127.0.0.1:http\"}\n":                              "has no port number",
		one + "log: {level: inof}\n":                                             "f:2:14: log.level: \"inof\" is not known here; did you mean info?",
		one + "log: {format: xml}\n":                                             "log.format: \"xml\" is not known here: there are text, json",
		one + one:                                                                "f:2:1: identities: stands here twice",
		one + "---\n" + one:                                                      "more than one YAML document",
		"identities: &a [{dir: /a}]\n":                                           "anchors and aliases",
		"identities: [{dir: *a}]\n":                                              "unknown anchor",
		"identities: [{dir: \"/a\\nb\"}]\n":                                      "identities[0].dir: a path has no control characters",
		"identities: {dir: /a}\n":                                                "f:1:13: identities: must be a list, not a section",
		"identities: [{dir: /a, ttl: 5}]\n":                                      "f:1:29: identities[0].ttl: \"5\" is no duration: write for example 90s",
		"identities: [{dir: /a, ttl: -5s}]\n":                                    "is no duration",
		"identities: [{dir: /a, ttl: 5s}]\n":                                     "identities[0].ttl: must be between 1m and 2160h",
		"identities: [{dir: /a, ttl: 1h, survive: 1h}]\n":                        "identities[0].survive: ttl and survive both set the lifetime",
		"identities: [{name: x}]\n":                                              "f:1:14: identities[0].dir: is needed",
		"identities: [{dir: /a, name: \"a b\"}]\n":                               "identities[0].name: \"a b\" is no name",
		"identities: [{dir: /}]\n":                                               "identities[0].name: \"/\" is no name",
		"identities: [{dir: /a, key: RSA-1024}]\n":                               "identities[0].key: \"RSA-1024\" is not known here: there are P-256",
		"identities: [{dir: /a, join_file: b, attest: c}]\n":                     "identities[0].attest: join_file and attest are two ways",
		"identities: [{dir: /a, attest: c}]\n":                                   "identities[0].id: attest needs it",
		"identities: [{dir: /a, attest: c, id: \"spiffe://a/b\"}]\n":             "identities[0].server: attest needs it",
		"identities: [{dir: /a, attest: c, id: x}]\n":                            "identities[0].id: ",
		"identities: [{dir: /a, attest: c, id: \"spiffe://a.b/countersign\"}]\n": "is not the ID of a service",
		"identities: [{dir: /a, id: \"spiffe://a/b\"}]\n":                        "identities[0].id: goes with attest only",
		"identities: [{dir: /a, reload: {signal: KILL}}]\n":                      "f:1:41: identities[0].reload.signal: \"KILL\" is no signal to reload with",
		"identities: [{dir: /a, reload: {signal: HUP}}]\n":                       "identities[0].reload.signal: goes with pid_file",
		"identities: [{dir: /a, reload: {pid_file: /p}}]\n":                      "identities[0].reload.pid_file: goes with signal",
		"identities: [{dir: /a, reload: {exec: nginx}}]\n":                       "identities[0].reload.exec: must be a list",
		"identities: [{dir: /a, reload: {exec: [\"\"]}}]\n":                      "the program's name is empty",
		"identities: [{dir: /a, reload: {systemd: \"--now\"}}]\n":                "\"--now\" is no unit",
		"identities: [{dir: /a, reload: {timeout: 11m}}]\n":                      "identities[0].reload.timeout: must be between",
		"identities: [{dir: /a, verify: {address: \"127.0.0.1:1\"}}]\n":          "identities[0].verify.address: \"127.0.0.1:1\" is no address to look at",
		"identities: [{dir: /a, verify: {address: \"tcp://x\"}}]\n":              "is no address to look at",
		"identities: [{dir: /a, verify: {within: 1s}}]\n":                        "identities[0].verify.address: is needed",
		"identities: [{dir: /a, spring: {}}]\n":                                  "identities[0].spring.audience: is needed",
		"identities: [{dir: /a, spring: {audience: a, algorithms: [none]}}]\n":   "identities[0].spring.algorithms[0]: \"none\" is not known here",
		"identities: [{dir: /a, spring: {audience: a, issuer: \"http://x\"}}]\n": "identities[0].spring.issuer: ",
		one + "api: {socket: x}\n":                                               "f:2:15: api.socket: \"x\": an absolute path",
		one + "api: {socket: /x, rules: [{uid: 1, identity: b}]}\n":              "api.rules[0].identity: there is no identity \"b\"",
		one + "api: {socket: /x, rules: [{uid: -1, identity: a}]}\n":             "api.rules[0].uid: \"-1\" is not of the right kind",
	} {
		_, err := Parse("f", []byte(document))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", document, err, want)
		}
	}
}

// All faults of a document are told at once.
func TestParseAllFaults(t *testing.T) {
	_, err := Parse("f", []byte("servr: x\nidentities: [{dri: /a}, {dir: [x]}]\n"))
	var faults *ConfigError
	if !errors.As(err, &faults) || len(faults.Problems) != 3 {
		t.Errorf("%v", err)
	}
	_, err = Parse("f", []byte("server: x\nlog: {level: x}\nidentities: [{dir: /a, key: x}, {ttl: 1s}]\n"))
	if !errors.As(err, &faults) || len(faults.Problems) != 5 {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(wholeConfig))
	f.Add([]byte("identities: [{dir: /a}]\n"))
	f.Fuzz(func(t *testing.T, document []byte) {
		cfg, err := Parse("f", document)
		var faults *ConfigError
		if err != nil && (!errors.As(err, &faults) || len(faults.Problems) == 0) {
			t.Fatalf("%T %v", err, err)
		}
		if err == nil && len(cfg.Validate()) > 0 {
			t.Fatalf("parsed and not valid: %v", cfg.Validate())
		}
	})
}

func TestSplitWords(t *testing.T) {
	for line, want := range map[string]string{
		"nginx -s reload":             "nginx|-s|reload",
		`  a  'b  c' "d 'e'" f\ g ''`: `a|b  c|d 'e'|f g|`,
		`a"b"'c'`:                     "abc",
		`a $HOME ; *`:                 "a|$HOME|;|*",
		`'a\'`:                        `a\`,
	} {
		got, err := SplitWords(line)
		if err != nil || strings.Join(got, "|") != want {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	for _, line := range []string{"", "  ", "''", "a 'b", `a "b`, `a\`} {
		if got, err := SplitWords(line); err == nil {
			t.Errorf("%q: %q", line, got)
		}
	}
}

func TestDefaultSocket(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		uid  int
		want string
	}{
		{nil, 0, "/run/countersign/agent.sock"},
		{nil, 7, filepath.Join(os.TempDir(), "countersign-7/agent.sock")},
		{map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/countersign/agent.sock"},
		{map[string]string{"XDG_RUNTIME_DIR": "/run/user/7", "RUNTIME_DIRECTORY": "/run/cs"}, 7, "/run/cs/agent.sock"},
		{map[string]string{"XDG_RUNTIME_DIR": "relative"}, 0, "/run/countersign/agent.sock"},
	} {
		if got := DefaultSocket(func(k string) string { return c.env[k] }, c.uid); got != c.want {
			t.Errorf("%v: %s", c, got)
		}
	}
}

func TestStateAt(t *testing.T) {
	begin := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	end := begin.Add(time.Hour)
	for minutes, want := range map[float64]State{
		0: StateOK, 40: StateOK, 40.1: StateLate, 50: StateLate, 50.1: StateLow, 57: StateLow, 57.1: StateCritical, 60: StateCritical, 60.1: StateExpired,
	} {
		if got := stateAt(begin.Add(time.Duration(minutes*float64(time.Minute))), begin, end); got != want || got.ready() != (minutes <= 50) {
			t.Errorf("after %v minutes of 60: %s, ready %t", minutes, got, got.ready())
		}
	}
	if got := stateAt(begin, time.Time{}, time.Time{}); got != StateNone || got.ready() {
		t.Error(got)
	}
	levels := StateOK.level() < StateLate.level() && StateLate.level() < StateLow.level() && StateLow.level() < StateCritical.level() && StateCritical.level() == StateExpired.level()
	if !levels {
		t.Error("failures don't get louder towards the end")
	}
}

func TestSpringText(t *testing.T) {
	got := springText("/etc/orders/identity", "https://ca.shop.internal:8443", Spring{Audience: "orders"})
	want, err := os.ReadFile("testdata/application-countersign.yaml")
	if err != nil || string(got) != string(want) {
		t.Errorf("%v; the file is now\n%s", err, got)
	}
	if narrow := string(springText("/d", "https://x", Spring{Audience: "a\"b", Algorithms: []string{"RS256"}})); !strings.Contains(narrow, "jws-algorithms: [RS256] #") || !strings.Contains(narrow, `audiences: ["a\"b"]`) {
		t.Error(narrow)
	}
}
