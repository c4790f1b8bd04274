package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files: go test ./cmd/countersign -run JSON -update")

// What scripts read with -o json is stable: a name may be added to testdata/json.golden, and none may leave.
func TestJSONNames(t *testing.T) {
	issuer, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	i := newInstance(t, raceBinary(t))
	i.apply(t, strings.ReplaceAll(chainPolicy, "IDP", issuer.URL))
	user, err := issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	userFile, relayFile, gateway, policy := filepath.Join(work, "user"), filepath.Join(work, "relay"), filepath.Join(work, "gateway"), filepath.Join(work, "policy")
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(userFile, user)
	write(policy, strings.ReplaceAll(chainPolicy, "IDP", issuer.URL)+"# changed\n")

	var b bytes.Buffer
	show := func(args ...string) map[string]any {
		t.Helper()
		text := i.run(t, append(args, "-o", "json")...)
		first, _, _ := strings.Cut(text, "\n{") // records of the audit log are lines
		var value any
		if err := json.Unmarshal([]byte(first), &value); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, text)
		}
		names := map[string]bool{}
		collect(value, "", names)
		words := slices.DeleteFunc(slices.Clone(args), func(s string) bool { return strings.ContainsAny(s, "/#") || len(s) >= 32 })
		fmt.Fprintf(&b, "$ countersign %s\n%s\n\n", strings.Join(words, " "), strings.Join(slices.Sorted(maps.Keys(names)), "\n"))
		object, _ := value.(map[string]any)
		return object
	}

	show("init", "--dir", filepath.Join(work, "other"), "--trust-domain", "shop.internal")
	show("status")
	show("doctor", "--dir", filepath.Join(work, "other"))
	show("backup", filepath.Join(work, "backup"))
	show("restore", filepath.Join(work, "backup"), "--dir", filepath.Join(work, "restored"))
	for _, command := range []string{"check", "stats", "compact"} {
		show("db", command, "--dir", filepath.Join(work, "restored"))
	}
	show("policy", "apply", policy)
	show("policy", "show")
	show("policy", "history")
	show("policy", "explain", "--from", "gateway", "--to", "orders")
	show("policy", "reach", "--user-scope", "orders:read")
	show("policy", "simulate", policy)
	show("policy", "suggest")
	show("policy", "export", "--format", "mermaid")
	cases := filepath.Join(work, "cases")
	write(cases, "cases: [{from: orders, to: gateway, machine: true, expect: deny}]")
	show("policy", "test", cases)
	show("service", "list")
	join := show("join-token", "create", "gateway")["join"].(string)
	serial := show("join", join, "--out", gateway)["serial"].(string)
	write(filepath.Join(work, "join"), show("join-token", "create", "reports")["join"].(string))
	kept := filepath.Join(work, "kept")
	show("agent", "once", "--out", kept, "--join-file", filepath.Join(work, "join"), "--exec", "/bin/true")
	show("agent", "status", "--out", kept, "--socket", filepath.Join(work, "none"))
	write(filepath.Join(work, "agent.yaml"), "identities: [{dir: x}]")
	show("agent", "config", "check", "--config", filepath.Join(work, "agent.yaml"))
	show("cert", "list")
	show("cert", "show", serial)
	show("cert", "inspect", filepath.Join(gateway, "tls.crt"))
	show("cert", "renew", "--out", gateway)
	show("cert", "revoke", serial, "--reason", "superseded")
	show("cert", "revoke", "--service", "reports", "--reason", "superseded")
	write(relayFile, show("token", "exchange", "--identity", gateway, "--subject-token", userFile, "--audience", "orders")["access_token"].(string))
	show("token", "inspect", relayFile)
	show("token", "verify", relayFile, "--audience", "orders")
	show("token", "introspect", relayFile)
	show("token", "revoke", "--subject", "alice", "--reason", "left")
	show("token", "revocations")
	show("service", "disable", "reports", "--reason", "moved")
	show("freeze", "all", "--reason", "drill")
	show("thaw", "all")
	show("ca", "root")
	show("ca", "bundle")
	show("ca", "status")
	show("key", "list")
	show("key", "rotate", "token", "--dry-run")
	show("kek", "rotate")
	show("clock", "status")
	show("audit", "search", "--type", "token.issued", "--limit", "1")
	show("audit", "verify")
	show("operator", "add", "ana", "--role", "viewer", "--out", filepath.Join(work, "ana"))
	show("config", "check")
	show("config", "show")
	golden(t, "testdata/json.golden", b.Bytes())
}

// collect lists the paths of all names in value; the items of a list share one.
func collect(value any, path string, names map[string]bool) {
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			collect(member, path+"."+name, names)
		}
	case []any:
		for _, item := range v {
			collect(item, path+"[]", names)
		}
	default:
		names[strings.TrimPrefix(path, ".")] = true
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; if it is meant, run with -update and read the diff\n%s", path, got)
	}
}
