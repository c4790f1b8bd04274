package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startSlack is by how much a process may seem to be younger than its PID file: clocks of files tick every few milliseconds.
const startSlack = time.Second

// signalPIDFile signals the process that the PID file names now. A program writes its PID file when it runs, so a process that
// began after the file was last written is another one that was given the number of the one that died: it is not signalled,
// and that is an error. No file, or no such process, is no error: the program does not run, and reads the new files when it
// starts. The process is held by a handle (pidfd) from before the check to the signal, so that it can't be exchanged between.
func signalPIDFile(path string, signal Signal) (note string, err error) {
	pid, written, err := readPIDFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "there is no " + path + ": the program does not run", nil
	}
	if err != nil {
		return "", err
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return "", err
	}
	defer process.Release()
	started, err := startOf(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("process %d of %s is gone: the program does not run", pid, path), nil
	}
	if err != nil {
		return "", err
	}
	if started.After(written.Add(startSlack)) {
		return "", fmt.Errorf("process %d began %s after %s was written: it is another program with the number of one that died, and was not signalled",
			pid, started.Sub(written).Round(time.Millisecond), path)
	}
	err = process.Signal(syscall.Signal(signal))
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Sprintf("process %d of %s is gone: the program does not run", pid, path), nil
	}
	if err != nil {
		return "", fmt.Errorf("signal process %d of %s: %w", pid, path, err)
	}
	return fmt.Sprintf("sent SIG%s to process %d", signal, pid), nil
}

// readPIDFile reads the number, and when the file was written. A file that everybody may write would let everybody choose whom
// the agent signals.
func readPIDFile(path string) (pid int, written time.Time, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, time.Time{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, time.Time{}, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o002 != 0 {
		return 0, time.Time{}, fmt.Errorf("%s is not a file that only its owner and group may write to", path)
	}
	body, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, time.Time{}, err
	}
	line, _, _ := strings.Cut(string(body), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid < 1 {
		return 0, time.Time{}, fmt.Errorf("%s does not hold the number of a process", path)
	}
	if pid == os.Getpid() {
		return 0, time.Time{}, fmt.Errorf("%s holds the number of this agent", path)
	}
	return pid, info.ModTime(), nil
}

// startOf is when a process began: its age by the clock that counts since the boot (proc_pid_stat(5), field 22), taken from now.
func startOf(pid int) (time.Time, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, syscall.ESRCH) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return time.Time{}, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, err
	}
	age, err := processAge(stat, uptime)
	return time.Now().Add(-age), err
}

// ticks is USER_HZ, by which the kernel counts towards programs: 100 on every architecture that Go runs on.
const ticks = 100

// processAge reads /proc/PID/stat and /proc/uptime. The program's name stands in parentheses and may hold spaces and
// parentheses itself, so fields are counted from its end.
func processAge(stat, uptime []byte) (time.Duration, error) {
	bad := errors.New("what /proc says of the process can't be read")
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, bad
	}
	fields := strings.Fields(string(stat[end+1:])) // from field 3 on
	up := strings.Fields(string(uptime))
	if len(fields) < 20 || len(up) == 0 {
		return 0, bad
	}
	start, err := strconv.ParseUint(fields[19], 10, 62)
	if err != nil {
		return 0, bad
	}
	now, err := strconv.ParseFloat(up[0], 64)
	if err != nil || now < 0 || now > 1e9 {
		return 0, bad
	}
	return time.Duration(now*float64(time.Second)) - time.Duration(start)*(time.Second/ticks), nil
}
