package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, as the kernel noted it when it connected (SO_PEERCRED, unix(7)).
type peer struct {
	uid, gid uint32
	pid      int32 // 0: it is in no PID namespace that is seen from here
	pidfd    int   // of that process, whoever has its number now; -1: not needed, or not to be had
}

// peerOf asks the kernel. With a program to look at, pidfd pins the process: its number alone may be another's by the time
// /proc is read.
func peerOf(conn *net.UnixConn, program bool) (peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	p := peer{pidfd: -1}
	var credErr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr != nil {
			return
		}
		p.uid, p.gid, p.pid = cred.Uid, cred.Gid, cred.Pid
		if program && p.pid > 0 {
			p.pidfd = pin(int(fd), int(p.pid))
		}
	})
	return p, errors.Join(err, credErr)
}

// pin is a pidfd of the process that connected (SO_PEERPIDFD, Linux 6.5). Older kernels know the process that has its number
// now: between connecting and here the number can have changed hands, though never the user, which is noted apart.
func pin(socket, pid int) int {
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		return -1
	}
	return fd
}

// release gives the pidfd back.
func (p *peer) release() {
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// alive tells whether the pinned process still is: a pidfd becomes readable at its end (pidfd_open(2)).
func (p *peer) alive() bool {
	if p.pidfd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 0
		}
	}
}

// runs tells whether the process runs the file at path. Files are compared, not names: in a mount namespace of his own anybody
// can put a file at any path. The pinned process lived after /proc was read, so what was read was its own.
func (p *peer) runs(path string) (yes, known bool) {
	configured, err := os.Stat(path)
	if err != nil {
		return false, false
	}
	running, err := os.Stat("/proc/" + strconv.Itoa(int(p.pid)) + "/exe")
	if err != nil || !p.alive() {
		return false, false
	}
	return os.SameFile(configured, running), true
}

func (p peer) String() string { return fmt.Sprintf("uid %d gid %d pid %d", p.uid, p.gid, p.pid) }

// connection is one connection with who is at its other end, and what the rules say of that.
type connection struct {
	net.Conn
	peer    peer
	server  *Server
	release func() // of the places that it takes

	judge  sync.Once
	served *served // nil: denied

	closing sync.Once
}

// identity judges the caller at its first request, outside of the loop that accepts: a file system under a program can hang.
func (c *connection) identity() *served {
	c.judge.Do(func() {
		var reason string
		if !c.server.judging.enter(c.peer.uid) {
			reason = "too many connections of this user wait to be judged"
		} else {
			defer c.server.judging.leave(c.peer.uid)
			var name string
			if name, reason = decide(c.server.cfg.Rules, caller{uid: c.peer.uid, gid: c.peer.gid, runs: c.peer.runs}); name != "" {
				c.served = c.server.served[name]
			}
		}
		c.peer.release()
		if c.served == nil {
			c.server.denied(c.peer, reason)
		}
	})
	return c.served
}

// Close implements net.Conn. What it took is given back once; the pidfd only after a judgment that is under way.
func (c *connection) Close() error {
	err := c.Conn.Close()
	c.closing.Do(func() {
		c.release()
		go c.judge.Do(c.peer.release)
	})
	return err
}
