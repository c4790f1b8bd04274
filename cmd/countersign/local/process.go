package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a child that a [Host] started and will stop.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string // file with its standard error
	done chan error
}

const (
	startTime = 30 * time.Second
	stopTime  = 5 * time.Second
)

// Listening begins the line with which a part says where it listens.
const Listening = "listening on "

// Host is where the children of one run live. They die with the thread that started them: the caller locks it
// ([runtime.LockOSThread]) on the main thread, which lives as long as the process.
type Host struct {
	Executable string // our own binary
	Dir        string // for logs, the authority's directory and those of the services

	processes []*Process
}

// Authority is a daemon on loopback with a directory of its own below the Host's.
type Authority struct {
	Issuer, Fingerprint, Root string
	TrustDomain               string   `json:"trust_domain"`
	Ops                       string   `json:"-"` // address of its operations listener
	Process                   *Process `json:"-"`
}

// AuthorityDir is the authority's directory.
func (h *Host) AuthorityDir() string { return filepath.Join(h.Dir, "authority") }

// StartAuthority makes an authority and starts it on free ports, with env added to a clean environment. It is ready when
// this returns.
func (h *Host) StartAuthority(ctx context.Context, trustDomain string, env ...string) (*Authority, error) {
	public, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	a := &Authority{}
	if a.Ops, err = FreeAddress(); err != nil {
		return nil, err
	}
	err = h.Ask(ctx, a, "init", "--trust-domain", trustDomain, "--listen", public, "--ops-listen", a.Ops)
	if err != nil {
		return nil, err
	}
	a.Process, err = h.StartReady(ctx, "authority", a.Ops, h.Executable, env, "serve", "--dir", h.AuthorityDir())
	return a, err
}

// StopAll stops the children, the youngest first: the services before the authority.
func (h *Host) StopAll() {
	for len(h.processes) > 0 {
		last := len(h.processes) - 1
		h.processes[last].stop()
		h.processes = h.processes[:last]
	}
}

func (p *Process) waitReady(ctx context.Context, ops string) error {
	until := time.Now().Add(startTime)
	for {
		response, err := http.Get("http://" + ops + "/readyz")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		if time.Now().After(until) {
			return p.failed(fmt.Errorf("it is not ready: %v", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-p.done:
			p.done <- err
			return p.failed(fmt.Errorf("it ended: %v", err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PIDOf is that of the child with this name; 0: there is none.
func (h *Host) PIDOf(name string) int {
	for _, p := range h.processes {
		if p.name == name {
			return p.PID()
		}
	}
	return 0
}

// PID is the child's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the child.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Start runs a program in the background, with env added to a clean environment and its log in a file of the Host's directory.
// The child dies with us, also when we are killed.
func (h *Host) Start(name, program string, env []string, args ...string) (*Process, error) {
	p, stdout, err := h.start(name, program, env, args...)
	if err != nil {
		return nil, err
	}
	go func() {
		_, _ = io.Copy(io.Discard, stdout)
		p.done <- p.cmd.Wait()
	}()
	return p, nil
}

// StartReady is Start, and waits until the program's operations listener says that it is ready.
func (h *Host) StartReady(ctx context.Context, name, ops, program string, env []string, args ...string) (*Process, error) {
	p, err := h.Start(name, program, env, args...)
	if err != nil {
		return nil, err
	}
	return p, p.waitReady(ctx, ops)
}

func (h *Host) start(name, program string, env []string, args ...string) (*Process, io.Reader, error) {
	p := &Process{name: name, log: filepath.Join(h.Dir, name+".log"), done: make(chan error, 1)}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Env = append(cleanEnvironment(), env...)
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", name, err)
	}
	h.processes = append(h.processes, p)
	return p, stdout, nil
}

// StartPart starts a part that is a command of ours and waits for the address that it listens on.
func (h *Host) StartPart(ctx context.Context, name string, args ...string) (string, error) {
	_, address, err := h.StartServer(ctx, name, h.Executable, args...)
	return address, err
}

// StartServer starts any program and waits for the address that it listens on.
func (h *Host) StartServer(ctx context.Context, name, program string, args ...string) (*Process, string, error) {
	p, stdout, err := h.start(name, program, nil, args...)
	if err != nil {
		return nil, "", err
	}
	lines := make(chan string, 1)
	go func() {
		scanner := bufio.NewScanner(stdout)
		if scanner.Scan() {
			lines <- scanner.Text()
		}
		close(lines)
		_, _ = io.Copy(io.Discard, stdout)
		p.done <- p.cmd.Wait()
	}()
	select {
	case line := <-lines:
		if address, ok := strings.CutPrefix(line, Listening); ok {
			return p, address, nil
		}
		return nil, "", p.failed(errors.New("it did not say where it listens"))
	case <-time.After(startTime):
		return nil, "", p.failed(errors.New("it did not start in time"))
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

// failed adds the end of the process's log to err.
func (p *Process) failed(err error) error {
	body, _ := os.ReadFile(p.log)
	if len(body) > 2000 {
		body = body[len(body)-2000:]
	}
	return fmt.Errorf("%s: %w\n%s", p.name, err, bytes.TrimSpace(body))
}

// stop ends the process as an operator would, and by force if that takes too long.
func (p *Process) stop() {
	if p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// Run runs one command of ours and gives its standard output. wantExit is the exit code that it must have.
func (h *Host) Run(ctx context.Context, wantExit int, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, h.Executable, args...)
	cmd.Env = cleanEnvironment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	if code := cmd.ProcessState.ExitCode(); code != wantExit {
		return nil, fmt.Errorf("countersign %s: exit code %d instead of %d\n%s", strings.Join(args, " "), code, wantExit, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// Ask runs one command of ours on the authority and decodes its JSON.
func (h *Host) Ask(ctx context.Context, out any, args ...string) error {
	body, err := h.Run(ctx, 0, append([]string{"--dir", h.AuthorityDir(), "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("countersign %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// cleanEnvironment is ours without the variables that would configure the daemon.
func cleanEnvironment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "COUNTERSIGN_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "CREDENTIALS_DIRECTORY=") {
			env = append(env, e)
		}
	}
	return env
}

// FreeAddress is a loopback address that nothing listened on a moment ago.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
