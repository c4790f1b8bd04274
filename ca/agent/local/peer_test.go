package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/ca/mtls"
)

// beAPeer is a process of its own that asks who it is, and prints the ID or the code of the refusal.
func beAPeer(socket string) int {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(secured(ctx), &workload.X509SVIDRequest{})
	if err == nil {
		var got *workload.X509SVIDResponse
		if got, err = stream.Recv(); err == nil {
			fmt.Print(got.GetSvids()[0].GetSpiffeId())
			return 0
		}
	}
	fmt.Print(status.Code(err))
	return 0
}

// program is a copy of this test's binary that other users may run.
func (k *kit) program(name string) string {
	k.Helper()
	self, err := os.Executable()
	k.must(err)
	in, err := os.Open(self)
	k.must(err)
	defer in.Close()
	path := filepath.Join(k.dir, name)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	k.must(err)
	_, err = io.Copy(out, in)
	k.must(errors.Join(err, out.Close()))
	return path
}

// as runs program under a user and group, and gives what it says.
func (k *kit) as(uid, gid uint32, groups []uint32, socket string, command ...string) string {
	k.Helper()
	cmd := exec.CommandContext(k.Context(), command[0], command[1:]...)
	cmd.Env = []string{"LOCAL_TEST_PEER=" + socket, "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		k.Fatalf("%q: %v %s%s", command, err, out, stderr.String())
	}
	return string(out)
}

// Real processes of several users, groups and programs: the first rule that fits decides, and who fits none is denied.
func TestPeers(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders"), "inventory": k.source("inventory")}
	app, other := k.program("app"), k.program("other")
	socket, _ := k.serve([]Rule{
		{UID: uid(2001), GID: uid(3001), Identity: "orders"},
		{UID: uid(2001), Exe: app, Identity: "reports"},
		{GID: uid(3002), Identity: "inventory"},
		{UID: uid(2003), Exe: filepath.Join(k.dir, "absent"), Identity: "reports"},
		{UID: uid(2003), Identity: "orders"}, // wider than the one above, which can't be judged
	}, nil, src)
	for _, c := range []struct {
		name     string
		uid, gid uint32
		groups   []uint32
		program  string
		want     string
	}{
		{"user and group", 2001, 3001, nil, other, ordersID},
		{"user and program", 2001, 3009, nil, app, reportsID},
		{"the user's other program", 2001, 3009, nil, other, "PermissionDenied"},
		{"another user's same program", 2002, 3009, nil, app, "PermissionDenied"},
		{"a group", 2009, 3002, nil, other, inventoryID},
		{"a supplementary group", 2009, 3009, []uint32{3002}, other, "PermissionDenied"},
		{"a program that can't be judged", 2003, 3009, nil, app, "PermissionDenied"},
		{"nobody", 65534, 65534, nil, app, "PermissionDenied"},
		{"root, whom no rule names", 0, 0, nil, app, "PermissionDenied"},
	} {
		if got := k.as(c.uid, c.gid, c.groups, socket, c.program); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	for _, want := range []string{"uid=2002", "no rule names this caller", "can't be told whether the caller runs"} {
		if !strings.Contains(k.log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, k.log)
		}
	}

	// In a mount namespace of one's own any file can stand at the program's path.
	mounted := k.as(0, 0, nil, socket, "unshare", "-m", "sh", "-c",
		fmt.Sprintf("mount --bind %s %s && exec setpriv --reuid=2001 --regid=3009 --clear-groups %s", other, app, app))
	if mounted != "PermissionDenied" {
		t.Errorf("another file at the path: %s", mounted)
	}

	// A program that was replaced since is another one.
	k.must(os.Rename(other, app))
	if got := k.as(2001, 3009, nil, socket, app); got != reportsID {
		t.Errorf("the new program: %s", got)
	}
	k.noSecrets()
}

// pair is both ends of a connection over a socket, and the peer that the accepting end sees.
func pair(t *testing.T) (client *net.UnixConn, p peer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if p, err = peerOf(conn, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.release)
	return client, p
}

// What /proc says counts only if the process that connected still is when it has been read.
func TestProgramOfTheDeadIsUnknown(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, p := pair(t)
	if p.uid != uint32(os.Getuid()) || p.pid != int32(os.Getpid()) || !p.alive() {
		t.Fatalf("the peer is %v, alive %t", p, p.alive())
	}
	if yes, known := p.runs(self); !yes || !known {
		t.Errorf("own program: %t, %t", yes, known)
	}
	if yes, known := p.runs("/bin/sh"); yes || !known {
		t.Errorf("another program: %t, %t", yes, known)
	}
	if _, known := p.runs("/nonexistent"); known {
		t.Error("a program that does not exist is known")
	}

	child := exec.Command("sleep", "600")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	dead := p
	if dead.pidfd, err = unix.PidfdOpen(child.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { dead.release() }()
	if !dead.alive() {
		t.Error("a process that lives is called dead")
	}
	child.Process.Kill()
	_ = child.Wait()
	// Its number is now this test's, so to speak: pid is ours, the pidfd is of a dead process.
	if dead.alive() {
		t.Error("a dead process is called alive")
	}
	if yes, known := dead.runs(self); yes || known {
		t.Errorf("the program of a reused number counts: %t, %t", yes, known)
	}
	none := peer{pid: p.pid, pidfd: -1}
	if _, known := none.runs(self); known {
		t.Error("without a pidfd the program is known")
	}
}

func TestSocketFile(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports")}
	socket, stop := k.serve([]Rule{me("reports")}, nil, src)
	info, err := os.Stat(socket)
	if err != nil || info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	again := func(path string) error {
		s, err := New(Config{Socket: path, Rules: []Rule{me("reports")}, Identities: []Identity{{Name: "reports", Source: src["reports"]}}})
		k.must(err)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		return s.Serve(ctx)
	}
	if err := again(socket); err == nil || !strings.Contains(err.Error(), "served by another process") {
		t.Errorf("beside another: %v", err)
	}
	stop()
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	k.must(err)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if err := again(socket); err != nil {
		t.Errorf("over a crash's socket: %v", err)
	}
	k.must(os.WriteFile(socket, []byte("mine"), 0o600))
	if err := again(socket); err == nil {
		t.Error("a file was taken for a socket")
	}
	if got, _ := os.ReadFile(socket); string(got) != "mine" {
		t.Errorf("the file is now %q", got)
	}
	k.must(os.Remove(socket))
	k.must(os.Symlink(filepath.Join(k.dir, "elsewhere"), socket))
	if err := again(socket); err == nil {
		t.Error("a link was followed")
	}
}
