package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/ca/mtls"
)

// maxMessage bounds what is received: a JWT-SVID to validate is the largest honest message.
const maxMessage = 64 << 10

// newGRPC puts the gRPC services together. They are served through net/http, whose write deadlines end a stream that its
// reader does not read.
func (s *Server) newGRPC() *grpc.Server {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.UnaryInterceptor(func(ctx context.Context, rq any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (out any, err error) {
			defer s.survive(&err)
			if err := checkSecurityHeader(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, rq)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer s.survive(&err)
			if err := checkSecurityHeader(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(server, &workloadAPI{server: s})
	secret.RegisterSecretDiscoveryServiceServer(server, &secrets{server: s})
	return server
}

// survive makes a panic one failed call.
func (s *Server) survive(err *error) {
	if p := recover(); p != nil {
		s.log.Error("local API: panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error")
	}
}

// checkSecurityHeader demands what no forwarding of a browser's or an app's request brings along (SPIFFE Workload Endpoint 4.1).
func checkSecurityHeader(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, "/SpiffeWorkloadAPI/") {
		return nil
	}
	if values := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"); len(values) != 1 || values[0] != "true" {
		return status.Error(codes.InvalidArgument, "the metadata workload.spiffe.io: true is needed, once")
	}
	return nil
}

type servedKey struct{}

// serveGRPC hands one call of id's caller to gRPC.
func (s *Server) serveGRPC(w http.ResponseWriter, r *http.Request, id *served) {
	controller := http.NewResponseController(w)
	if r.URL.Path != secret.SecretDiscoveryService_StreamSecrets_FullMethodName && r.URL.Path != secret.SecretDiscoveryService_DeltaSecrets_FullMethodName {
		_ = controller.SetReadDeadline(time.Now().Add(bodyTime))
	}
	flusher, ok := w.(http.Flusher)
	if !ok {
		refuseGRPC(w, codes.Internal, "internal error")
		return
	}
	s.grpc.ServeHTTP(&deadlineWriter{w, flusher, controller, s.writeTime}, r.WithContext(context.WithValue(r.Context(), servedKey{}, id)))
}

// deadlineWriter gives the reader of each message so long: who reads slowly, or not at all, loses the stream.
type deadlineWriter struct {
	http.ResponseWriter
	flusher    http.Flusher
	controller *http.ResponseController
	time       time.Duration
}

// Write implements io.Writer.
func (w *deadlineWriter) Write(p []byte) (int, error) {
	_ = w.controller.SetWriteDeadline(time.Now().Add(w.time))
	n, err := w.ResponseWriter.Write(p)
	return n, err
}

// Flush implements http.Flusher.
func (w *deadlineWriter) Flush() {
	_ = w.controller.SetWriteDeadline(time.Now().Add(w.time))
	w.flusher.Flush()
	_ = w.controller.SetWriteDeadline(time.Time{})
}

// Unwrap lets [http.ResponseController] find what is beneath.
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func servedOf(ctx context.Context) (*served, error) {
	id, ok := ctx.Value(servedKey{}).(*served)
	if !ok {
		return nil, status.Error(codes.PermissionDenied, "no identity is for this caller")
	}
	return id, nil
}

// each calls send with the caller's identity as it is now and after every change, until ctx ends. While there is no valid
// certificate it waits: the caller gets one as soon as there is.
func (id *served) each(ctx context.Context, send func(*identity.Identity) error) error {
	for {
		changed := id.source.Changed()
		if now, err := id.source.Identity(); err == nil {
			if err := send(now); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-id.stopping:
			return stopped()
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

func stopped() error { return status.Error(codes.Unavailable, "the agent ends; ask again") }

// ended is what a stream's client is told when its own context ends.
func ended(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, "the deadline of the call has come")
	}
	return status.Error(codes.Unavailable, "the call ends")
}

// failed is what a caller is told of an error of the authority or the source. Causes go to the log only.
func (s *Server) failed(id *served, what string, err error) error {
	var refused *client.APIError
	switch {
	case errors.As(err, &refused) && (refused.Code() == countersign.CodeSVIDCall || refused.Code() == countersign.CodeServiceDisabled):
		return status.Error(codes.PermissionDenied, refused.Error())
	case errors.As(err, &refused) && refused.Code() == countersign.CodeSVIDAudience:
		return status.Error(codes.InvalidArgument, refused.Error())
	case errors.Is(err, mtls.ErrExpired), errors.Is(err, mtls.ErrNone):
		return status.Error(codes.Unavailable, "there is no valid certificate at the moment")
	}
	s.log.Warn("local API: "+what, "identity", id.name, "error", err)
	return status.Error(codes.Unavailable, "the authority can't be asked at the moment")
}
