package agent

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func TestWrapExitCodes(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := a.enrolled()
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		if code, _, stderr := a.try("run", "--out", dir, "--", "sh", "-c", script); code != want || stderr != "" {
			t.Errorf("%s: exit code %d, want %d: %s", script, code, want, stderr)
		}
	}
	locked := filepath.Join(t.TempDir(), "locked")
	mustWrite(t, locked, "#!/bin/sh\n")
	for program, want := range map[string]int{"/none/at/all": 127, "no-such-program": 127, locked: 126} {
		if code, _, stderr := a.try("run", "--out", dir, "--", program); code != want || !strings.Contains(stderr, "next:") {
			t.Errorf("%s: exit code %d, want %d: %s", program, code, want, stderr)
		}
	}
}

// The child finds its files, gets every signal that is sent to the wrapper, is told of a renewal by the signal that was asked for,
// and only then; its end is the wrapper's.
func TestWrapSignals(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := a.enrolled()
	first := loaded(t, dir).Serial
	script := `trap 'echo hup' HUP; trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM
echo "$COUNTERSIGN_ID $COUNTERSIGN_CERT $COUNTERSIGN_IDENTITY $COUNTERSIGN_ROOT $NODE_EXTRA_CA_CERTS $SPRING_CONFIG_ADDITIONAL_LOCATION $1"
test -s "$COUNTERSIGN_KEY" && test -s "$COUNTERSIGN_KEYSTORE" && test -s "$COUNTERSIGN_TRUSTSTORE" && echo complete
while :; do sleep 0.05; done`
	// As after a kill between renewal and delivery: the child reads the files at its start, and needs no signal for them.
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil {
		t.Fatal(err)
	}
	p := a.background("run", "--out", dir, "--signal", "HUP", "--spring-audience", "orders", "--ttl", "1h", "--", "sh", "-c", script, "sh", "argument")
	eventually(t, p.log.String, "complete\n")
	want := "spiffe://shop.internal/orders " + dir + "/tls.crt " + dir + " " + dir + "/ca.crt " + dir + "/ca.crt file:" + dir + "/" + SpringFile + " argument\n"
	if got := p.log.String(); !strings.HasPrefix(got, want) {
		t.Errorf("%s\nwant %s", got, want)
	}
	if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, p.log.String, "usr1\n")
	if strings.Contains(p.log.String(), "hup") {
		t.Error("the child was told of the files that it began with")
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(); code != 9 || !strings.Contains(p.log.String(), "term\n") {
		t.Errorf("exit code %d\n%s", code, p.log.String())
	}
	if got := loaded(t, dir).Serial; got != first {
		t.Errorf("renewed from %s to %s for nothing", first, got)
	}
}

// The child is told of a renewal.
func TestWrapRenews(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := a.enrolled()
	out := filepath.Join(t.TempDir(), "out")
	stdout, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	agent, err := New(t.Context(), Options{Config: Config{Identities: []Identity{{Dir: dir, Reload: Reload{Signal: Signal(syscall.SIGHUP)}}}}})
	if err == nil {
		t.Fatal("a signal to nobody is valid outside of `run`")
	}
	agent, err = New(t.Context(), Options{Wraps: true, Config: Config{Identities: []Identity{{Dir: dir, Reload: Reload{Signal: Signal(syscall.SIGHUP)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- agent.Wrap(t.Context(), "", []string{"sh", "-c", `trap 'echo told; exit 3' HUP; echo ready; while :; do sleep 0.05; done`}, [3]*os.File{nil, stdout, stdout})
	}()
	eventually(t, func() string { return readText(out) }, "ready\n")
	if err := agent.list()[0].src.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = <-ended
	if exit, ok := err.(*ChildExit); !ok || exit.Code != 3 || readText(out) != "ready\ntold\n" {
		t.Errorf("%v %q", err, readText(out))
	}
}

// Without a certificate the child does not start, and the wait can be broken off.
func TestWrapWaits(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir, join := filepath.Join(t.TempDir(), "orders"), filepath.Join(t.TempDir(), "join")
	p := a.background("run", "--out", dir, "--join-file", join, "--", "sh", "-c", "echo started")
	eventually(t, p.log.String, "no such file")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(); code != 130 || strings.Contains(p.log.String(), "started") {
		t.Errorf("exit code %d\n%s", code, p.log.String())
	}
	p = a.background("run", "--out", dir, "--join-file", join, "--", "sh", "-c", "echo started")
	time.Sleep(200 * time.Millisecond)
	mustWrite(t, join, readText(a.joinFile("orders"))) // an operator brings it later
	if code := p.ends(); code != 0 || !strings.Contains(p.log.String(), "started") {
		t.Errorf("exit code %d\n%s", code, p.log.String())
	}
}

// As the first process of a container the wrapper buries orphans.
func TestWrapBuriesOrphans(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := a.enrolled()
	words := []string{"--pid", "--fork", "--mount-proc", "--kill-child"}
	if os.Getuid() != 0 {
		words = append([]string{"--user", "--map-root-user"}, words...)
	}
	script := `sh -c 'sleep 0.3 & sleep 0.3 &'; sleep 3.5; cat /proc/[0-9]*/stat | grep -c ') Z ' | sed 's/^/zombies: /'; exit 5`
	out, err := exec.Command("unshare", append(words, a.bin, "run", "--out", dir, "--", "sh", "-c", script)...).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 5 || !strings.Contains(string(out), "zombies: 0\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Many identities, a second agent, SIGHUP with good and bad files, the status socket, health.
func TestRunConfig(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	work := t.TempDir()
	file, ops := filepath.Join(work, "agent.yaml"), freePort(t)
	head := "socket: " + work + "/run/agent.sock\nops: {listen: \"" + ops + "\"}\nlog: {level: debug, format: json}\nidentities:\n"
	one := "  - {name: one, dir: " + work + "/one, join_file: " + a.joinFile("orders") + "}\n"
	two := "  - {name: two, dir: " + work + "/two, join_file: " + work + "/later}\n"
	mustWrite(t, file, head+one)
	p := a.background("agent", "run", "--config", file)
	ask := func() string { _, stdout, _ := a.try("agent", "status", "--config", file); return stdout }
	eventually(t, ask, "one       ok")
	if info, err := os.Stat(work + "/run/agent.sock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if code, _, stderr := a.try("agent", "run", "--config", file); code != 1 || !strings.Contains(stderr, "another agent runs already") {
		t.Errorf("a second agent: exit code %d\n%s", code, stderr)
	}
	hup := func() {
		t.Helper()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, file, head+one+"  - {name: two, dri: x}\n")
	hup()
	eventually(t, p.log.String, "the old one stays in force")
	eventually(t, func() string { return get(t, "http://"+ops+"/readyz") }, "200 ok")
	mustWrite(t, file, head+one+two)
	hup()
	eventually(t, ask, "two       none")
	eventually(t, func() string { return get(t, "http://"+ops+"/readyz") }, "503 two: there is no certificate")
	eventually(t, func() string { return get(t, "http://"+ops+"/livez") }, "200 ok")
	if code, _, stderr := a.try("agent", "status", "--config", file); code != 4 || !strings.Contains(stderr, "two: there is no certificate") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	if code, stdout, stderr := a.try("agent", "status", "--config", file, "--out", work+"/one"); code != 0 || strings.Contains(stdout, "two") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	mustWrite(t, work+"/later", readText(a.joinFile("bare")))
	eventually(t, ask, "two       ok")
	serial := loaded(t, work+"/one").Serial
	mustWrite(t, file, head+two)
	hup()
	eventually(t, func() string {
		if strings.Contains(ask(), "one ") {
			return "still there"
		}
		return "gone"
	}, "gone")
	if got := loaded(t, work+"/one").Serial; got != serial {
		t.Error("an identity that is no longer kept changed")
	}
	p.stop()
	if code, stdout, stderr := a.try("agent", "status", "--config", file); code != 0 || !strings.Contains(stderr, "this is what the directories say") || !strings.Contains(stdout, "two") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if code, _, stderr := a.try("agent", "status", "--socket", work+"/run/agent.sock"); code != 2 || !strings.Contains(stderr, "no agent answers on") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return response.Status[:4] + string(body)
}

// The agent serves the local API to whom the rules name, and after a reload to whom the new ones name.
func TestAPI(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir, short := a.enrolled(), t.TempDir()
	uid, other := uint32(os.Getuid()), uint32(os.Getuid()+1)
	config := func(who uint32) Config {
		return Config{Identities: []Identity{{Dir: dir}}, API: &API{Socket: filepath.Join(short, "api"), Rules: []Rule{{UID: &who, Identity: "orders"}}}}
	}
	h := startHere(t, nil, config(uid))
	ask := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+filepath.Join(short, "api")))
		if err != nil {
			return err.Error()
		}
		return svid.ID.String()
	}
	eventually(t, ask, "spiffe://shop.internal/orders")
	bad := config(uid)
	bad.API.Rules[0] = Rule{Exe: "/bin/sh", Identity: "orders"}
	if err := h.Reload(bad); err == nil || !strings.Contains(err.Error(), "stands alone") {
		t.Errorf("a rule that package local refuses: %v", err)
	}
	if got := ask(); got != "spiffe://shop.internal/orders" {
		t.Errorf("after a refused reload: %s", got)
	}
	if err := h.Reload(config(other)); err != nil {
		t.Fatal(err)
	}
	eventually(t, ask, "PermissionDenied")
	if _, err := New(t.Context(), Options{Config: bad}); err == nil {
		t.Error("a rule that package local refuses is taken at the start")
	}
}
