package local

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv("LOCAL_TEST_PEER"); socket != "" {
		os.Exit(beAPeer(socket))
	}
	goleak.VerifyTestMain(m)
}

const (
	domain      = "shop.internal"
	reportsID   = "spiffe://shop.internal/reports"
	ordersID    = "spiffe://shop.internal/orders"
	inventoryID = "spiffe://shop.internal/inventory"
)

const testPolicy = `trust_domain: shop.internal
services: [{name: reports}, {name: orders}, {name: inventory}]
calls:
  - from: reports
    to: orders
    scopes: [{name: "orders:read"}]
    machine: ["orders:read"]
  - from: orders
    to: inventory
    scopes: [{name: "stock:read", needs: ["orders:read"]}]
    machine: ["stock:read"]
`

// logs is what a server wrote into its log.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// kit is a daemon of real parts in this process, with its own listeners, and what hangs on it.
type kit struct {
	*testing.T
	dir   string // that other users may walk through
	admin *client.Client
	log   *logs
	stop  func() // of the daemon
}

func (k *kit) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{T: t, log: &logs{}}
	var err error
	k.dir, err = os.MkdirTemp("", "local-")
	k.must(err)
	t.Cleanup(func() { os.RemoveAll(k.dir) })
	k.must(os.Chmod(k.dir, 0o755))
	k.startDaemon()
	_, err = k.admin.ApplyPolicy(t.Context(), []byte(testPolicy), client.ApplyOptions{})
	k.must(err)
	return k
}

func (k *kit) startDaemon() {
	k.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	k.must(err)
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	dir := daemon.Dir(filepath.Join(k.dir, "daemon"))
	o := daemon.InitOptions{Dir: dir, Domain: domain, Listen: "127.0.0.1:" + port, DNS: []string{"localhost"}, Config: func(c *daemon.Config) {
		c.Ops.Listen, c.Token.Lead = "127.0.0.1:0", daemon.Duration(2*time.Second)
		c.Audit.Reserve, c.Audit.Segment = 0, 1<<20
	}}
	_, err = daemon.Init(k.Context(), o)
	k.must(err)
	loaded, err := daemon.Load(string(dir), daemon.LoadOptions{})
	k.must(err)
	o.Config(&loaded.Config)
	d, err := daemon.Start(k.Context(), daemon.Options{Dir: dir, Config: loaded.Config, Version: "test", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	k.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	k.stop = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			k.Errorf("the daemon: %v", err)
		}
	})
	k.Cleanup(k.stop)
	socket, err := dir.Socket()
	k.must(err)
	k.admin, err = client.New(client.Config{Socket: socket})
	k.must(err)
	k.Cleanup(k.admin.Close)
}

// source joins service and keeps its identity.
func (k *kit) source(service string) *mtls.Source {
	k.Helper()
	token, err := k.admin.CreateJoinToken(k.Context(), wire.JoinTokenRequest{Service: service, TTL: countersign.Duration(time.Hour)})
	k.must(err)
	src, err := mtls.Open(k.Context(), mtls.Config{Join: token.Join, Logger: slog.New(slog.NewTextHandler(k.log, nil))})
	k.must(err)
	k.Cleanup(func() { src.Close() })
	ctx, cancel := context.WithTimeout(k.Context(), 20*time.Second)
	defer cancel()
	k.must(src.Wait(ctx))
	return src
}

func uid(n uint32) *uint32 { return &n }

// me is a rule for this process.
func me(identity string) Rule { return Rule{UID: uid(uint32(os.Getuid())), Identity: identity} }

// serve serves the identities under rules, and gives the path of the socket and how to stop. change may be nil.
func (k *kit) serve(rules []Rule, change func(*Server, *Config), sources map[string]*mtls.Source) (socket string, stop func()) {
	k.Helper()
	dir, err := os.MkdirTemp(k.dir, "api-")
	k.must(err)
	k.must(os.Chmod(dir, 0o755))
	cfg := Config{Socket: filepath.Join(dir, "agent.sock"), Rules: rules, Logger: slog.New(slog.NewTextHandler(k.log, nil))}
	for name, src := range sources {
		cfg.Identities = append(cfg.Identities, Identity{Name: name, Source: src})
	}
	if change != nil {
		change(nil, &cfg)
	}
	s, err := New(cfg)
	k.must(err)
	if change != nil {
		change(s, &cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			k.Errorf("Serve: %v", err)
		}
	})
	k.Cleanup(stop)
	k.eventually("the socket is served", func() bool {
		conn, err := net.Dial("unix", cfg.Socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return cfg.Socket, stop
}

// eventually waits for what other goroutines bring about. The bound is for a broken program only.
func (k *kit) eventually(what string, ok func() bool) {
	k.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	k.Fatalf("it does not come about that %s; the log:\n%s", what, k.log)
}

func (k *kit) dial(socket string) *grpc.ClientConn {
	k.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	k.must(err)
	k.Cleanup(func() { conn.Close() })
	return conn
}

// noSecrets holds the log to be free of what must not be in it.
func (k *kit) noSecrets(secrets ...string) {
	k.Helper()
	text := k.log.String()
	for _, s := range append(secrets, "PRIVATE KEY", "Bearer ey") {
		if strings.Contains(text, s) {
			k.Errorf("the log holds %.20q", s)
		}
	}
}

func (k *kit) within(d time.Duration) context.Context {
	k.Helper()
	ctx, cancel := context.WithTimeout(k.Context(), d)
	k.Cleanup(cancel)
	return ctx
}
