package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a child that the demo started and will stop.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // file with its standard error
	done chan error
}

const (
	startTime = 10 * time.Second
	stopTime  = 5 * time.Second
)

// listening is the line with which a part of the demo says where it listens.
const listening = "listening on "

// start runs our own binary in the background, with its log in a file of the demo's directory. The child dies with us,
// also when we are killed: see Run for the thread that this hangs on.
func (d *demo) start(name string, env []string, args ...string) (*process, io.Reader, error) {
	p := &process{name: name, log: filepath.Join(d.dir, name+".log"), done: make(chan error, 1)}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(d.Executable, args...)
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
	d.processes = append(d.processes, p)
	return p, stdout, nil
}

// startPart starts a part of the demo and waits for the address that it listens on.
func (d *demo) startPart(ctx context.Context, name string, args ...string) (string, error) {
	p, stdout, err := d.start(name, nil, args...)
	if err != nil {
		return "", err
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
		if address, ok := strings.CutPrefix(line, listening); ok {
			return address, nil
		}
		return "", p.failed(errors.New("it did not say where it listens"))
	case <-time.After(startTime):
		return "", p.failed(errors.New("it did not start in time"))
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// failed adds the end of the process's log to err.
func (p *process) failed(err error) error {
	body, _ := os.ReadFile(p.log)
	if len(body) > 2000 {
		body = body[len(body)-2000:]
	}
	return fmt.Errorf("%s: %w\n%s", p.name, err, bytes.TrimSpace(body))
}

// stop ends the process as an operator would, and by force if that takes too long.
func (p *process) stop() {
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

// run runs one command of ours and gives its standard output. wantExit is the exit code that it must have.
func (d *demo) run(ctx context.Context, wantExit int, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.Executable, args...)
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

// ask runs one command of ours on the demo's daemon and decodes its JSON.
func (d *demo) ask(ctx context.Context, out any, args ...string) error {
	body, err := d.run(ctx, 0, append([]string{"--dir", d.authority(), "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("countersign %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// cleanEnvironment is ours without the variables that would configure the demo's daemon.
func cleanEnvironment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "COUNTERSIGN_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "CREDENTIALS_DIRECTORY=") {
			env = append(env, e)
		}
	}
	return env
}

// freeAddress is a loopback address that nothing listened on a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
