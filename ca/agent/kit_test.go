package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/countersign/countersign/ca/identity"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := buildBinary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var buildBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "countersign-agent-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "countersign")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "../../cmd/countersign")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// safeBuffer is a log that is read while it grows.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// authority is a daemon in a process of its own, with the service orders in its policy.
type authority struct {
	t                     *testing.T
	bin, dir, public, ops string
	cmd                   *exec.Cmd
	log                   safeBuffer
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	bin, err := buildBinary()
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, bin: bin, dir: filepath.Join(t.TempDir(), "ca"), public: freePort(t), ops: freePort(t)}
	a.run("init", "--trust-domain", "shop.internal", "--listen", a.public, "--ops-listen", a.ops)
	a.start()
	t.Cleanup(a.stop)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	mustWrite(t, policy, "trust_domain: shop.internal\nservices: [{name: orders, dns: [orders.shop.internal]}, {name: bare}]\ncalls: []\n")
	a.run("policy", "apply", policy)
	return a
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) start() {
	a.t.Helper()
	a.cmd = exec.Command(a.bin, "serve", "--dir", a.dir)
	a.cmd.Stderr = &a.log
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	eventually(a.t, func() string {
		response, err := http.Get("http://" + a.ops + "/readyz")
		if err != nil {
			return err.Error()
		}
		response.Body.Close()
		return response.Status
	}, "200")
}

// stop ends the daemon, if it runs.
func (a *authority) stop() {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	if err := a.cmd.Wait(); err != nil {
		a.t.Errorf("the daemon ended with %v\n%s", err, a.log.String())
	}
	a.cmd = nil
}

// run runs a command that must go well and gives what it printed.
func (a *authority) run(args ...string) string {
	a.t.Helper()
	code, stdout, stderr := a.try(args...)
	if code != 0 {
		a.t.Fatalf("countersign %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

func (a *authority) try(args ...string) (code int, stdout, stderr string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.bin, args...)
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+a.dir)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		a.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// joinFile is a file with a join string for the service.
func (a *authority) joinFile(service string) string {
	a.t.Helper()
	var made struct{ Join string }
	if err := json.Unmarshal([]byte(a.run("join-token", "create", service, "-o", "json")), &made); err != nil {
		a.t.Fatal(err)
	}
	path := filepath.Join(a.t.TempDir(), "join")
	mustWrite(a.t, path, made.Join+"\n")
	return path
}

// enrolled is the identity directory of orders, with its first certificate.
func (a *authority) enrolled(flags ...string) string {
	a.t.Helper()
	dir := filepath.Join(a.t.TempDir(), "orders")
	a.run(append([]string{"agent", "once", "--out", dir, "--join-file", a.joinFile("orders")}, flags...)...)
	return dir
}

// due makes the agent renew at once: it draws its time from the window that identity.json tells, and that one is past.
func due(t *testing.T, dir string) {
	t.Helper()
	id := loaded(t, dir)
	body := map[string]any{}
	path := filepath.Join(dir, identity.InfoFile)
	if err := json.Unmarshal([]byte(readText(path)), &body); err != nil {
		t.Fatal(err)
	}
	body["renew_after"], body["renew_before"] = id.NotBefore.Add(time.Second), id.NotBefore.Add(2*time.Second)
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, path, string(text))
}

func loaded(t *testing.T, dir string) *identity.Identity {
	t.Helper()
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// process is a countersign that runs beside the test.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	log safeBuffer // standard output and error
}

func (a *authority) background(args ...string) *process {
	a.t.Helper()
	p := &process{t: a.t, cmd: exec.Command(a.bin, args...)}
	p.cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+a.dir)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	return p
}

// ends waits for the end of the process and gives its exit code.
func (p *process) ends() int {
	p.t.Helper()
	stuck := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer stuck.Stop()
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if code := p.ends(); code != 0 {
		p.t.Errorf("the agent ended with %d\n%s", code, p.log.String())
	}
}

// here is an agent in this process, which runs until the end of the test.
type here struct {
	*Agent
	log safeBuffer
}

func runHere(t *testing.T, now func() time.Time, ids ...Identity) *here {
	t.Helper()
	return startHere(t, now, Config{Identities: ids})
}

func startHere(t *testing.T, now func() time.Time, cfg Config) *here {
	t.Helper()
	h := &here{}
	var err error
	h.Agent, err = New(t.Context(), Options{Config: cfg, Logger: slog.New(slog.NewTextHandler(&h.log, nil)), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx, "") }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *here) renew(t *testing.T) *identity.Identity {
	t.Helper()
	k := h.list()[0]
	if err := k.src.Renew(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, h.log.String())
	}
	id, err := k.src.Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// first is the status of the only identity.
func (h *here) first() IdentityStatus { return h.Status().Identities[0] }

// until waits until the status of the only identity fits.
func (h *here) until(t *testing.T, what string, fits func(IdentityStatus) bool) IdentityStatus {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s := h.first()
		if fits(s) {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not come: %+v\n%s", what, s, h.log.String())
		}
	}
}
