package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countersign/countersign/ca/identity"
)

// Child is the program that `countersign run` wraps.
type Child struct {
	startedWith string // [fileKey] of the files that it found at its start
	cmd         *exec.Cmd
}

// ChildExit is the end of a child that did not end with 0: its exit code, or 128 and the number of the signal that ended it.
type ChildExit struct{ Code int }

// Error gives the code.
func (e *ChildExit) Error() string { return fmt.Sprintf("the program ended with %d", e.Code) }

// StartError says that a child could not be started: Code is 127 where there is no such program, 126 where it can't be run, as
// shells have it.
type StartError struct {
	Code int
	Err  error
}

// Error gives the reason.
func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *StartError) Unwrap() error { return e.Err }

func (c *Child) signal(s Signal) error { return c.cmd.Process.Signal(syscall.Signal(s)) }

// passedOn are the signals that go to the child. Those that stop a process (SIGTSTP and its like) are left to their default, or a
// shell would wait for ever; those that say that this program has a fault, and those that the Go runtime uses, are not the
// child's business.
func passedOn() []os.Signal {
	return []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
		syscall.SIGCONT, syscall.SIGWINCH, syscall.SIGIO, syscall.SIGPWR,
	}
}

// Wrap waits for the certificates, runs words with them in its environment, forwards signals, keeps the identities fresh while
// the child runs, and ends with it. ctx ends the wait only: once the child runs, it alone decides when to end. The error is a
// *ChildExit unless the child ended with 0.
func (a *Agent) Wrap(ctx context.Context, socket string, words []string, stdio [3]*os.File) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn()...)
	defer signal.Stop(signals)
	child := &Child{cmd: exec.Command(words[0], words[1:]...)}
	for _, k := range a.list() {
		k.child = child
	}
	first := a.keepers[a.cfg.Identities[0].name()]
	if err := a.ready(ctx, first, child); err != nil {
		a.Close()
		return err
	}
	child.cmd.Stdin, child.cmd.Stdout, child.cmd.Stderr = stdio[0], stdio[1], stdio[2]
	if err := child.start(); err != nil {
		a.Close()
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	agentEnded := make(chan error, 1)
	go func() { agentEnded <- a.Run(run, socket) }()
	err := child.forward(signals, stdio[0])
	stop()
	if runErr := <-agentEnded; runErr != nil {
		a.o.Logger.Warn("the agent's own sockets", "err", runErr)
	}
	return err
}

// ready waits for the certificates and gives the child its environment.
func (a *Agent) ready(ctx context.Context, first *running, child *Child) error {
	if err := a.Wait(ctx); err != nil {
		return err
	}
	id, err := first.src.Identity()
	if err != nil {
		return &IdentityError{first.cfg.name(), err}
	}
	if err := first.awaitDisk(ctx, id); err != nil { // the child reads the files
		return &IdentityError{first.cfg.name(), err}
	}
	first.writeSpring(ctx, id)
	child.startedWith = fileKey(id)
	child.cmd.Env = append(os.Environ(), childEnviron(first.cfg, id, a.cfg.API)...)
	return nil
}

func (c *Child) start() error {
	err := c.cmd.Start()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return &StartError{127, err}
	}
	return &StartError{126, err}
}

// forward passes signals on until the child has ended. As the first process of a container it also buries orphans, which
// nobody else would.
func (c *Child) forward(signals <-chan os.Signal, stdin *os.File) error {
	ended := make(chan error, 1)
	go func() { ended <- c.cmd.Wait() }()
	var bury <-chan time.Time
	if os.Getpid() == 1 {
		ticker := time.NewTicker(buryEvery)
		defer ticker.Stop()
		bury = ticker.C
	}
	atTerminal := isTerminal(stdin)
	var dead map[int]bool
	for {
		select {
		case err := <-ended:
			return exitOf(err)
		case <-bury:
			dead = buryOrphans(c.cmd.Process.Pid, dead)
		case s := <-signals:
			// A terminal sends these to all processes in its foreground: the child has got them.
			if !atTerminal || s != syscall.SIGINT && s != syscall.SIGQUIT && s != syscall.SIGWINCH {
				_ = c.cmd.Process.Signal(s) // it may have ended just now
			}
		}
	}
}

const buryEvery = time.Second

// buryOrphans waits for the dead children of this process that were dead at the last look too: whoever of ours ends is waited
// for at once by the one who started it, and the child by forward.
func buryOrphans(child int, before map[int]bool) (dead map[int]bool) {
	dead = map[int]bool{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return dead
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == child {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil || !isDeadChild(stat, os.Getpid()) {
			continue
		}
		if before[pid] {
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
			continue
		}
		dead[pid] = true
	}
	return dead
}

// isDeadChild reads state and parent from /proc/PID/stat (proc_pid_stat(5), fields 3 and 4).
func isDeadChild(stat []byte, parent int) bool {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(parent)
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func exitOf(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &ChildExit{128 + int(status.Signal())}
	}
	return &ChildExit{exit.ExitCode()}
}

// childEnviron is what a child finds: where its files are, for the command line of ours, for SPIFFE libraries, Node and Spring.
// Nothing takes the system's roots away: SSL_CERT_FILE would, and is not set.
func childEnviron(cfg Identity, id *identity.Identity, api *API) []string {
	d := delivery{dir: cfg.Dir, id: id.ID.String(), serial: id.Serial, notAfter: id.NotAfter, server: id.Server}
	env := slices.DeleteFunc(d.environ(), func(s string) bool { // they would be wrong after the first renewal
		return strings.HasPrefix(s, "COUNTERSIGN_SERIAL=") || strings.HasPrefix(s, "COUNTERSIGN_NOT_AFTER=")
	})
	for name, file := range map[string]string{
		"COUNTERSIGN_CERT": identity.CertFile, "COUNTERSIGN_KEY": identity.KeyFile, "COUNTERSIGN_ROOT": identity.RootsFile,
		"COUNTERSIGN_KEYSTORE": identity.KeyStoreFile, "COUNTERSIGN_TRUSTSTORE": identity.TrustStoreFile,
		"NODE_EXTRA_CA_CERTS": identity.RootsFile,
	} {
		env = append(env, name+"="+filepath.Join(cfg.Dir, file))
	}
	if id.Server != "" {
		env = append(env, "COUNTERSIGN_SERVER="+id.Server)
	}
	if cfg.Spring != nil {
		env = append(env, "SPRING_CONFIG_ADDITIONAL_LOCATION=file:"+filepath.Join(cfg.Dir, SpringFile))
	}
	if api != nil {
		env = append(env, "SPIFFE_ENDPOINT_SOCKET=unix://"+api.Socket)
	}
	slices.Sort(env)
	return env
}
