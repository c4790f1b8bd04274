package local

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/ca/mtls"
)

// A user has so many connections and calls; what is over that is refused, and nobody else is the worse for it.
func TestFloods(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports")}
	app := k.program("app")
	socket, _ := k.serve([]Rule{me("reports"), {UID: uid(2001), Identity: "reports"}}, func(_ *Server, cfg *Config) {
		cfg.Limits = Limits{PerUser: 8, Streams: 4}
	}, src)
	api := workload.NewSpiffeWorkloadAPIClient(k.dial(socket))
	ctx := secured(k.within(wait))
	open := func() (grpc.ServerStreamingClient[workload.X509SVIDResponse], error) {
		stream, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		k.must(err)
		_, err = stream.Recv()
		return stream, err
	}
	for i := range 4 {
		if _, err := open(); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	// The own transport may have as many streams as the server's setting; another connection has its own.
	other := workload.NewSpiffeWorkloadAPIClient(k.dial(socket))
	stream, err := other.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	k.must(err)
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the fifth call: %v", err)
	}
	if code, body := k.curl(socket, "-X", "POST", "http://localhost/exchange?audience=x"); code != http.StatusTooManyRequests {
		t.Errorf("/exchange beyond the limit: %d %s", code, body)
	}
	if got := k.as(2001, 3001, nil, socket, app); got != reportsID {
		t.Errorf("another user: %s", got)
	}

	var held []net.Conn
	refused := 0
	for range 40 {
		conn, err := net.Dial("unix", socket)
		k.must(err)
		defer conn.Close()
		k.must(conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			held = append(held, conn)
		} else {
			refused++
		}
	}
	if len(held) > 8 || refused < 30 {
		t.Errorf("%d connections are held, %d refused", len(held), refused)
	}
	if got := k.as(2001, 3001, nil, socket, app); got != reportsID {
		t.Errorf("another user beside the connections: %s", got)
	}
	for _, conn := range held {
		conn.Close()
	}
	k.eventually("the user may connect again", func() bool {
		conn, err := net.Dial("unix", socket)
		k.must(err)
		defer conn.Close()
		k.must(conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
		_, err = conn.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	})
	if lines := strings.Count(k.log.String(), "as many connections"); lines == 0 || lines > 10 {
		t.Errorf("%d lines of the flood", lines)
	}
}

// frames is a client of HTTP/2 that does not read.
type frames struct {
	*http2.Framer
	conn net.Conn
}

func (k *kit) frames(socket string) frames {
	k.Helper()
	conn, err := net.Dial("unix", socket)
	k.must(err)
	k.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, http2.ClientPreface)
	k.must(err)
	return frames{http2.NewFramer(conn, conn), conn}
}

// call begins one call with an empty message.
func (f frames) call(k *kit, method string) {
	k.Helper()
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"},
		{"workload.spiffe.io", "true"},
	} {
		k.must(encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	k.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true}))
	k.must(f.WriteData(1, true, make([]byte, 5)))
}

// reset waits for the end of stream 1.
func (f frames) reset(k *kit) {
	k.Helper()
	k.must(f.conn.SetReadDeadline(time.Now().Add(wait)))
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				k.Errorf("the stream is not ended: %v", err)
			}
			return
		}
		if _, ok := frame.(*http2.RSTStreamFrame); ok {
			return
		}
		if _, ok := frame.(*http2.DataFrame); ok {
			k.Errorf("data was sent without a window")
		}
	}
}

// Who does not read loses his stream, and its place.
func TestSlowReaders(t *testing.T) {
	k := newKit(t)
	var server *Server
	socket, _ := k.serve([]Rule{me("reports")}, func(s *Server, _ *Config) {
		if s != nil {
			s.writeTime, server = 200*time.Millisecond, s
		}
	}, map[string]*mtls.Source{"reports": k.source("reports")})
	for _, method := range []string{workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName, workload.SpiffeWorkloadAPI_FetchX509Bundles_FullMethodName} {
		f := k.frames(socket)
		k.must(f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
		f.call(k, method)
		f.reset(k)
	}
	k.eventually("the calls' places are free", func() bool {
		server.calls.mu.Lock()
		defer server.calls.mu.Unlock()
		return len(server.calls.taken) == 0
	})
}

// A stream that waits for the first certificate gets it as soon as there is one; calls that can't wait say so.
func TestNoIdentityYet(t *testing.T) {
	k := newKit(t)
	dir := filepath.Join(k.dir, "identity")
	late, err := mtls.Open(t.Context(), mtls.Config{Dir: dir, ReadOnly: true})
	k.must(err)
	defer late.Close()
	socket, _ := k.serve([]Rule{me("reports")}, nil, map[string]*mtls.Source{"reports": late})
	stream, err := workload.NewSpiffeWorkloadAPIClient(k.dial(socket)).FetchX509SVID(secured(k.within(wait)), &workload.X509SVIDRequest{})
	k.must(err)
	k.unavailable(socket)
	own, err := k.source("reports").Identity()
	k.must(err)
	k.must(identity.Write(dir, identity.Bundle{Key: own.Key, Chain: own.Chain, Roots: own.Roots, Server: own.Server}))
	got, err := stream.Recv()
	if err != nil || got.GetSvids()[0].GetSpiffeId() != reportsID {
		t.Errorf("%v, %v", got, err)
	}
}

// unavailable holds that what can't wait says that there is no valid certificate.
func (k *kit) unavailable(socket string) {
	k.Helper()
	conn := k.dial(socket)
	api, ctx := workload.NewSpiffeWorkloadAPIClient(conn), secured(k.within(wait))
	_, fetch := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{ordersID}})
	_, validate := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: ordersID, Svid: "a.b.c"})
	_, secrets := secret.NewSecretDiscoveryServiceClient(conn).FetchSecrets(ctx, &discovery.DiscoveryRequest{})
	for name, err := range map[string]error{"FetchJWTSVID": fetch, "ValidateJWTSVID": validate, "FetchSecrets": secrets} {
		if status.Code(err) != codes.Unavailable {
			k.Errorf("%s: %v", name, err)
		}
	}
	code, body := k.curl(socket, "-X", "POST", "-H", "Authorization: Bearer x", "http://localhost/exchange?audience=inventory")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "no valid certificate") {
		k.Errorf("/exchange: %d %s", code, body)
	}
}

// A certificate that is over is given to nobody.
func TestExpiredIdentity(t *testing.T) {
	k := newKit(t)
	dir := filepath.Join(k.dir, "identity")
	own, err := k.source("reports").Identity()
	k.must(err)
	k.must(identity.Write(dir, identity.Bundle{Key: own.Key, Chain: own.Chain, Roots: own.Roots, Server: own.Server}))
	over, err := mtls.Open(t.Context(), mtls.Config{Dir: dir, ReadOnly: true, Now: func() time.Time { return time.Now().Add(48 * time.Hour) }})
	k.must(err)
	defer over.Close()
	socket, _ := k.serve([]Rule{me("reports")}, nil, map[string]*mtls.Source{"reports": over})
	k.unavailable(socket)
	ctx := secured(k.within(300 * time.Millisecond))
	stream, err := workload.NewSpiffeWorkloadAPIClient(k.dial(socket)).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	k.must(err)
	if got, err := stream.Recv(); err == nil {
		t.Errorf("it is given: %v", got.GetSvids()[0].GetSpiffeId())
	}
}

// Without the daemon, what the agent has serves on, and what only the daemon can do is refused.
func TestWithoutTheDaemon(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	first, _ := k.serve([]Rule{me("reports")}, nil, src)
	second, _ := k.serve([]Rule{me("orders")}, nil, src)
	svid, err := workloadapi.FetchJWTSVID(k.within(wait), jwtsvid.Params{Audience: ordersID}, at(first))
	k.must(err)
	_, err = workloadapi.ValidateJWTSVID(k.within(wait), svid.Marshal(), ordersID, at(second))
	k.must(err)
	k.stop()
	if _, err := workloadapi.FetchJWTSVID(k.within(wait), jwtsvid.Params{Audience: ordersID}, at(first)); status.Code(err) != codes.Unavailable {
		t.Errorf("a JWT-SVID without the daemon: %v", err)
	}
	if judged, err := workloadapi.ValidateJWTSVID(k.within(wait), svid.Marshal(), ordersID, at(second)); err != nil || judged.ID.String() != reportsID {
		t.Errorf("validated without the daemon: %v", err)
	}
	if got, err := workloadapi.FetchX509SVID(k.within(wait), at(first)); err != nil || got.ID.String() != reportsID {
		t.Errorf("a certificate without the daemon: %v", err)
	}
	if code, body := k.curl(first, "-X", "POST", "-H", "Authorization: Bearer x", "http://localhost/exchange?audience=orders"); code != http.StatusServiceUnavailable || strings.Contains(body, "127.0.0.1") {
		t.Errorf("/exchange without the daemon: %d %s", code, body)
	}
}

// The end of the agent ends its streams with a word, and leaves nothing behind.
func TestStop(t *testing.T) {
	k := newKit(t)
	socket, stop := k.serve([]Rule{me("reports")}, nil, map[string]*mtls.Source{"reports": k.source("reports")})
	stream, err := workload.NewSpiffeWorkloadAPIClient(k.dial(socket)).FetchX509SVID(secured(k.within(wait)), &workload.X509SVIDRequest{})
	k.must(err)
	_, err = stream.Recv()
	k.must(err)
	secrets, err := secret.NewSecretDiscoveryServiceClient(k.dial(socket)).StreamSecrets(k.within(wait))
	k.must(err)
	k.must(secrets.Send(&discovery.DiscoveryRequest{}))
	_, err = secrets.Recv()
	k.must(err)
	stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of a certificate: %v", err)
	}
	if _, err := secrets.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of secrets: %v", err)
	}
}

// gRPC of another service, HTTP/2 that is no gRPC, and what is no HTTP at all.
func TestOtherProtocols(t *testing.T) {
	k := newKit(t)
	socket, _ := k.serve([]Rule{me("reports")}, nil, map[string]*mtls.Source{"reports": k.source("reports")})
	if err := k.dial(socket).Invoke(k.within(wait), "/grpc.health.v1.Health/Check", &discovery.DiscoveryRequest{}, &discovery.DiscoveryResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("another service: %v", err)
	}
	if code, _ := k.curl(socket, "--http2-prior-knowledge", "-X", "POST", "http://localhost/SpiffeWorkloadAPI/FetchX509SVID"); code != http.StatusNotFound {
		t.Errorf("HTTP/2 without gRPC: %d", code)
	}
	if code, _ := k.curl(socket, "-X", "POST", "-H", "Content-Type: application/grpc", "http://localhost/SpiffeWorkloadAPI/FetchX509SVID"); code != http.StatusNotFound {
		t.Errorf("gRPC over HTTP/1.1: %d", code)
	}
	conn, err := net.Dial("unix", socket)
	k.must(err)
	defer conn.Close()
	_, err = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and what else a TLS client says\r\n\r\n")
	k.must(err)
	k.must(conn.SetReadDeadline(time.Now().Add(wait)))
	if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "400") {
		t.Errorf("TLS: %q, %v", answer, err)
	}
}
