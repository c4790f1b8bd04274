package api

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/labstack/echo/v4"
	"golang.org/x/sys/unix"

	"github.com/countersign/countersign"
)

type peerKey struct{}

// peerCred is who connected to the admin socket, as the kernel says (SO_PEERCRED, unix(7)).
type peerCred struct {
	uid uint32
	pid int32
	exe string // best effort: the process may be gone, or hidden from us
}

// PeerCred is the ConnContext of the admin socket's http.Server. It keeps the peer's credentials as they were when it
// connected; without them [Server.Admin] refuses the connection's requests.
func PeerCred(ctx context.Context, conn net.Conn) context.Context {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil {
		return ctx
	}
	exe, err := os.Readlink("/proc/" + strconv.Itoa(int(cred.Pid)) + "/exe")
	if err != nil {
		exe = ""
	}
	return context.WithValue(ctx, peerKey{}, peerCred{uid: cred.Uid, pid: cred.Pid, exe: exe})
}

// socketCaller proves who sent a request on the admin socket. The rights of the socket's file are a second wall, not
// the first.
func (s *Server) socketCaller(c echo.Context, _ route) (countersign.Caller, error) {
	nobody := countersign.Caller{RequestID: requestID(c)}
	cred, ok := c.Request().Context().Value(peerKey{}).(peerCred)
	if !ok {
		return nobody, countersign.Errorf(countersign.CodeSocketPeer, "the kernel did not say who is connected")
	}
	caller, err := cred.caller(s.uid)
	caller.RequestID = nobody.RequestID
	if err == nil && len(c.Request().Header.Values("Authorization")) > 0 {
		return caller, countersign.Errorf(countersign.CodeTwoCredentials, "the admin socket takes no Authorization header")
	}
	return caller, err
}

// caller admits root and the daemon's own user.
func (p peerCred) caller(daemon int) (countersign.Caller, error) {
	if p.uid != 0 && int64(p.uid) != int64(daemon) {
		return countersign.Caller{}, countersign.Errorf(countersign.CodeSocketPeer,
			"uid %d is neither root nor the daemon's user (uid %d)", p.uid, daemon)
	}
	name := fmt.Sprintf("uid %d pid %d", p.uid, p.pid)
	if p.exe != "" {
		name += " " + p.exe
	}
	return countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin, Name: name}, nil
}
