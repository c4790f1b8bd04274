package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const maxStatus = 8 << 20 // bytes of an answer; an identity takes about 1 KiB

// NoAgentError says that no agent answers on a socket.
type NoAgentError struct {
	Socket string
	Err    error
}

// Error names the socket.
func (e *NoAgentError) Error() string {
	return "no agent answers on " + e.Socket + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *NoAgentError) Unwrap() error { return e.Err }

// SocketError says why a status socket can't be served.
type SocketError struct {
	Socket string
	Err    error
}

// Error names the socket.
func (e *SocketError) Error() string {
	return "serve the status socket " + e.Socket + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *SocketError) Unwrap() error { return e.Err }

// ErrRunning says that another agent serves the socket.
var ErrRunning = errors.New("another agent serves it")

// AskStatus asks the agent that serves socket. No agent there is a *NoAgentError.
func AskStatus(ctx context.Context, socket string) (Status, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	c := http.Client{Transport: transport, Timeout: 10 * time.Second}
	rq, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return Status{}, err
	}
	response, err := c.Do(rq)
	if err != nil {
		return Status{}, &NoAgentError{Socket: socket, Err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxStatus))
	if err != nil {
		return Status{}, &NoAgentError{Socket: socket, Err: err}
	}
	var s Status
	if err := json.Unmarshal(body, &s); err != nil || response.StatusCode != http.StatusOK || !s.Running {
		return Status{}, &NoAgentError{Socket: socket, Err: errors.New("somebody else answers there")}
	}
	return s, nil
}

// listenSocket listens on path for this user alone. What an agent that was killed left there is replaced; a socket that an
// agent serves is ErrRunning. The lock beside it decides between two that start at once.
func listenSocket(path string) (net.Listener, *os.File, error) {
	fail := func(err error) (net.Listener, *os.File, error) { return nil, nil, &SocketError{Socket: path, Err: err} }
	if len(path) > maxSocketPath {
		return fail(fmt.Errorf("its path has more than %d bytes", maxSocketPath))
	}
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fail(err)
	}
	if err := checkOurs(parent); err != nil {
		return fail(err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return fail(ErrRunning)
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		err = errors.New("a file of another kind is there")
	} else if err == nil {
		err = os.Remove(path)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		lock.Close()
		return fail(err)
	}
	listener, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		lock.Close()
		return fail(err)
	}
	return listener, lock, nil
}

// checkOurs refuses a directory in which others could put their own socket in place of ours.
func checkOurs(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != os.Getuid() && owner.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s must be a directory of this user or root that nobody else may write to", dir)
	}
	return nil
}

func (a *Agent) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.Status()) // who went away gets none
	})
	return mux
}
