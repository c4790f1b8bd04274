package relay_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/relay"
)

// TestGRPC: a gRPC client of the Go library calls a gRPC server behind a relay: one call, a stream that goes on, an error with
// its trailers, and without a token nothing.
func TestGRPC(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("unix", filepath.Join(w.dir, "orders.sock"))
	w.must(err)
	seen := make(chan metadata.MD, 10)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, rq any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		seen <- md
		return next(ctx, rq)
	}))
	lives := health.NewServer()
	healthpb.RegisterHealthServer(server, lives)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	w.identity("orders")
	r := w.relay(`
identity: {dir: DIR/orders, readonly: true}
app: {socket: DIR/orders.sock, http2: true}
internal:
  listen: 127.0.0.1:0
  routes:
    - {name: health, methods: [POST], path: "/grpc.health.v1.Health/{call}", scopes: ["orders:read"]}
`)
	id, err := countersign.NewServiceID("shop.internal", "orders")
	w.must(err)
	config := mtls.Client(w.source("reports"), mtls.Only(id))
	config.NextProtos = []string{"h2"}
	conn, err := grpc.NewClient("passthrough:///orders.shop.internal", grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.at("internal"))
		}))
	w.must(err)
	t.Cleanup(func() { conn.Close() })
	calls := healthpb.NewHealthClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	if _, err := calls.Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unauthenticated || len(seen) != 0 {
		t.Errorf("a call without a token: %v", err)
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+w.machine("reports", "orders"))
	got, err := calls.Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("a call: %v %v", got, err)
	}
	if md := <-seen; len(md.Get("authorization")) != 0 || fmt.Sprint(md.Get(relay.ClientHeader)) != "[spiffe://shop.internal/reports]" {
		t.Errorf("the server got %v", md)
	}
	if _, err := calls.Check(ctx, &healthpb.HealthCheckRequest{Service: "nothing"}); status.Code(err) != codes.NotFound {
		t.Errorf("an error of the server's: %v", err)
	}
	stream, err := calls.Watch(ctx, &healthpb.HealthCheckRequest{})
	w.must(err)
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING,
	} {
		lives.SetServingStatus("", want)
		if got, err := stream.Recv(); err != nil || got.GetStatus() != want {
			t.Fatalf("the stream gave %v %v, want %v", got, err, want)
		}
	}
}

// TestTokenEndsOnTheWay: when the token's time is over, a connection that was upgraded with it ends, and an answer that was begun
// in time goes on.
func TestTokenEndsOnTheWay(t *testing.T) {
	s := newShop(t)
	ended := make(chan error, 1)
	s.appServing(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			for range 70 { // longer than it takes to look at the token again
				if _, err := io.WriteString(w, "."); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			return
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, err = io.Copy(conn, rw)
		ended <- err
	})
	// 30 s are given to clocks that differ: it is taken for 3 s more.
	now := time.Now()
	short := s.world.users.token(t, map[string]any{"iat": now.Add(-5 * time.Minute).Unix(), "exp": now.Add(-27 * time.Second).Unix()})
	begin := func(headers ...string) *http.Response {
		rq := s.request(t, "/app")
		rq.Header.Set("Authorization", "Bearer "+short)
		for i := 0; i < len(headers); i += 2 {
			rq.Header.Set(headers[i], headers[i+1])
		}
		c := http1(s.anyone(s.gateway.at("public")))
		c.Timeout = 0
		resp, err := c.Do(rq)
		s.must(err)
		return resp
	}
	whole := begin()
	defer whole.Body.Close()
	upgraded := begin("Connection", "Upgrade", "Upgrade", "websocket")
	defer upgraded.Body.Close()
	if upgraded.StatusCode != 101 || whole.StatusCode != 200 {
		t.Fatalf("got %s and %s", upgraded.Status, whole.Status)
	}
	conn := upgraded.Body.(io.ReadWriteCloser)
	_, err := io.WriteString(conn, "word")
	s.must(err)
	if got := make([]byte, 4); true {
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "word" {
			t.Fatalf("%q came back: %v", got, err)
		}
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d more bytes came", n)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the application's side of the connection goes on")
	}
	if body, err := io.ReadAll(whole.Body); err != nil || len(body) != 70 {
		t.Errorf("the answer that was begun in time has %d bytes: %v", len(body), err)
	}
	get(t, s.users, shop+"/app", bearer(short)).want(t, 401, "CS7002")
}

// TestStalls: who sends half a body and then nothing is answered 408 and holds nothing; who does not take his answer loses it.
func TestStalls(t *testing.T) {
	s := newShop(t)
	gone := make(chan error, 2)
	s.appServing(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, err := io.Copy(io.Discard, r.Body)
			gone <- err
			return
		}
		piece := make([]byte, 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				gone <- err
				return
			}
		}
	})
	await := func(what string) {
		t.Helper()
		select {
		case err := <-gone:
			if err == nil {
				t.Errorf("%s: the application took it for whole", what)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s: the application's request goes on", what)
		}
	}
	t.Run("half a body, HTTP/1.1", func(t *testing.T) {
		conn := s.tls(t)
		defer conn.Close()
		fmt.Fprintf(conn, "POST /app HTTP/1.1\r\nHost: gateway.shop.internal\r\n%s\r\nContent-Length: 100\r\n\r\nhalf", bearer(s.token))
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		s.must(err)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestTimeout || resp.Header.Get(relay.ErrorHeader) != "CS7022" || !resp.Close {
			t.Errorf("got %s %v, close %t", resp.Status, resp.Header, resp.Close)
		}
		await("half a body")
	})
	t.Run("half a body, HTTP/2", func(t *testing.T) {
		body, more := io.Pipe()
		defer more.Close()
		go func() { _, _ = io.WriteString(more, "half") }()
		send(t, s.users, "POST", shop+"/app", body, bearer(s.token)).want(t, 408, "CS7022")
		await("half a body")
	})
	t.Run("an answer that nobody takes", func(t *testing.T) {
		conn := s.tls(t)
		defer conn.Close()
		fmt.Fprintf(conn, "GET /app HTTP/1.1\r\nHost: gateway.shop.internal\r\n%s\r\n\r\n", bearer(s.token))
		await("an answer that nobody takes")
	})
	get(t, s.users, shop+"/few", bearer(s.token)).want(t, 200, "")
}

// appServing says what the gateway's own application does at /app; elsewhere it answers.
func (s *shopFront) appServing(do http.HandlerFunc) {
	s.app.mu.Lock()
	defer s.app.mu.Unlock()
	s.app.do = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/app" {
			do(w, r)
		}
	}
}

// TestDPoP: a user's token that is bound to a key is taken at the public listener with the proof of that key, once, for this
// request; it goes on to the next service as any other user's does.
func TestDPoP(t *testing.T) {
	s := newShop(t)
	s.gateway.end()
	config := strings.NewReplacer("IDP", s.world.users.URL, "ORDERS", s.orders.at("internal"), "  users:", "  url: "+shop+"\n  users:").Replace(gatewayRelay)
	users := s.anyone(s.relay(config).at("public"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	thumbprint, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	s.must(err)
	token := s.world.users.token(t, map[string]any{"cnf": map[string]string{"jkt": base64.RawURLEncoding.EncodeToString(thumbprint)}})
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	s.must(err)
	proofs := 0
	proof := func(method, path string) string {
		proofs++
		sum := sha256.Sum256([]byte(token))
		claims, err := json.Marshal(map[string]any{
			"jti": fmt.Sprint("proof ", proofs), "htm": method, "htu": shop + path, "iat": time.Now().Unix(),
			"ath": base64.RawURLEncoding.EncodeToString(sum[:]),
		})
		s.must(err)
		signed, err := signer.Sign(claims)
		s.must(err)
		compact, err := signed.CompactSerialize()
		s.must(err)
		return "DPoP: " + compact
	}
	scheme := "Authorization: DPoP " + token

	first := proof("GET", "/app")
	get(t, users, shop+"/app", scheme, first).want(t, 200, "")
	if h := s.app.last(t).Header; h.Get("Dpop") != "" || h.Get("Authorization") != "" || h.Get(relay.UserHeader) != "ana" {
		t.Errorf("the application got %v", h)
	}
	get(t, users, shop+"/api/orders/7", scheme, proof("GET", "/api/orders/7")).want(t, 200, "")
	if h := s.ordersApp.last(t).Header; h.Get("Dpop") != "" || h.Get(relay.UserHeader) != "ana" {
		t.Errorf("orders got %v", h)
	}
	before := len(s.app.requests())
	for name, headers := range map[string][]string{
		"a proof again":     {scheme, first},
		"as a bearer token": {bearer(token), proof("GET", "/app")},
		"no proof":          {scheme},
		"another path":      {scheme, proof("GET", "/few")},
		"another method":    {scheme, proof("POST", "/app")},
		"two proofs":        {scheme, proof("GET", "/app"), proof("GET", "/app")},
		"a plain token":     {"Authorization: DPoP " + s.token, proof("GET", "/app")},
	} {
		t.Run(name, func(t *testing.T) {
			got := get(t, users, shop+"/app", headers...)
			got.want(t, 401, "CS7002")
			if len(got.Header.Values("WWW-Authenticate")) == 0 {
				t.Error("no challenge")
			}
		})
	}
	if got := len(s.app.requests()); got != before {
		t.Errorf("%d of them reached the application", got-before)
	}
}
