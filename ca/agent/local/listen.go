package local

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens the socket. A socket that nobody serves any more is a crash's and is replaced; what else is at the path stays.
// Everybody may connect: the rules decide, and who wants a further wall puts the socket into a directory of few.
func listen(path string) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket: it stays; name another path", path)
	default:
		probe, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			probe.Close()
			return nil, fmt.Errorf("%s is served by another process", path)
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("%s: it can't be told whether another process serves it: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// places counts what users take, so that one of them takes only so much. It holds a number for each user that has anything.
type places struct {
	mu        sync.Mutex
	each, all int // 0 of all: no bound
	taken     map[uint32]int
	sum       int
}

func newPlaces(each, all int) *places { return &places{each: each, all: all, taken: map[uint32]int{}} }

func (p *places) enter(uid uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[uid] >= p.each || p.all > 0 && p.sum >= p.all {
		return false
	}
	p.taken[uid]++
	p.sum++
	return true
}

func (p *places) leave(uid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum--
	if p.taken[uid]--; p.taken[uid] <= 0 {
		delete(p.taken, uid)
	}
}

// listener accepts connections whose other end is known, as many as the limits allow; others are closed at once.
type listener struct {
	*net.UnixListener
	server *Server
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(conn, l.server.programs)
		if err != nil {
			conn.Close()
			l.server.log.Warn("local API: the kernel does not say who is connected", "error", err)
			continue
		}
		if !l.server.connections.enter(p.uid) {
			l.server.denied(p, "as many connections as are allowed")
			p.release()
			conn.Close()
			continue
		}
		return &connection{Conn: conn, peer: p, server: l.server, release: func() { l.server.connections.leave(p.uid) }}, nil
	}
}
