package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
)

// rightUse is for each command one way to use it that reaches the daemon, or "local" if it never asks one. FILE stands
// for a policy, TOKEN for a file with a token, CERT for one with a certificate, ID for an identity directory, NEW for a
// directory that does not exist, JOIN for a join string.
func rightUse() map[string]string {
	return map[string]string{
		"agent config check":    "local",
		"agent once":            "local",
		"agent run":             "local",
		"agent status":          "local",
		"audit search":          "x",
		"audit tail":            "",
		"audit verify":          "",
		"backup":                "NEW",
		"bench exchange":        "local",
		"bench issue":           "local",
		"bench relay":           "local",
		"bench renew":           "local",
		"ca bundle":             "",
		"ca csr":                "",
		"ca import":             "CERT",
		"ca retire":             "0123456789abcdef0123456789abcdef",
		"ca rollback":           "",
		"ca root":               "",
		"ca rotate":             "intermediate",
		"ca status":             "",
		"cert inspect":          "local CERT",
		"cert list":             "",
		"cert renew":            "identity --out ID",
		"cert revoke":           "00 --reason superseded",
		"cert show":             "00",
		"clock confirm":         "",
		"clock status":          "",
		"completion bash":       "local",
		"completion fish":       "local",
		"completion powershell": "local",
		"completion zsh":        "local",
		"config check":          "local",
		"config show":           "local",
		"conformance":           "local",
		"db check":              "local",
		"db compact":            "local",
		"db stats":              "local",
		"demo":                  "local",
		"demo issuer":           "local",
		"demo service":          "local",
		"dev":                   "local",
		"freeze":                "tokens --reason r",
		"doctor":                "local",
		"help":                  "local",
		"init":                  "local",
		"join":                  "identity JOIN --out NEW",
		"join-token create":     "orders",
		"kek rotate":            "",
		"key list":              "",
		"key retire":            "kid",
		"key rotate":            "token",
		"operator add":          "ana --role viewer --out NEW",
		"policy apply":          "FILE",
		"policy explain":        "--from a --to b",
		"policy export":         "--format mermaid",
		"policy history":        "",
		"policy reach":          "--user-scope s",
		"policy rollback":       "1",
		"policy show":           "",
		"policy simulate":       "--against last:10 FILE",
		"policy suggest":        "",
		"policy test":           "CASES",
		"relay":                 "local",
		"relay config check":    "local",
		"relay config example":  "local",
		"restore":               "local",
		"run":                   "local",
		"serve":                 "local",
		"service disable":       "orders --reason r",
		"service enable":        "orders --reason r",
		"service list":          "",
		"status":                "",
		"thaw":                  "tokens",
		"token client-key":      "local NEW",
		"token exchange":        "identity --identity ID --subject-token TOKEN --audience orders",
		"token inspect":         "local TOKEN",
		"token introspect":      "TOKEN",
		"token request":         "identity --identity ID --audience orders",
		"token revocations":     "",
		"token revoke":          "--jti x",
		"token verify":          "TOKEN --audience orders",
	}
}

// words are the arguments of a command's right use, with the names of files put in.
func (f *files) words(use string) []string {
	return strings.Fields(strings.NewReplacer("FILE", f.policy, "TOKEN", f.token, "CERT", f.cert, "ID", f.identity, "NEW", filepath.Join(f.dir, "new"), "JOIN", f.join, "CASES", f.cases).Replace(use))
}

// files are sound inputs, of a daemon that nothing listens for any more.
type files struct{ dir, policy, token, cert, identity, join, cases string }

func newFiles(t *testing.T) *files {
	t.Helper()
	i := newInstance(t, plainBinary(t))
	issuer, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	token, err := issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := &files{
		dir: dir, policy: filepath.Join(dir, "policy.yaml"), token: filepath.Join(dir, "token"),
		cert: filepath.Join(i.dir, "root.pem"), identity: filepath.Join(i.dir, "operators", "admin"), cases: filepath.Join(dir, "cases.yaml"),
	}
	mustWrite(t, f.policy, []byte(strings.ReplaceAll(faultPolicy, "IDP", issuer.URL)))
	mustWrite(t, f.token, []byte(token))
	mustWrite(t, f.cases, []byte("cases:\n  - {from: a, to: b, machine: true, expect: deny}\n"))
	i.run(t, "policy", "apply", f.policy)
	var join struct{ Join string }
	i.ask(t, &join, "join-token", "create", "a")
	f.join = join.Join
	i.stop(t, syscall.SIGTERM)
	return f
}

// Every command that asks a daemon says what to do when there is none, when it is another server's socket, and when the
// answer is no answer.
func TestNoDaemon(t *testing.T) {
	f := newFiles(t)
	none := t.TempDir()
	foreign := map[string]string{
		"a web server": foreignDaemon(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<p>not here</p>", http.StatusNotFound) }),
		"another API": foreignDaemon(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`["hello"]`))
		}),
		"half an answer": foreignDaemon(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"a":`))
		}),
		"none": foreignDaemon(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	}
	everyLeaf(t, func(command []string, kind, use string) {
		switch kind {
		case "local":
		case "identity":
			args := slices.Concat(command, f.words(use))
			got := refused(t, exitRemote, args...)
			if !strings.Contains(got.What, "can't be reached") {
				t.Errorf("%q: %+v", args, got)
			}
		default:
			args := slices.Concat(command, f.words(use))
			if got := refused(t, exitRemote, slices.Concat([]string{"--dir", none}, args)...); !strings.Contains(got.Next, "countersign serve --dir") {
				t.Errorf("%q: %+v", args, got)
			}
			if command[0] != "token" { // verify asks no operator's API with an identity
				refused(t, exitRemote, slices.Concat([]string{"--server", "https://127.0.0.1:1", "--identity", f.identity}, args)...)
			}
			for name, dir := range foreign {
				got := runHere(t, slices.Concat([]string{"--dir", dir}, args)...)
				if got.whole(t, exitRemote); got.stdout != "" {
					t.Errorf("%q: %s: it printed %s", args, name, got.stdout)
				}
			}
		}
	})
}

// everyLeaf calls do with each command that does something, and its right use.
func everyLeaf(t *testing.T, do func(command []string, kind, use string)) {
	t.Helper()
	uses := rightUse()
	everyCommand(func(c *cobra.Command, words []string) {
		name := strings.Join(words, " ")
		use, ok := uses[name]
		delete(uses, name)
		switch {
		case !ok && (c.HasSubCommands() || c.Hidden):
		case !ok:
			t.Errorf("there is a new command %q: say how it is used in rightUse", name)
		default:
			kind, rest, _ := strings.Cut(use, " ")
			if kind != "local" && kind != "identity" {
				kind, rest = "socket", use
			}
			do(words, kind, rest)
		}
	})
	for name := range uses {
		t.Errorf("there is no command %q", name)
	}
}

// foreignDaemon is a directory whose admin socket somebody else serves.
func foreignDaemon(t *testing.T, handler http.HandlerFunc) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs-") // a short path
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
		_ = os.RemoveAll(dir)
	})
	return dir
}

// Files, directories and values on this side: each wrong one, wherever a command takes it.
func TestLocalErrors(t *testing.T) {
	f := newFiles(t)
	none, other := filepath.Join(f.dir, "none"), t.TempDir()
	empty, large, junk, locked := filepath.Join(f.dir, "empty"), filepath.Join(f.dir, "large"), filepath.Join(f.dir, "junk"), filepath.Join(f.dir, "locked")
	mustWrite(t, empty, nil)
	mustWrite(t, large, make([]byte, 2<<20))
	mustWrite(t, junk, []byte("\x00\x01 neither PEM nor JWT nor YAML: ["))
	mustWrite(t, filepath.Join(other, "x"), []byte("x"))
	mustWrite(t, locked, []byte("issuers: [{name: a, ca_file: nowhere.pem}]\n"))
	for _, file := range []string{none, other, empty, large, junk} {
		refused(t, exitLocal, "cert", "inspect", file)
		refused(t, exitLocal, "token", "inspect", file)
		refused(t, exitLocal, "status", "--identity", file, "--server", "https://localhost:1")
		refused(t, exitLocal, "status", "--identity", f.identity, "--root", file)
		refused(t, exitLocal, "token", "verify", f.token, "--audience", "a", "--root", file)
		refused(t, exitLocal, "token", "request", "--identity", file)
		refused(t, exitLocal, "cert", "renew", "--out", file)
		refused(t, exitLocal, "serve", "--dir", file)
		refused(t, exitLocal, "config", "check", "--dir", file)
	}
	for _, file := range []string{none, other, empty, large} {
		refused(t, exitLocal, "token", "verify", file, "--audience", "a")
		refused(t, exitLocal, "token", "exchange", "--identity", f.identity, "--subject-token", file)
		refused(t, exitLocal, "policy", "explain", "--from", "a", "--to", "b", "--token", file, "--dir", f.dir)
		refused(t, exitLocal, "cert", "renew", "--out", f.identity, "--p12-password-file", file)
		refused(t, exitLocal, "join", f.join, "--out", none, "--p12-password-file", file)
	}
	for _, file := range []string{none, other, large} {
		refused(t, exitLocal, "policy", "apply", file, "--dir", f.dir)
	}
	refused(t, exitLocal, "policy", "apply", locked)
	for _, args := range []string{
		"join", "join x", "join JOIN", "join JOIN --out " + other, "join JOIN --out /proc/x", "join JOIN --out NEW --ttl 5", "join JOIN --out NEW --key DSA",
		"join JOIN --attest TOKEN --out NEW", "join --attest TOKEN --out NEW", "join --attest TOKEN --out NEW --server https://localhost:1",
		"join --attest TOKEN --server https://localhost:1 --root CERT", "join --attest CERT --server https://localhost:1 --root CERT --out NEW",
		"join --attest TOKEN --server https://localhost:1 --root TOKEN --out NEW", "join --attest TOKEN --server http://localhost:1 --root CERT --out NEW",
		"join --attest TOKEN --server https://localhost:1 --root " + f.identity + "/tls.crt --out NEW",
		"cert renew", "cert renew --out ID --ttl x", "cert renew --out ID --key RSA-1024", "cert revoke 00", "cert list --limit 0",
		"service disable a", "service enable a", "join-token create a --ttl 10", "operator add ana", "operator add ana --role king",
		"operator add ana --role viewer --out " + other, "audit tail -n 0", "audit search --limit 1001", "audit search --since yesterday",
		"audit search --until 2026", "clock confirm --time now", "policy rollback x", "policy rollback 0", "policy explain", "policy explain --from a",
		"token exchange --audience a", "token exchange --subject-token TOKEN", "token request", "token verify TOKEN", "token verify TOKEN --audience a --root CERT",
		"token verify TOKEN --audience a --root CERT --issuer http://x", "init", "init --trust-domain A_B --dir NEW", "init --trust-domain a.b --listen x --dir NEW",
		"init --trust-domain a.b --issuer http://x --dir NEW", "init --trust-domain a.b --dir /proc/x", "status --server https://localhost:1",
		"status --server http://localhost:1 --identity ID", "status --server x --identity ID", "status --server https://localhost:1/path --identity ID",
	} {
		words := f.words(args)
		if words[0] == "operator" {
			words = append(words, "--dir", foreignDaemon(t, http.NotFound)) // its own directory is looked at first
		}
		refused(t, exitLocal, words...)
	}
	refused(t, exitLocal, "init", "--trust-domain", "a.b", "--dir", filepath.Dir(filepath.Dir(f.identity)))
	deep := filepath.Join(f.dir, strings.Repeat("d", 120))
	t.Setenv("XDG_RUNTIME_DIR", deep)
	if got := refused(t, exitLocal, "status", "--dir", deep); !strings.Contains(got.Next, "XDG_RUNTIME_DIR") {
		t.Errorf("%+v", got)
	}
}

// Standard input that can't be read or holds nothing.
func TestStandardInputErrors(t *testing.T) {
	for _, args := range [][]string{
		{"token", "inspect", "-"}, {"policy", "apply", "-"}, {"join", "-", "--out", t.TempDir()}, {"token", "verify", "-", "--audience", "a"},
	} {
		if got := runWith(t, iotest.ErrReader(errors.New("broken pipe")), args...); !strings.Contains(got.stderr, "can't read standard input") {
			t.Errorf("%q: %s", args, got.stderr)
		} else {
			got.whole(t, exitLocal)
		}
		if args[0] != "policy" {
			runWith(t, strings.NewReader("\n"), args...).whole(t, exitLocal)
		}
		runWith(t, strings.NewReader(strings.Repeat("x", 2<<20)), args...).whole(t, exitLocal)
	}
}

// What a daemon refuses: each command that can be refused, with its exit code and the daemon's code.
func TestRefusals(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	w := newWorker(t, i)
	f := newFiles(t)
	broken := filepath.Join(f.dir, "broken.yaml")
	mustWrite(t, broken, []byte("trust_domain: other.internal\nservicse: []\n"))
	user, err := w.idp.token()
	if err != nil {
		t.Fatal(err)
	}
	userFile, foreign := filepath.Join(f.dir, "user"), filepath.Join(f.dir, "foreign")
	mustWrite(t, userFile, []byte(user))
	unknown, err := w.idp.token("iss=https://localhost:1")
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, foreign, []byte(unknown))
	service, viewer := i.join(t, "b"), filepath.Join(f.dir, "viewer")
	i.run(t, "operator", "add", "vi", "--role", "viewer", "--out", viewer)
	for _, c := range []struct {
		exit int
		code countersign.Code
		args string
	}{
		{exitNotFound, countersign.CodeNoCertificate, "cert show 00ff"},
		{exitNotFound, countersign.CodeNoCertificate, "cert revoke 00ff --reason superseded"},
		{exitRemote, countersign.CodeReason, "cert revoke " + w.id.Serial + " --reason whim"},
		{exitRemote, countersign.CodeParameter, "cert list --state odd"},
		{exitDenied, countersign.CodeNotInPolicy, "join-token create nobody"},
		{exitRemote, countersign.CodeTTL, "join-token create a --ttl 48h"},
		{exitNotFound, countersign.CodeNoService, "service disable nobody --reason r"},
		{exitCondition, countersign.CodeServiceState, "service enable a --reason r"},
		{exitNotFound, countersign.CodePolicyVersion, "policy show --version 99"},
		{exitNotFound, countersign.CodePolicyVersion, "policy rollback 99"},
		{exitRemote, countersign.CodePolicyFaults, "policy apply " + broken},
		{exitCondition, countersign.CodePolicyConflict, "policy apply " + f.policy + " --if-version 77"},
		{exitDenied, "", "policy explain --from a --to c"},
		{exitRemote, countersign.CodePurpose, "key rotate audit"},
		{exitNotFound, countersign.CodeNoKey, "key retire nokid"},
		{exitRemote, countersign.CodeParameter, "audit search --outcome odd"},
		{exitNotFound, "", "audit search --type no.such"},
		{exitRemote, countersign.CodeParameter, "operator add Bad_Name --role viewer --out " + filepath.Join(f.dir, "bad")},
		{exitDenied, countersign.CodeNoCall, "token request --identity " + service + " --audience a"},
		{exitRemote, countersign.CodeSubjectIssuer, "token exchange --identity " + service + " --subject-token " + userFile + " --audience c"},
		{exitDenied, "", "token verify " + userFile + " --audience b"},
		{exitDenied, countersign.CodeRole, "service disable a --reason r --identity " + viewer},
		{exitDenied, countersign.CodeWrongCredential, "status --identity " + service},
		{exitDenied, countersign.CodeJoinToken, "join " + joinWith(t, i, "0000000000") + " --out " + filepath.Join(f.dir, "never")},
		{exitDenied, "", "join " + strings.Replace(f.join, hostOf(f.join), i.public, 1) + " --out " + filepath.Join(f.dir, "never")},
		{exitDenied, countersign.CodeAssertion, "join --attest " + userFile + " --server https://localhost:" + i.port() + " --root " + filepath.Join(i.dir, "root.pem") + " --out " + filepath.Join(f.dir, "never")},
		{exitRemote, "", "join --attest " + userFile + " --server https://localhost:" + i.port() + " --root " + f.cert + " --out " + filepath.Join(f.dir, "never")},
		{exitRemote, "", "status --identity " + f.identity + " --server https://localhost:" + i.port()},
		{exitRemote, "", "token verify " + foreign + " --audience b --issuer https://localhost:1 --root " + f.cert},
		{exitLocal, "", "init --trust-domain a.b"},
	} {
		words := append(strings.Fields(c.args), "--dir", i.dir)
		if got := refused(t, c.exit, words...); got.Code != c.code || c.code != "" && got.RequestID == "" {
			t.Errorf("%s: %+v", c.args, got)
		}
	}
}

// joinWith is a join string of this daemon with another token.
func joinWith(t *testing.T, i *instance, token string) string {
	t.Helper()
	var made struct{ Join, Token string }
	i.ask(t, &made, "join-token", "create", "a")
	return strings.Replace(made.Join, made.Token, token, 1)
}

func hostOf(join string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(join, "https://"), "#")
	return host
}
