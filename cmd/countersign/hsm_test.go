package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// hsmBinary builds what `make build-hsm` does: with cgo and PKCS#11, without -race, which the compiler has in its cache from then on.
func hsmBinary(t *testing.T) string {
	t.Helper()
	path, err := buildHSM()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildHSM = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "countersign-hsm-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "countersign-hsm")
	cmd := exec.Command("go", "build", "-tags", "hsm", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// softToken is a token of SoftHSM2, whose files are in dir/tokens.
type softToken struct{ dir, uri string }

const (
	softModule = "/usr/lib/softhsm/libsofthsm2.so"
	softPIN    = "pin-49152663" // found nowhere by accident
)

// newSoftToken makes the token, and has SoftHSM2 use it from now on in this test.
func newSoftToken(t *testing.T) softToken {
	t.Helper()
	token := softToken{dir: t.TempDir()}
	mustWrite(t, filepath.Join(token.dir, "softhsm2.conf"), []byte("directories.tokendir = "+token.dir+"/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"))
	mustWrite(t, filepath.Join(token.dir, "pin"), []byte(softPIN+"\n"))
	if err := os.Mkdir(filepath.Join(token.dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	token.use(t)
	tool(t, token.dir, "softhsm2-util", "--init-token", "--free", "--label", "countersign", "--pin", softPIN, "--so-pin", "so-"+softPIN)
	token.uri = "pkcs11:module-path=" + softModule + ";token=countersign?pin-source=" + token.dir + "/pin"
	return token
}

func (s softToken) use(t *testing.T) {
	t.Helper()
	t.Setenv("SOFTHSM2_CONF", filepath.Join(s.dir, "softhsm2.conf"))
}

// keys counts the key pairs in the token: SoftHSM2 keeps each half in a file.
func (s softToken) keys(t *testing.T) int {
	t.Helper()
	objects, err := filepath.Glob(filepath.Join(s.dir, "tokens", "*", "*.object"))
	if err != nil {
		t.Fatal(err)
	}
	return (len(objects) - 1) / 2 // and one file is the token itself
}

// away takes the token's files away, as if it was unplugged, until the function is called.
func (s softToken) away(t *testing.T) (back func()) {
	t.Helper()
	move := func(from, to string) {
		if err := os.Rename(filepath.Join(s.dir, from), filepath.Join(s.dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	move("tokens", "gone")
	return func() { move("gone", "tokens") }
}

const hsmPolicy = `trust_domain: shop.internal
services: [{name: reports}, {name: orders}, {name: legacy, token: {alg: RS256}}]
calls:
  - {from: reports, to: orders, scopes: [x], machine: [x]}
  - {from: reports, to: legacy, scopes: [x], machine: [x]}
`

// hsmInstance is a daemon of the build with PKCS#11 whose root, intermediate and token keys are in the token.
func hsmInstance(t *testing.T, token softToken) *instance {
	t.Helper()
	i := &instance{bin: hsmBinary(t), dir: filepath.Join(t.TempDir(), "ca")}
	for _, address := range []*string{&i.public, &i.ops} {
		free, err := freeLoopback()
		if err != nil {
			t.Fatal(err)
		}
		*address = free
	}
	i.run(t, "init", "--trust-domain", "shop.internal", "--listen", i.public, "--ops-listen", i.ops, "--kms", token.uri)
	i.start(t)
	t.Cleanup(func() { i.stop(t, syscall.SIGTERM) })
	i.apply(t, hsmPolicy)
	return i
}

// machineToken asks for a token and verifies it as its audience would.
func (i *instance) machineToken(t *testing.T, identity, audience string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	mustWrite(t, file, []byte(i.run(t, "token", "request", "--identity", identity, "--audience", audience)))
	i.run(t, "token", "verify", file, "--audience", audience)
	return file
}

// fails runs a command that must fail, and gives what it says.
func (i *instance) fails(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(i.bin, args...)
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+i.dir)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("countersign %s did not fail:\n%s", strings.Join(args, " "), out)
	}
	return string(out)
}

func (i *instance) readiness(t *testing.T, path string) (int, string) {
	t.Helper()
	response, err := http.Get("http://" + i.ops + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// Root, intermediate and token keys live in a token: they sign certificates and tokens of both algorithms, are rotated, survive
// a restart, and are destroyed when they are dropped. The PIN is nowhere but in its file.
func TestHSM(t *testing.T) {
	token := newSoftToken(t)
	i := hsmInstance(t, token)
	var keys wire.Keys
	i.ask(t, &keys, "key", "list")
	for _, k := range keys.Keys {
		if outside := k.KMS != ""; outside != (k.Purpose == "ca" || k.Purpose == "token") {
			t.Errorf("the %s key of purpose %s is at %q", k.Alg, k.Purpose, k.KMS)
		}
	}
	if n := token.keys(t); n != 4 {
		t.Errorf("init made %d keys in the token, want root, intermediate and two token keys", n)
	}
	reports := i.join(t, "reports")
	first := i.machineToken(t, reports, "orders")
	i.machineToken(t, reports, "legacy") // RS256

	i.run(t, "key", "rotate", "token", "--now")
	i.run(t, "ca", "rotate", "intermediate")
	i.run(t, "cert", "renew", "--out", reports)
	i.run(t, "kek", "rotate")
	i.machineToken(t, reports, "orders")
	if n := token.keys(t); n != 7 {
		t.Errorf("%d keys are in the token after both rotations, want 7", n)
	}
	i.stop(t, syscall.SIGTERM)
	i.start(t)
	i.machineToken(t, reports, "legacy")
	i.run(t, "token", "verify", first, "--audience", "orders")

	// A new root and its intermediate that are taken back again take their keys with them.
	i.run(t, "ca", "rotate", "root")
	if n := token.keys(t); n != 9 {
		t.Errorf("%d keys are in the token while a new root waits, want 9", n)
	}
	i.run(t, "ca", "rollback")
	if n := token.keys(t); n != 7 {
		t.Errorf("%d keys are in the token after the rollback, want 7", n)
	}
	i.run(t, "doctor")
	i.run(t, "audit", "verify")
	i.stop(t, syscall.SIGTERM)
	if strings.Contains(i.logText(), softPIN) {
		t.Error("the PIN is in the log")
	}
	if err := filepath.WalkDir(i.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if body, err := os.ReadFile(path); err != nil || bytes.Contains(body, []byte(softPIN)) {
			t.Errorf("the PIN is in %s (%v)", path, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// While the token is away nothing is signed with its keys, and everything says so; when it is back the daemon goes on by itself.
func TestHSMAway(t *testing.T) {
	token := newSoftToken(t)
	i := hsmInstance(t, token)
	reports := i.join(t, "reports")
	var join struct{ Join string }
	i.ask(t, &join, "join-token", "create", "orders")

	back := token.away(t)
	if said := i.fails(t, "token", "request", "--identity", reports, "--audience", "orders"); !strings.Contains(said, "CS5031") || strings.Contains(said, "pkcs11:") {
		t.Errorf("a token is asked for: %s", said)
	}
	orders := filepath.Join(t.TempDir(), "orders")
	for name, args := range map[string][]string{
		"join": {"join", join.Join, "--out", orders}, "renew": {"cert", "renew", "--out", reports},
		"rotate token": {"key", "rotate", "token", "--now"}, "rotate intermediate": {"ca", "rotate", "intermediate"},
	} {
		if said := i.fails(t, args...); !strings.Contains(said, "CS5031") {
			t.Errorf("%s: %s", name, said)
		}
	}
	if code, body := i.readiness(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "the token pkcs11:token=countersign is lost") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if _, body := i.readiness(t, "/metrics"); !strings.Contains(body, `countersign_kms_up{token="pkcs11:token=countersign"} 0`) {
		t.Error("the metrics do not tell")
	}
	if said := i.fails(t, "doctor"); !strings.Contains(said, "it is lost: its 4 keys sign nothing") {
		t.Errorf("doctor: %s", said)
	}
	i.run(t, "audit", "verify") // checkpoints are signed by a key in the store: the loss itself is on record
	waitFor(t, func() bool { return i.recorded("kms.lost", "CS5031") })
	// A start without the token is refused, and so that systemd tries again.
	i.stop(t, syscall.SIGTERM)
	if code, said := i.startFails(t); code != exitRemote || !strings.Contains(said, "CS5031") {
		t.Errorf("a start without the token: %d %s", code, said)
	}
	back()
	i.start(t)

	back = token.away(t)
	i.fails(t, "token", "request", "--identity", reports, "--audience", "orders")
	back()
	if err := i.cmd.Process.Signal(syscall.SIGHUP); err != nil { // it need not wait for its turn
		t.Fatal(err)
	}
	waitFor(t, func() bool { code, _ := i.readiness(t, "/readyz"); return code == http.StatusOK })
	i.machineToken(t, reports, "orders")
	i.run(t, "join", join.Join, "--out", orders) // it was not used up
	if n := token.keys(t); n != 4 {
		t.Errorf("%d keys are in the token: what failed left some", n)
	}
	waitFor(t, func() bool { return i.recorded("kms.back", "ok") })
}

// recorded tells whether the audit log has an event with the word.
func (i *instance) recorded(event, word string) bool {
	cmd := exec.Command(i.bin, "audit", "search", "--type", event)
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+i.dir)
	out, err := cmd.CombinedOutput()
	return err == nil && strings.Contains(string(out), word)
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it does not come")
		}
	}
}

// A backup holds no key of the token, and a restored authority starts with that very token only; each refusal is exact, and no
// key is ever made in place of one that can't be had.
func TestHSMRefusals(t *testing.T) {
	token := newSoftToken(t)
	i := hsmInstance(t, token)
	reports := i.join(t, "reports")
	work := t.TempDir()
	i.run(t, "backup", filepath.Join(work, "backup"))
	i.stop(t, syscall.SIGTERM)

	restored := &instance{bin: i.bin, dir: filepath.Join(work, "restored"), public: i.public, ops: i.ops}
	if said := restored.run(t, "restore", filepath.Join(work, "backup"), "--dir", restored.dir); !strings.Contains(said, "4 private keys are in the token pkcs11:token=countersign and in no backup") {
		t.Errorf("restore does not say what it can't restore: %s", said)
	}
	kek, err := os.ReadFile(filepath.Join(i.dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(restored.dir, "kek"), kek)

	refused := func(name string, i *instance, wants ...string) {
		t.Helper()
		code, said := i.startFails(t)
		for _, want := range append(wants, "countersign: ", "why: ", "next: ") {
			if code != exitLocal || !strings.Contains(said, want) {
				t.Errorf("%s: exit code %d, want %q: %s", name, code, want, said)
			}
		}
	}
	other := newSoftToken(t) // of the same name and PIN, without the keys
	refused("another token of that name", restored, "CS5032", "is not there", "never replaced")
	if n := other.keys(t); n != 0 {
		t.Errorf("%d keys were made in place of those that are missing", n)
	}
	token.use(t)
	restored.start(t)
	restored.machineToken(t, reports, "orders")
	restored.stop(t, syscall.SIGTERM)

	static := &instance{bin: plainBinary(t), dir: restored.dir, public: i.public, ops: i.ops}
	refused("the static build, by the configuration", static, "keys.root", "make build-hsm", "CS5030")
	configuration := filepath.Join(restored.dir, "countersign.yaml")
	with, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := strings.Cut(string(with), "keys:\n")
	_, after, found := strings.Cut(after, "\nlisten:")
	if !ok || !found {
		t.Fatalf("the configuration has changed its form: %s", with)
	}
	without := before + "listen:" + after
	mustWrite(t, configuration, []byte(without))
	refused("the static build, by the store", static, "CS5030", "pkcs11:token=countersign", "make build-hsm")
	refused("a token that nothing names", restored, "CS5033", "keys.also")
	mustWrite(t, configuration, []byte(without+"keys: {also: ['"+token.uri+"']}\n"))
	restored.start(t) // keys stay where they are
	restored.machineToken(t, reports, "orders")
	restored.run(t, "key", "rotate", "token", "--now") // new ones are sealed in the store again
	restored.machineToken(t, reports, "orders")
	restored.stop(t, syscall.SIGTERM)
	if n := token.keys(t); n != 4 {
		t.Errorf("%d keys are in the token", n)
	}

	pin := filepath.Join(token.dir, "pin")
	mustWrite(t, pin, []byte("wrong-pin\n"))
	refused("a wrong PIN", restored, "CS5034", "refuses the PIN")
	mustWrite(t, pin, []byte(softPIN))
	if err := os.Chmod(pin, 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a PIN that all may read", restored, "CS5034", "chmod 0400")
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	refused("no PIN", restored, "CS5034", "no such file")
	mustWrite(t, configuration, []byte(without+"keys: {also: ['"+strings.ReplaceAll(token.uri, "pin-source="+pin, "pin-value="+softPIN)+"']}\n"))
	if code, said := restored.startFails(t); code != exitLocal || !strings.Contains(said, "pin-value is refused") || strings.Contains(said, softPIN) {
		t.Errorf("a PIN in the configuration: %d %s", code, said)
	}
	if _, err := os.Stat(filepath.Join(restored.dir, "kek.next")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestHSMDocument types what docs/hsm.md says, in an empty directory.
func TestHSMDocument(t *testing.T) {
	script, transcripts := session(t, blocks(t, "../../docs/hsm.md"))
	for _, port := range []string{"8443", "8444"} {
		address, err := freeLoopback()
		if err != nil {
			t.Fatal(err)
		}
		script = strings.ReplaceAll(script, ":"+port, address[strings.LastIndexByte(address, ':'):])
	}
	bin, work, out := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.Symlink(hsmBinary(t), filepath.Join(bin, "countersign-hsm")); err != nil {
		t.Fatal(err)
	}
	runSession(t, work, script, "OUT="+out, "PATH="+bin+":"+os.Getenv("PATH"))
	compare(t, "docs/hsm.md", out, transcripts)
}
