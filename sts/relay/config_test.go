package relay_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/countersign/countersign/sts/relay"
	"github.com/countersign/countersign/sts/relay/conf"
)

func TestExampleIsRight(t *testing.T) {
	cfg, err := relay.ParseConfig("/etc/countersign/relay.yaml", []byte(relay.Example()))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.App.Token != relay.TokenHandle || cfg.Outbound[0].Machine || cfg.Outbound[0].Service != "inventory" {
		t.Errorf("the defaults are not the safe ones: %+v %+v", cfg.App, cfg.Outbound[0])
	}
	// What is commented out is right too.
	var all []string
	for line := range strings.Lines(relay.Example()) {
		if rest, ok := strings.CutPrefix(line, "# "); ok && (strings.HasPrefix(rest, "public") || strings.HasPrefix(rest, "  ")) {
			line = rest
		}
		all = append(all, line)
	}
	if cfg, err = relay.ParseConfig("relay.yaml", []byte(strings.Join(all, ""))); err != nil || cfg.Public == nil {
		t.Errorf("with the public section: %v", err)
	}
}

// TestAllFaultsAtOnce: each with its place, key and hint.
func TestAllFaultsAtOnce(t *testing.T) {
	doc := `identity: {}
app: {url: "http://10.0.0.1:80", token: both}
internal:
  listen: "8443"
  routs: []
  routes:
    - {name: a, methods: [GET], path: /a}
    - {name: a, methods: [GET], path: /b, scopes: [], to: inventry, timeout: 5}
    - {name: c, methods: [get], path: /c, scopes: ["a b"]}
public:
  listen: ":443"
  routes: [{name: d, methods: [GET], path: /d, token: none, scopes: []}]
outbound:
  - {name: inventory, url: "http://inventory", listen: "0.0.0.0:9001", machine: yes}
  - {name: inventory, url: "https://inventory/x", listen: "127.0.0.1:9001"}
drain: 1h
`
	_, err := relay.ParseConfig("r.yaml", []byte(doc))
	var faults *conf.Error
	if !errors.As(err, &faults) {
		t.Fatalf("%v", err)
	}
	text := err.Error()
	for _, want := range []string{
		"r.yaml:1:11: identity: the relay has no certificate",
		`r.yaml:2:7: app.url: "10.0.0.1" is not on loopback`,
		"app.secret_file: is needed with url",
		`r.yaml:2:34: app.token: "both" is neither`,
		`r.yaml:4:3: internal.listen: "8443" is no address`,
		"r.yaml:5:3: internal.routs: there is no such key; did you mean routes?",
		"r.yaml:7:7: internal.routes[0].scopes: must be said; write the scopes",
		"internal.routes[1].name: there is another route",
		`internal.routes[1].to: there is no outbound "inventry"; did you mean inventory?`,
		`internal.routes[1].timeout: "5" has no unit: write 5s or 5m`,
		`internal.routes[2].scopes[0]: "a b" is no scope`,
		"r.yaml:9:7: internal.routes[2]: ",
		"public.users.issuer: is needed",
		"public.routes[0].token: none is for the internal listener",
		`outbound[0].url: "http://inventory" is not https://`,
		`outbound[0].listen: "0.0.0.0:9001" is no address on loopback: whoever reaches it calls as this service`,
		`outbound[0].machine: "yes" is neither true nor false; write true or false`,
		"outbound[1].name: there is another outbound",
		`outbound[1].url: "https://inventory/x" has a path`,
		"r.yaml:16:1: drain: is 1h: it must be 0s to 5m",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it is not said: %s", want)
		}
	}
	for _, f := range faults.Faults {
		if f.Line == 0 || f.Column == 0 || f.Key == "" {
			t.Errorf("a fault without its place: %s", f)
		}
	}
	if t.Failed() {
		t.Log("\n" + text)
	}
}

func TestConfigRefused(t *testing.T) {
	base := "identity: {dir: d}\ninternal: {listen: \":1\", routes: [{name: a, methods: [GET], path: /a, scopes: []}]}\napp: {socket: s}\n"
	if _, err := relay.ParseConfig("r.yaml", []byte(base)); err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{
		"empty":           "",
		"no YAML":         "a: [",
		"a list":          "- a",
		"two documents":   base + "---\n" + base,
		"a key twice":     base + "app: {socket: t}\n",
		"an alias":        "identity: &a {dir: d}\n" + strings.TrimPrefix(base, "identity: {dir: d}\n"),
		"nothing":         base + "drain:\n",
		"no unit":         base + "drain: 5\n",
		"zero is no time": strings.Replace(base, "scopes: []", "scopes: [], timeout: 0s", 1),
		"one address":     base + "ops: {listen: \":1\"}\n",
		"same path":       strings.Replace(base, "scopes: []}", "scopes: []}, {name: b, methods: [GET], path: /A, scopes: []}", 1),
		"socket and url":  strings.Replace(base, "socket: s", "socket: s, url: \"http://127.0.0.1:1\", secret_file: a.env", 1),
		"a name for url":  strings.Replace(base, "socket: s", "url: \"http://localhost:1\", secret_file: a.env", 1),
		"form of secret":  strings.Replace(base, "socket: s", "url: \"http://127.0.0.1:1\", secret_file: a", 1),
		"large":           base + "# " + strings.Repeat("x", conf.MaxSize),
	} {
		if _, err := relay.ParseConfig("r.yaml", []byte(doc)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// FuzzParseConfig: whatever stands in the file, it is refused with a place, or it can be taken.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(relay.Example()))
	f.Add([]byte(strings.NewReplacer("IDP", "https://idp", "ORDERS", "127.0.0.1:1").Replace(gatewayRelay)))
	f.Add([]byte("identity: {dir: [1]}\ninternal: {routes: [~, {}]}\noutbound: [null]\npublic: {rate: {key: user}}"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		cfg, err := relay.ParseConfig("r.yaml", doc)
		if err == nil {
			if cfg.Identity.Dir == "" && cfg.Identity.JoinFile == "" && cfg.Identity.Attest == "" {
				t.Error("taken without an identity")
			}
			for _, o := range cfg.Outbound {
				if !strings.HasPrefix(o.URL, "https://") {
					t.Errorf("taken with the url %q", o.URL)
				}
			}
			return
		}
		var faults *conf.Error
		if !errors.As(err, &faults) || len(faults.Faults) == 0 || fmt.Sprint(err) == "" {
			t.Errorf("refused without a fault: %v", err)
		}
	})
}
