package agent

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func testDelivery() delivery {
	return delivery{dir: "/d", id: "spiffe://a.b/c", serial: "00ff", notAfter: time.Unix(1800000000, 0)}
}

func TestRunProgram(t *testing.T) {
	t.Setenv("OWN", "kept")
	note, err := runProgram(t.Context(), []string{"sh", "-c", `echo "$COUNTERSIGN_IDENTITY $COUNTERSIGN_ID $COUNTERSIGN_SERIAL $COUNTERSIGN_NOT_AFTER $OWN $1"`, "sh", "$HOME; x"}, testDelivery())
	if want := "/d spiffe://a.b/c 00ff 2027-01-15T08:00:00Z kept $HOME; x"; err != nil || note != want {
		t.Errorf("%q, %v", note, err)
	}
	if _, err := runProgram(t.Context(), []string{"sh", "-c", "echo broken pipe in the wall; exit 3"}, testDelivery()); err == nil || !strings.Contains(err.Error(), "exit status 3; it printed: broken pipe in the wall") {
		t.Error(err)
	}
	if _, err := runProgram(t.Context(), []string{"/none"}, testDelivery()); err == nil {
		t.Error("a program that does not exist ran")
	}
	long, err := runProgram(t.Context(), []string{"sh", "-c", "yes x | head -c 100000; echo end"}, testDelivery())
	if err != nil || len(long) > maxOutput+8 || !strings.HasPrefix(long, "…") || !strings.HasSuffix(long, "end") {
		t.Errorf("%d bytes are kept of 100,000, %v", len(long), err)
	}
}

// A program that does not end is killed with all that it started. One that leaves somebody behind on purpose has ended well.
func TestRunProgramInTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := runProgram(ctx, []string{"sh", "-c", "sleep 60 & echo $! > " + file + "; wait"}, testDelivery())
	if err == nil || !strings.Contains(err.Error(), "did not end in time") {
		t.Fatal(err)
	}
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(5 * time.Second); alive(grandchild); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("what the program started goes on")
		}
	}
	if _, err := runProgram(t.Context(), []string{"sh", "-c", "sleep 5 &"}, testDelivery()); err != nil {
		t.Errorf("a program that left a process behind: %v", err)
	}
}

// alive: it runs, and is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// trapper is a process that writes a line for each SIGHUP, and ends at SIGUSR1.
func trapper(t *testing.T) (pid int, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "got")
	cmd := exec.Command("sh", "-c", `trap 'echo hup >> "$1"' HUP; echo ready > "$1"; while :; do sleep 0.05; done`, "sh", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, func() string { return readText(file) }, "ready\n")
	return cmd.Process.Pid, file
}

func readText(path string) string {
	body, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func eventually(t *testing.T, got func() string, want string) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		last := got()
		if strings.Contains(last, want) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("it stays %q, and should hold %q", last, want)
		}
	}
}

func TestSignalPIDFile(t *testing.T) {
	pid, file := trapper(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(pidFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(pidFile, mode); err != nil {
			t.Fatal(err)
		}
	}
	hup := Signal(syscall.SIGHUP)
	if note, err := signalPIDFile(pidFile, hup); err != nil || !strings.Contains(note, "does not run") {
		t.Errorf("no PID file: %q, %v", note, err)
	}
	write(strconv.Itoa(pid)+"\n", 0o644)
	if note, err := signalPIDFile(pidFile, hup); err != nil || note != "sent SIGHUP to process "+strconv.Itoa(pid) {
		t.Errorf("%q, %v", note, err)
	}
	eventually(t, func() string { return readText(file) }, "hup\n")

	// The number was given to another program: that began after the file was written.
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(pidFile, past, past); err != nil {
		t.Fatal(err)
	}
	if _, err := signalPIDFile(pidFile, hup); err == nil || !strings.Contains(err.Error(), "it is another program") {
		t.Errorf("a number that was given anew: %v", err)
	}
	time.Sleep(200 * time.Millisecond) // what must not come has time to come
	if got := readText(file); got != "ready\nhup\n" {
		t.Errorf("the other program was signalled: %q", got)
	}
	for text, want := range map[string]string{
		"": "does not hold the number", "x": "does not hold the number", "0": "does not hold the number", "-1": "does not hold the number",
		strconv.Itoa(os.Getpid()): "the number of this agent",
	} {
		write(text, 0o644)
		if _, err := signalPIDFile(pidFile, hup); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	write(strconv.Itoa(pid), 0o666)
	if _, err := signalPIDFile(pidFile, hup); err == nil || !strings.Contains(err.Error(), "only its owner and group") {
		t.Errorf("a PID file that everybody may write: %v", err)
	}
	write("4194304", 0o644) // above the kernel's greatest number
	if note, err := signalPIDFile(pidFile, hup); err != nil || !strings.Contains(note, "does not run") {
		t.Errorf("a process that is gone: %q, %v", note, err)
	}
}

func TestProcessAge(t *testing.T) {
	stat := "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 6000 1 1"
	if age, err := processAge([]byte(stat), []byte("100.50 3.00\n")); err != nil || age != 40500*time.Millisecond {
		t.Errorf("%s, %v", age, err)
	}
	for _, bad := range [][2]string{{"", "1 1"}, {"7 (a) S 1", "1 1"}, {stat, ""}, {stat, "x"}, {stat, "-1"}, {"7 (a) " + strings.Repeat("x ", 30), "1"}} {
		if _, err := processAge([]byte(bad[0]), []byte(bad[1])); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

// systemctl is asked to reload the unit, by its arguments alone.
func TestSystemdHook(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "asked")
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho \"$@\" > "+file+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	hooks := Reload{Systemd: "nginx.service"}.hooks()
	if len(hooks) != 1 || hooks[0].name != "systemd" {
		t.Fatal(hooks)
	}
	if _, err := hooks[0].run(t.Context(), testDelivery()); err != nil {
		t.Fatal(err)
	}
	if got := readText(file); got != "reload nginx.service\n" {
		t.Error(got)
	}
}
