package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	maxOutput = 4 << 10 // bytes of a hook's output that are kept for the log
	hookWait  = 2 * time.Second
)

// delivery is what a program is told of a new certificate.
type delivery struct {
	dir, id, serial string
	notAfter        time.Time
	server          string
}

// environ is what hooks and children find in their environment. COUNTERSIGN_DIR is not among it: that is the daemon's own
// directory for every command of ours (interfaces.md).
func (d delivery) environ() []string {
	return []string{
		"COUNTERSIGN_IDENTITY=" + d.dir,
		"COUNTERSIGN_ID=" + d.id,
		"COUNTERSIGN_SERIAL=" + d.serial,
		"COUNTERSIGN_NOT_AFTER=" + d.notAfter.UTC().Format(time.RFC3339),
	}
}

// hook is one way to tell a program.
type hook struct {
	name string
	run  func(ctx context.Context, d delivery) (note string, err error)
}

// hooks are those of r, in their order.
func (r Reload) hooks() []hook {
	var all []hook
	if len(r.Exec) > 0 {
		all = append(all, hook{"exec", func(ctx context.Context, d delivery) (string, error) { return runProgram(ctx, r.Exec, d) }})
	}
	if r.Signal != 0 {
		all = append(all, hook{"signal", func(context.Context, delivery) (string, error) { return signalPIDFile(r.PIDFile, r.Signal) }})
	}
	if r.Systemd != "" {
		all = append(all, hook{"systemd", func(ctx context.Context, d delivery) (string, error) {
			return runProgram(ctx, []string{"systemctl", "reload", r.Systemd}, d)
		}})
	}
	return all
}

func (r Reload) timeout() time.Duration {
	if r.Timeout == 0 {
		return defaultHookTimeout
	}
	return time.Duration(r.Timeout)
}

// runProgram runs words without a shell, in a process group of its own, which is killed when ctx ends. note is the end of
// what it printed.
func runProgram(ctx context.Context, words []string, d delivery) (note string, err error) {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), d.environ()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookWait // a grandchild may hold the pipe
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well and left somebody behind who holds its output open
		err = nil
	}
	switch {
	case ctx.Err() != nil && err != nil:
		err = fmt.Errorf("%s did not end in time and was killed: %w", words[0], context.Cause(ctx))
	case err != nil:
		err = fmt.Errorf("%s: %w", words[0], err)
	}
	if err != nil && out.text() != "" {
		err = fmt.Errorf("%w; it printed: %s", err, out.text())
	}
	return out.text(), err
}

// tail keeps the last maxOutput bytes of what is written.
type tail struct {
	kept []byte
	cut  bool
}

// Write keeps the end of p.
func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p[max(0, len(p)-maxOutput):]...)
	if over := len(t.kept) - maxOutput; over > 0 {
		t.kept, t.cut = bytes.Clone(t.kept[over:]), true
	}
	if len(p) > maxOutput {
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) text() string {
	s := strings.TrimSpace(strings.ToValidUTF8(string(t.kept), string(utf8.RuneError)))
	if t.cut {
		return "…" + s
	}
	return s
}

// SplitWords splits a command line at spaces: 'single' and "double" quotes keep words together, a backslash outside of single
// quotes takes the next character as it is. Nothing else means anything: there is no shell.
func SplitWords(s string) ([]string, error) {
	var (
		words  []string
		word   strings.Builder
		quote  rune
		inside bool // of a word
		escape bool
	)
	for _, r := range s {
		switch {
		case escape:
			word.WriteRune(r)
			escape = false
		case r == '\\' && quote != '\'':
			escape, inside = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inside = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if inside {
				words = append(words, word.String())
				word.Reset()
			}
			inside = false
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	switch {
	case quote != 0:
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	case escape:
		return nil, errors.New("it ends with a backslash")
	}
	if inside {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("it names no program")
	}
	return words, nil
}
