package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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
)

// instance is a daemon in a process of its own, with its directory and its addresses.
type instance struct {
	bin, dir, public, ops string
	env                   []string

	mu  sync.Mutex
	cmd *exec.Cmd
	log bytes.Buffer
}

// raceBinary is this test's own binary as the command line: built with -race when the tests are.
func raceBinary(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("countersign")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newInstance initialises a directory and starts its daemon, which is stopped at the end of the test.
func newInstance(t *testing.T, bin string, env ...string) *instance {
	t.Helper()
	i := &instance{bin: bin, dir: filepath.Join(t.TempDir(), "ca"), env: env}
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

func (i *instance) port() string {
	_, port, _ := net.SplitHostPort(i.public)
	return port
}

func (i *instance) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command(i.bin, "serve", "--dir", i.dir)
	cmd.Env = append(os.Environ(), i.env...)
	cmd.Stderr = &lockedWriter{i: i}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	i.cmd = cmd
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		response, err := http.Get("http://" + i.ops + "/readyz")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(until) {
			t.Fatalf("the daemon does not become ready: %v\n%s", err, i.logText())
		}
	}
}

type lockedWriter struct{ i *instance }

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.i.mu.Lock()
	defer w.i.mu.Unlock()
	return w.i.log.Write(p)
}

func (i *instance) logText() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.log.String()
}

// stop ends the process; after SIGTERM it must have ended well.
func (i *instance) stop(t *testing.T, with syscall.Signal) {
	t.Helper()
	if i.cmd == nil {
		return
	}
	if err := i.cmd.Process.Signal(with); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	err := i.cmd.Wait()
	i.cmd = nil
	if with == syscall.SIGTERM && err != nil {
		t.Errorf("the daemon ended with %v\n%s", err, i.logText())
	}
}

// run runs a command on this daemon and gives its standard output.
func (i *instance) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(i.bin, args...)
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+i.dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("countersign %s: %v\n%s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

// ask runs a command with -o json and decodes what it prints.
func (i *instance) ask(t *testing.T, out any, args ...string) {
	t.Helper()
	if err := json.Unmarshal([]byte(i.run(t, append(args, "-o", "json")...)), out); err != nil {
		t.Fatal(err)
	}
}

// join enrols a service and gives its identity directory.
func (i *instance) join(t *testing.T, service string, flags ...string) string {
	t.Helper()
	var token struct{ Join string }
	i.ask(t, &token, "join-token", "create", service)
	out := filepath.Join(t.TempDir(), service)
	i.run(t, append([]string{"join", token.Join, "--out", out}, flags...)...)
	return out
}

// apply puts a policy in force.
func (i *instance) apply(t *testing.T, document string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	i.run(t, "policy", "apply", path)
}

// tool runs a foreign program and gives everything that it printed.
func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

const chainPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: [shop.read, shop.write, "orders:read"], carry: [email]}
services:
  - {name: gateway, dns: [gateway.shop.internal], accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.shop.internal], token: {alg: RS256, typ: JWT}}
  - {name: inventory, dns: [inventory.shop.internal]}
  - {name: reports}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read", {name: "orders:write", needs: [shop.write]}]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}]}
  - {from: reports, to: orders, scopes: ["orders:read"], machine: ["orders:read"]}
`
