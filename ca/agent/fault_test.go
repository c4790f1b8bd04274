package agent

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/sts/jwt"
)

// kill -9 of the agent at every kind of system call that changes the directory, and at random times: the directory always holds
// a whole identity, and the next agent renews and tells the program.
func TestKilledAtAnyWrite(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := a.enrolled()
	told := filepath.Join(t.TempDir(), "told")
	once := []string{"agent", "once", "--out", dir, "--exec", `sh -c 'echo "$COUNTERSIGN_SERIAL" >> "$0"' ` + told}
	check := func(at string) {
		t.Helper()
		id, err := identity.Load(dir)
		if err != nil {
			t.Fatalf("killed at %s: %v", at, err)
		}
		if id.ID.String() != "spiffe://shop.internal/orders" {
			t.Errorf("killed at %s: it is the identity of %s", at, id.ID)
		}
	}
	killed := 0
	for _, call := range []string{"mkdirat:1", "fchmodat:1", "fchmod:1", "fsync:1", "fsync:3", "fsync:6", "fsync:9", "symlinkat:1", "symlinkat:7", "symlinkat:8", "renameat:1", "renameat:2", "unlinkat:1", "unlinkat:2", "execve:2"} {
		name, n, _ := strings.Cut(call, ":")
		due(t, dir)
		words := append([]string{"-f", "-qq", "-o", os.DevNull, "-e", "trace=" + name, "-e", "inject=" + name + ":signal=SIGKILL:when=" + n, a.bin}, once...)
		out, err := exec.Command("strace", words...).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == -1 {
			killed++
		} else if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, out)
		}
		check(call)
	}
	if killed < 5 {
		t.Errorf("only %d of the agents were killed: is this test blind?", killed)
	}
	for range 20 {
		due(t, dir)
		p := a.background(once...)
		time.Sleep(mathrand.N(60 * time.Millisecond))
		_ = p.cmd.Process.Kill()
		p.ends()
		check("a random time")
	}
	t.Logf("%d agents were killed at a system call", killed)
	strays := func() (all []string) {
		for _, name := range []string{SpringFile, recordFile} {
			found, err := filepath.Glob(filepath.Join(dir, "."+name+".*"))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		return all
	}
	// One at least, and none of them young: another agent could be writing those.
	aged := time.Now().Add(-2 * time.Minute)
	for _, name := range append(strays(), filepath.Join(dir, "."+recordFile+".1")) {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, aged, aged); err != nil {
			t.Fatal(err)
		}
	}
	due(t, dir)
	before := loaded(t, dir).Serial
	a.run(once...)
	id := loaded(t, dir)
	lines := strings.Fields(readText(told))
	if id.Serial == before || lines[len(lines)-1] != id.Serial {
		t.Errorf("the last agent left %s after %s, and told %q", id.Serial, before, lines)
	}
	if left := versions(t, dir); len(left) > 2 {
		t.Errorf("what killed agents began is not swept: %q", left)
	}
	if left := strays(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A full disk: the agent goes on with the new certificate in memory and says so, readers of the directory have the old one whole,
// and when there is space the new one is written and the program told, by itself.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	disk := smallDisk(t, "256k")
	dir := filepath.Join(disk, "orders")
	told := filepath.Join(t.TempDir(), "told")
	a.run("agent", "once", "--out", dir, "--join-file", a.joinFile("orders"))
	old := loaded(t, dir).Serial
	h := runHere(t, nil, Identity{Dir: dir, Reload: Reload{Exec: []string{"sh", "-c", `echo "$COUNTERSIGN_SERIAL" >> "$0"`, told}}})
	fill(t, disk)
	// Nobody comes with a certificate that is not on the disk: the old one is used on, and is not taken for a copied key later.
	if err := h.list()[0].src.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("the renewal says %v", err)
	}
	s := h.until(t, "the alarm", func(s IdentityStatus) bool { return !s.Healthy })
	if s.Serial != old || !s.Unwritten || !strings.Contains(s.Why, "no space left on device") {
		t.Errorf("%+v", s)
	}
	if got := loaded(t, dir).Serial; got != old {
		t.Errorf("the directory holds %s, not the old %s", got, old)
	}
	if got := readText(told); strings.Count(got, "\n") > 1 {
		t.Errorf("the program was told of files that are not there: %q", got)
	}
	gauge(t, h.Agent, `renew_failures_total{identity="orders",reason="write"} 1`)
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	id := h.renew(t) // the source looks at the disk at each attempt, and every 30 s
	s = h.until(t, "the recovery", func(s IdentityStatus) bool { return s.Healthy && s.Reload.Serial == id.Serial })
	if got := loaded(t, dir).Serial; got != id.Serial || !strings.HasSuffix(readText(told), id.Serial+"\n") {
		t.Errorf("the directory holds %s, the program was told %q, want %s", got, readText(told), id.Serial)
	}
}

// smallDisk is a tmpfs in a mount namespace of its own, seen through /proc.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	inside := t.TempDir()
	words := []string{"unshare", "-m"}
	if os.Getuid() != 0 {
		words = []string{"unshare", "--user", "--map-root-user", "-m"}
	}
	cmd := exec.Command(words[0], append(words[1:], "--", "sh", "-c", `mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2" && echo mounted && exec cat`, "sh", size, inside)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "mounted\n" {
		t.Fatal("this test mounts a tmpfs in a mount namespace of its own: it needs root or unprivileged user namespaces")
	}
	return filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "root", inside)
}

func fill(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// A key that can't be read is never replaced, also where a join string is at hand: the agent says so, lives, and goes on when the
// key is back.
func TestUnreadableKey(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := a.enrolled()
	key := filepath.Join(dir, identity.KeyFile)
	good := readText(key)
	mustWrite(t, key, "torn")
	join := a.joinFile("orders")
	code, _, stderr := a.try("agent", "once", "--out", dir, "--join-file", join)
	if code == 0 || !strings.Contains(stderr, "the key there is not replaced") || !strings.Contains(stderr, "next:") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	h := runHere(t, nil, Identity{Dir: dir, JoinFile: join})
	s := h.until(t, "the failure", func(s IdentityStatus) bool { return s.LastError != "" })
	if s.State != StateNone || s.Healthy || !strings.Contains(s.Why, "the key there is not replaced") || readText(key) != "torn" {
		t.Errorf("%+v", s)
	}
	if code, stdout, _ := a.try("agent", "status", "--out", dir, "--socket", filepath.Join(t.TempDir(), "none")); code != 4 || !strings.Contains(stdout, "none") {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	mustWrite(t, key, good)
	_ = h.list()[0].src.Renew(t.Context()) // wakes it: it looks every 30 s by itself
	h.until(t, "the recovery", func(s IdentityStatus) bool { return s.Healthy })
}

// A clock that is five minutes behind is named, with its size and its side, where people look.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	behind := func() time.Time { return time.Now().Add(-5 * time.Minute) }
	dir := filepath.Join(t.TempDir(), "orders")
	h := runHere(t, behind, Identity{Dir: dir, JoinFile: a.joinFile("orders")})
	eventually(t, h.log.String, "the clock of this machine is 5m0s behind the authority's: set it right")
	if s := h.first(); s.Skew > -299 || s.Skew < -301 {
		t.Errorf("%+v", s)
	}
	gauge(t, h.Agent, `skew_seconds{identity="orders"} -300`)
}

// The authority is gone for longer than a certificate lives, and an agent is stopped for as long: both are healthy within 60 s of
// its return, and nobody lends a hand: the platform gives their workloads tokens, as it does. (Outages of other lengths, and a fleet: ca/mtls, with a clock of its own.)
func TestOutageLongerThanLifetime(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	attest := a.attested(t)
	began := time.Now()
	awake, asleep := filepath.Join(t.TempDir(), "orders"), filepath.Join(t.TempDir(), "orders")
	run := func(dir, socket string) *process {
		return a.background(append([]string{"agent", "run", "--out", dir, "--ttl", "1m", "--socket", socket}, attest()...)...)
	}
	sockets := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	first, second := run(awake, sockets[0]), run(asleep, sockets[1])
	state := func(socket string) State {
		s, err := AskStatus(t.Context(), socket)
		if err != nil {
			return State(err.Error())
		}
		return s.Identities[0].State
	}
	for _, s := range sockets {
		eventually(t, func() string { return string(state(s)) }, "ok")
	}
	a.stop()
	if err := second.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(began.Add(56 * time.Second)))
	if got := state(sockets[0]); got != StateExpired {
		t.Errorf("after an outage longer than its lifetime the certificate is %s", got)
	}
	if code, stdout, _ := a.try("agent", "status", "--socket", sockets[0], "-o", "json"); code != 4 || !strings.Contains(stdout, `"state": "expired"`) {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	a.start()
	back := time.Now()
	if err := second.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, s := range sockets {
		for state(s) != StateOK {
			if time.Since(back) > time.Minute {
				t.Fatalf("%s is %s a minute after the authority came back\n%s%s", s, state(s), first.log.String(), second.log.String())
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("healthy %s after the return", time.Since(back).Round(100*time.Millisecond))
	}
	for _, dir := range []string{awake, asleep} {
		if id := loaded(t, dir); !time.Now().Before(id.NotAfter) {
			t.Errorf("%s holds an expired certificate", dir)
		}
	}
	first.stop()
	second.stop()
}

// attested makes the authority believe a provider of workload tokens, and gives flags for one agent each, whose token file is
// written anew every second, as a kubelet does it in hours.
func (a *authority) attested(t *testing.T) (flags func() []string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	cluster := httptest.NewServer(mux)
	t.Cleanup(cluster.Close)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": cluster.URL, "jwks_uri": cluster.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys.JSON()) })
	_, port, _ := net.SplitHostPort(a.public)
	server := "https://localhost:" + port
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	mustWrite(t, policy, "trust_domain: shop.internal\nissuers: [{name: cluster, use: workloads, issuer: \""+cluster.URL+"\"}]\n"+
		"services: [{name: orders, dns: [orders.shop.internal], enrol: [{issuer: cluster, subject: pod}]}]\ncalls: []\n")
	a.run("policy", "apply", policy)
	token := func() string {
		now := time.Now()
		signed, err := jwt.Sign(key, "ES256", "k1", "JWT", map[string]any{
			"iss": cluster.URL, "sub": "pod", "aud": server, "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		})
		if err != nil {
			t.Error(err)
		}
		return signed
	}
	var group sync.WaitGroup
	done := make(chan struct{})
	t.Cleanup(func() { close(done); group.Wait() })
	return func() []string {
		file := filepath.Join(t.TempDir(), "token")
		mustWrite(t, file, token())
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Second):
					if err := replaceFile(file, []byte(token()), 0o600); err != nil {
						t.Error(err)
					}
				}
			}
		})
		return []string{"--attest", file, "--id", "spiffe://shop.internal/orders", "--server", server, "--root", filepath.Join(a.dir, "root.pem")}
	}
}
