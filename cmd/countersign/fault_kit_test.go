package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

const faultPolicy = `trust_domain: shop.internal
issuers: [{name: idp, use: users, issuer: "IDP", scopes: [shop.read]}]
services: [{name: a, accepts: [{issuer: idp, audiences: [shop-web]}]}, {name: b}, {name: c}, {name: d}]
calls:
  - {from: a, to: b, scopes: [{name: x, needs: [shop.read]}], machine: [x]}
  - {from: b, to: c, scopes: [x]}
`

// instanceAt is newInstance in a directory of the caller's choice.
func instanceAt(t *testing.T, bin, dir string, env ...string) *instance {
	t.Helper()
	i := &instance{bin: bin, dir: dir, env: env}
	for _, address := range []*string{&i.public, &i.ops} {
		free, err := freeLoopback()
		if err != nil {
			t.Fatal(err)
		}
		*address = free
	}
	i.run(t, "init", "--trust-domain", "shop.internal", "--listen", i.public, "--ops-listen", i.ops)
	i.start(t)
	t.Cleanup(func() { i.stop(t, syscall.SIGTERM) })
	return i
}

// startFails starts the daemon, which must end by itself, and gives its exit code and what it said.
func (i *instance) startFails(t *testing.T) (code int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.bin, "serve", "--dir", i.dir)
	cmd.Env = append(os.Environ(), i.env...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil || err == nil {
		t.Fatalf("the daemon did not end by itself with an error: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("panic")) || bytes.Contains(out, []byte("goroutine ")) {
		t.Errorf("the daemon panicked:\n%s", out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// exits waits until the running daemon has ended by itself and gives its exit code.
func (i *instance) exits(t *testing.T) int {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- i.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatalf("the daemon does not end\n%s", i.logText())
	}
	code := i.cmd.ProcessState.ExitCode()
	i.cmd = nil
	return code
}

// wrapped is a program that runs bin, and `bin serve` behind the words of wrap.
func wrapped(t *testing.T, bin string, wrap ...string) string {
	t.Helper()
	var quoted []string
	for _, word := range append(wrap, bin) {
		quoted = append(quoted, "'"+word+"'")
	}
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = serve ] && exec %s \"$@\"\nexec '%s' \"$@\"\n", strings.Join(quoted, " "), bin)
	path := filepath.Join(t.TempDir(), "countersign-wrapped")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// strace are the words that let the system call fail with the error for each thread from its n-th one on this file on.
// With -D the tracer is a grandchild, so that the daemon's own process and exit code are seen.
func strace(file, calls, failure string, n int) []string {
	return []string{
		"strace", "-D", "-f", "-qq", "-o", os.DevNull, "-P", file, "-e", "trace=" + calls,
		"-e", fmt.Sprintf("inject=%s:error=%s:when=%d+", calls, failure, n),
	}
}

// smallDisk is a tmpfs in a mount namespace of its own, which needs no rights where user namespaces are allowed. Its
// path leads through /proc, so the daemon and the test see it from outside, and it goes with the process that holds it.
type smallDisk struct {
	path, inside string
	holder       *exec.Cmd
	enter        []string
}

func newSmallDisk(t *testing.T, size string) *smallDisk {
	t.Helper()
	inside, err := os.MkdirTemp("", "cs-disk-")
	if err != nil {
		t.Fatal(err)
	}
	words, enter := []string{"unshare", "-m"}, []string{"nsenter"}
	if os.Getuid() != 0 {
		words, enter = []string{"unshare", "--user", "--map-root-user", "-m"}, []string{"nsenter", "-U", "--preserve-credentials"}
	}
	words = append(words, "--", "sh", "-c", `mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2" && echo mounted && exec cat`, "sh", size, inside)
	d := &smallDisk{inside: inside, holder: exec.Command(words[0], words[1:]...)}
	var stderr bytes.Buffer
	d.holder.Stderr = &stderr
	stdin, err := d.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := d.holder.StdoutPipe()
	if err == nil {
		err = d.holder.Start()
	}
	if err != nil {
		t.Fatalf("this test needs unshare (util-linux): %v", err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		if err := errors.Join(d.holder.Wait(), os.Remove(inside)); err != nil {
			t.Error(err)
		}
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("this test mounts a tmpfs in a mount namespace of its own, which needs root or unprivileged user namespaces "+
			"(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns): %s", &stderr)
	}
	pid := fmt.Sprint(d.holder.Process.Pid)
	d.enter = append(enter, "-t", pid, "-m", "--")
	d.path = filepath.Join("/proc", pid, "root", inside)
	return d
}

// remount makes the disk ro or rw. Its present options are not repeated: a user namespace does not know their user id.
func (d *smallDisk) remount(t *testing.T, options string) {
	t.Helper()
	words := append(d.enter[:len(d.enter):len(d.enter)], "mount", "--options-mode", "ignore", "-o", "remount,"+options, d.inside)
	tool(t, "", words[0], words[1:]...)
}

// fill takes all the space that is left; free gives it back.
func (d *smallDisk) fill(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(d.path, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func (d *smallDisk) free(t *testing.T) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.path, "filler")); err != nil {
		t.Fatal(err)
	}
}

// worker does what services and operators do with a daemon, and remembers what was acknowledged.
type worker struct {
	t     *testing.T
	i     *instance
	admin *client.Client
	id    *identity.Identity
	idp   *idp
	acked acknowledged
	spent wire.JoinToken // a used one

	relayed string // the newest token of a's for b that was answered

	mu       sync.Mutex
	policies map[int]string // by version
}

// newWorker puts faultPolicy in force and joins service a.
func newWorker(t *testing.T, i *instance) *worker {
	t.Helper()
	issuer, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	w := &worker{t: t, i: i, admin: socketClient(t, i), idp: issuer, policies: map[int]string{}}
	if err := w.applyPolicy(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	w.id = w.joined(t, "a")
	return w
}

// joined is a new identity of a service.
func (w *worker) joined(t *testing.T, service string) *identity.Identity {
	t.Helper()
	id, err := identity.Load(w.i.join(t, service))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// service is a new client of service a: one whose connection died is of no use.
func (w *worker) service() *client.Client { return w.client(w.id) }

func (w *worker) client(id *identity.Identity) *client.Client {
	c, err := client.New(client.Config{URL: id.Server, Identity: id})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *worker) applyPolicy(ctx context.Context, comment string) error {
	document := strings.ReplaceAll(faultPolicy, "IDP", w.idp.URL) + "# " + comment + "\n"
	applied, err := w.admin.ApplyPolicy(ctx, []byte(document), client.ApplyOptions{})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policies[applied.Version] = document
	return nil
}

func (w *worker) joinToken(ctx context.Context, service string) (wire.JoinToken, error) {
	return w.admin.CreateJoinToken(ctx, wire.JoinTokenRequest{Service: service})
}

// enrol issues a certificate for service b.
func (w *worker) enrol(ctx context.Context) error {
	token, err := w.joinToken(ctx, "b")
	if err != nil {
		return err
	}
	return w.enrolWith(ctx, token)
}

func (w *worker) enrolWith(ctx context.Context, token wire.JoinToken) error {
	j, err := client.ParseJoin(token.Join)
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{URL: j.URL, TLS: client.PinnedTLS(j)})
	if err != nil {
		return err
	}
	defer c.Close()
	_, csr, err := newRequest("P-256")
	if err != nil {
		return err
	}
	cert, err := c.Join(ctx, j.Token, wire.CertificateRequest{CSR: string(csr)})
	if err == nil {
		w.acked.serial(cert.Serial)
	}
	return err
}

// token asks for a machine token of a's for b.
func (w *worker) token(ctx context.Context, c *client.Client) error {
	_, err := w.ask(ctx, c, url.Values{"grant_type": {"client_credentials"}, "audience": {"b"}})
	return err
}

// exchange asks for a token for audience in exchange for another.
func (w *worker) exchange(ctx context.Context, c *client.Client, subject, audience string) (string, error) {
	return w.ask(ctx, c, url.Values{
		"grant_type": {grantExchange}, "subject_token": {subject}, "subject_token_type": {typeAccess}, "audience": {audience},
	})
}

func (w *worker) ask(ctx context.Context, c *client.Client, form url.Values) (string, error) {
	answer, err := c.Token(ctx, form)
	if err != nil {
		return "", err
	}
	token, err := readIssued(answer.AccessToken)
	if err != nil {
		return "", err
	}
	if parent, err := readIssued(form.Get("subject_token")); err == nil && parent.Aud != "shop-web" {
		token.Parent = parent.JTI
	}
	w.acked.token(token)
	return answer.AccessToken, nil
}

// relay takes a new user's token through a and b to c.
func (w *worker) relay(ctx context.Context, a, b *client.Client) error {
	user, err := w.idp.token("sub=user-" + rand.Text())
	if err != nil {
		return err
	}
	relayed, err := w.exchange(ctx, a, user, "b")
	if err != nil {
		return err
	}
	w.relayed = relayed
	_, err = w.exchange(ctx, b, relayed, "c")
	return err
}

// check wants everything that was acknowledged: certificates, tokens in the audit log, policies byte by byte.
func (w *worker) check() {
	w.t.Helper()
	w.acked.check(w.t, w.i)
	for version, want := range w.policies {
		got, err := w.admin.Policy(w.t.Context(), version)
		if err != nil || got.Document != want {
			w.t.Errorf("the acknowledged version %d of the policy: %q, %v", version, got.Document, err)
		}
	}
}
