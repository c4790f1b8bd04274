// Package grpcverify is sts/verify for gRPC servers: interceptors that verify the token of each call. It never decides about a
// token itself: the verifier does. It is apart so that who does not use gRPC does not pay for it.
package grpcverify

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/sts/verify"
)

// Config says who may call what. A method, by its full name "/package.Service/Method", that stands in neither map nor list is
// refused, so that a new one is not open by accident.
type Config struct {
	Verifier *verify.Verifier
	Scopes   map[string][]string // all that the token must have; none: any good token
	Public   []string            // methods that need no token, like those of the health service
	Logger   *slog.Logger        // of refusals; nil: nothing is logged
}

// Guard makes the interceptors. It is safe for concurrent use.
type Guard struct {
	verifier *verify.Verifier
	scopes   map[string][]string
	public   []string
	log      *slog.Logger
}

// New checks the configuration. A method can't be both public and in need of scopes.
func New(cfg Config) (*Guard, error) {
	if cfg.Verifier == nil {
		return nil, errors.New("grpcverify: Verifier is required")
	}
	g := &Guard{verifier: cfg.Verifier, scopes: maps.Clone(cfg.Scopes), public: slices.Clone(cfg.Public), log: cfg.Logger}
	for _, name := range g.public {
		if _, twice := g.scopes[name]; twice {
			return nil, errors.New("grpcverify: " + name + " is public and has scopes")
		}
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	return g, nil
}

// Unary verifies the token of each call and hands the claims on in its context: [verify.FromContext].
func (g *Guard) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// Stream does the same when a stream begins. A stream may outlive its token: end it in time if that matters, by the Expires of
// the claims.
func (g *Guard) Stream() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := g.admit(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return handler(srv, admitted{stream, ctx})
	}
}

type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (a admitted) Context() context.Context { return a.ctx }

func (g *Guard) admit(ctx context.Context, method string) (context.Context, error) {
	if slices.Contains(g.public, method) {
		return ctx, nil
	}
	scopes, known := g.scopes[method]
	if !known {
		g.log.Warn("a call was refused", "method", method, "reason", "the method is not in the configuration")
		return nil, status.Error(codes.PermissionDenied, "access_denied")
	}
	r := requestOf(ctx, method)
	claims, err := g.verifier.VerifyRequest(r)
	if err == nil {
		err = claims.RequireScope(scopes...)
	}
	if err != nil {
		return nil, g.refuse(ctx, method, err)
	}
	return g.verifier.NewContext(r, claims), nil
}

// requestOf is the HTTP request that a call is (gRPC over HTTP/2: a POST of the method's name), as far as verifying needs it: the
// headers Authorization and DPoP, and the connection.
func requestOf(ctx context.Context, method string) *http.Request {
	r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: method}, Header: http.Header{}}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, name := range []string{"Authorization", "DPoP"} {
		for _, value := range md.Get(name) {
			r.Header.Add(name, value)
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	return r.WithContext(ctx)
}

// refuse makes the status: the standard word and nothing else. The reason goes to the log. A nonce that
// a proof has to be made with is in the response's header metadata.
func (g *Guard) refuse(ctx context.Context, method string, err error) error {
	var e *verify.Error
	if !errors.As(err, &e) {
		e = &verify.Error{Msg: "the call could not be verified", Err: err}
	}
	g.log.Info("a call was refused", "method", method, "reason", string(e.Reason), "error", e)
	switch {
	case e.Temporary():
		return status.Error(codes.Unavailable, "temporarily_unavailable")
	case e.Reason == verify.ReasonScope:
		return status.Error(codes.PermissionDenied, "insufficient_scope")
	case e.Reason == verify.ReasonCredential:
		return status.Error(codes.Unauthenticated, "a token is needed")
	case e.Reason == verify.ReasonRequest:
		return status.Error(codes.InvalidArgument, "invalid_request")
	case e.Reason == verify.ReasonNonce:
		if err := grpc.SetHeader(ctx, metadata.Pairs("dpop-nonce", g.verifier.Nonce())); err != nil {
			g.log.Warn("a nonce could not be sent", "method", method, "error", err)
		}
		return status.Error(codes.Unauthenticated, "use_dpop_nonce")
	case e.Reason == verify.ReasonProof:
		return status.Error(codes.Unauthenticated, "invalid_dpop_proof")
	}
	return status.Error(codes.Unauthenticated, "invalid_token")
}
