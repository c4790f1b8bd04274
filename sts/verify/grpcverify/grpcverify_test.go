package grpcverify_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/sts/verify"
	"github.com/countersign/countersign/sts/verify/grpcverify"
)

const (
	check = grpc_health_v1.Health_Check_FullMethodName
	watch = grpc_health_v1.Health_Watch_FullMethodName
)

// stock stands for a service of one's own: gRPC's health service, which knows who asks.
type stock struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (stock) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if claims, ok := verify.FromContext(ctx); ok {
		fmt.Println(claims.User(), "by", claims.Actor())
	}
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

func (stock) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	if _, ok := verify.FromContext(stream.Context()); !ok {
		return status.Error(codes.Internal, "no claims")
	}
	return stream.Send(&grpc_health_v1.HealthCheckResponse{})
}

// serve starts a server with the guard and returns a client of it, and what ends both.
func serve(guard *grpcverify.Guard, server, client credentials.TransportCredentials) (grpc_health_v1.HealthClient, func(), error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	s := grpc.NewServer(grpc.Creds(server), grpc.ChainUnaryInterceptor(guard.Unary()), grpc.ChainStreamInterceptor(guard.Stream()))
	grpc_health_v1.RegisterHealthServer(s, stock{})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }() // ends by Stop
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(client))
	if err != nil {
		s.Stop()
		return nil, nil, err
	}
	return grpc_health_v1.NewHealthClient(conn), func() { _ = conn.Close(); s.Stop(); <-done }, nil
}

func with(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// A gRPC server that takes relay tokens for inventory. authority stands for the company's Countersign.
func Example() {
	authority := newAuthority()
	defer authority.Close()
	v, err := verify.New(verify.Config{Issuer: authority.URL, Audience: "inventory", Roots: authority.roots()})
	if err != nil {
		fmt.Println(err)
		return
	}
	guard, err := grpcverify.New(grpcverify.Config{Verifier: v, Scopes: map[string][]string{
		"/grpc.health.v1.Health/Check": {"stock:read"},
		"/grpc.health.v1.Health/Watch": {"stock:watch"},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	// grpc.NewServer(grpc.ChainUnaryInterceptor(guard.Unary()), grpc.ChainStreamInterceptor(guard.Stream()))
	client, stop, err := serve(guard, insecure.NewCredentials(), insecure.NewCredentials())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()
	ctx := with(context.Background(), authority.token())
	if _, err := client.Check(ctx, nil); err != nil {
		fmt.Println(err)
	}
	stream, err := client.Watch(ctx, nil)
	if err == nil {
		_, err = stream.Recv()
	}
	fmt.Println(err)
	// Output:
	// alice by spiffe://shop.internal/orders
	// rpc error: code = PermissionDenied desc = insufficient_scope
}

func TestGuard(t *testing.T) {
	a := newAuthority()
	defer a.Close()
	v, err := verify.New(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: a.roots()})
	if err != nil {
		t.Fatal(err)
	}
	run := func(cfg grpcverify.Config) grpc_health_v1.HealthClient {
		t.Helper()
		cfg.Verifier = v
		guard, err := grpcverify.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		client, stop, err := serve(guard, insecure.NewCredentials(), insecure.NewCredentials())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		return client
	}
	want := func(client grpc_health_v1.HealthClient, ctx context.Context, code codes.Code, msg string) {
		t.Helper()
		_, unary := client.Check(ctx, nil)
		stream, err := client.Watch(ctx, nil)
		if err == nil {
			_, err = stream.Recv()
		}
		for _, err := range []error{unary, err} {
			if s := status.Convert(err); s.Code() != code || s.Message() != msg {
				t.Errorf("got %v, want %s %q", err, code, msg)
			}
		}
	}
	read := run(grpcverify.Config{Scopes: map[string][]string{check: {"stock:read"}, watch: nil}})
	want(read, with(t.Context(), a.token()), codes.OK, "")
	want(read, t.Context(), codes.Unauthenticated, "a token is needed")
	want(read, with(with(t.Context(), a.token()), a.token()), codes.InvalidArgument, "invalid_request")
	want(read, with(t.Context(), a.token("aud", "orders")), codes.Unauthenticated, "invalid_token")
	want(read, with(t.Context(), "opaque"), codes.Unauthenticated, "invalid_token")
	want(read, with(t.Context(), a.token("cnf", map[string]any{"x5t#S256": "abc"})), codes.Unauthenticated, "invalid_token")
	write := run(grpcverify.Config{Scopes: map[string][]string{check: {"stock:write"}, watch: {"stock:read", "stock:write"}}})
	want(write, with(t.Context(), a.token()), codes.PermissionDenied, "insufficient_scope")
	want(run(grpcverify.Config{}), with(t.Context(), a.token()), codes.PermissionDenied, "access_denied")
	if _, err := run(grpcverify.Config{Public: []string{check}}).Check(t.Context(), nil); err != nil {
		t.Error(err)
	}
	for _, cfg := range []grpcverify.Config{{}, {Verifier: v, Public: []string{check}, Scopes: map[string][]string{check: nil}}} {
		if _, err := grpcverify.New(cfg); err == nil {
			t.Errorf("%+v: taken", cfg)
		}
	}
	down, err := verify.New(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: x509.NewCertPool()})
	if err != nil {
		t.Fatal(err)
	}
	v = down
	want(run(grpcverify.Config{Scopes: map[string][]string{check: nil, watch: nil}}), with(t.Context(), a.token()), codes.Unavailable, "temporarily_unavailable")
}

// selfSigned is a client certificate that is its own root.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestBound: the certificate of the gRPC connection is what a bound token is compared with.
func TestBound(t *testing.T) {
	a := newAuthority()
	defer a.Close()
	v, err := verify.New(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: a.roots()})
	if err != nil {
		t.Fatal(err)
	}
	guard, err := grpcverify.New(grpcverify.Config{Verifier: v, Scopes: map[string][]string{check: nil, watch: nil}})
	if err != nil {
		t.Fatal(err)
	}
	own := selfSigned(t)
	clients := x509.NewCertPool()
	clients.AddCert(own.Leaf)
	sum := sha256.Sum256(own.Certificate[0])
	token := a.token("cnf", map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])})
	for name, tt := range map[string]struct {
		auth tls.ClientAuthType
		cert []tls.Certificate
		want codes.Code
	}{
		"its certificate":  {tls.RequireAndVerifyClientCert, []tls.Certificate{own}, codes.OK},
		"not verified":     {tls.RequireAnyClientCert, []tls.Certificate{own}, codes.Unauthenticated},
		"none":             {tls.VerifyClientCertIfGiven, nil, codes.Unauthenticated},
		"not even TLS":     {-1, nil, codes.Unauthenticated},
		"asked for by TLS": {tls.VerifyClientCertIfGiven, []tls.Certificate{own}, codes.OK},
	} {
		server, client := insecure.NewCredentials(), insecure.NewCredentials()
		if tt.auth >= 0 {
			server = credentials.NewTLS(&tls.Config{Certificates: a.TLS.Certificates, ClientAuth: tt.auth, ClientCAs: clients, MinVersion: tls.VersionTLS13})
			client = credentials.NewTLS(&tls.Config{Certificates: tt.cert, RootCAs: a.roots(), MinVersion: tls.VersionTLS13})
		}
		c, stop, err := serve(guard, server, client)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Check(with(t.Context(), token), nil); status.Code(err) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
		stop()
	}
}
