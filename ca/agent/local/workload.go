package local

import (
	"bytes"
	"context"
	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/countersign/countersign/ca/identity"
)

// workloadAPI is the SPIFFE Workload API. WIT-SVIDs, which it names too, are not made here: those calls are Unimplemented.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	server *Server
}

// FetchX509SVID sends the caller's certificate, key and trust anchors, and again at each change.
func (a *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	id, err := servedOf(stream.Context())
	if err != nil {
		return err
	}
	return id.each(stream.Context(), func(now *identity.Identity) error {
		key, err := x509.MarshalPKCS8PrivateKey(now.Key)
		if err != nil { // not wrapped: nothing that has seen a private key speaks
			return status.Error(codes.Internal, "the key can't be written")
		}
		return stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: now.ID.String(), X509Svid: der(now.Chain), X509SvidKey: key, Bundle: der(now.Roots), Hint: id.name,
		}}})
	})
}

// FetchX509Bundles sends the trust anchors, and again when they change.
func (a *workloadAPI) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	id, err := servedOf(stream.Context())
	if err != nil {
		return err
	}
	var sent []byte
	return id.each(stream.Context(), func(now *identity.Identity) error {
		roots := der(now.Roots)
		if bytes.Equal(roots, sent) {
			return nil
		}
		sent = roots
		return stream.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{domainID(now): roots}})
	})
}

func der(certs []*x509.Certificate) []byte {
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	return all
}

func domainID(now *identity.Identity) string { return "spiffe://" + now.ID.TrustDomain() }

// FetchJWTSVID gets a JWT-SVID of the caller from the daemon, which makes one along the edges of the call graph only.
func (a *workloadAPI) FetchJWTSVID(ctx context.Context, rq *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	id, err := servedOf(ctx)
	if err != nil {
		return nil, err
	}
	if len(rq.GetAudience()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "an audience is needed: the ID or name of a service that the call graph lets this one call")
	}
	now, err := id.source.Identity()
	if err != nil {
		return nil, a.server.failed(id, "JWT-SVID not made", err)
	}
	if want := rq.GetSpiffeId(); want != "" && want != now.ID.String() {
		return nil, status.Error(codes.PermissionDenied, "the SPIFFE ID that is asked for is not this caller's")
	}
	c, err := id.source.Client()
	if err != nil {
		return nil, a.server.failed(id, "JWT-SVID not made", err)
	}
	made, err := c.JWTSVID(ctx, rq.GetAudience())
	if err != nil {
		return nil, a.server.failed(id, "JWT-SVID not made", err)
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: now.ID.String(), Svid: made.SVID, Hint: id.name}}}, nil
}

// FetchJWTBundles sends the public keys of JWT-SVIDs, and again when they change. A key is sent for its lead before it signs.
func (a *workloadAPI) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	ctx := stream.Context()
	id, err := servedOf(ctx)
	if err != nil {
		return err
	}
	var sent []byte
	for {
		keys, changed := id.bundle.get()
		// As long as the own certificate is good, so are keys that could not be fetched anew.
		if now, err := id.source.Identity(); err == nil && keys != nil && !bytes.Equal(keys.json, sent) {
			sent = keys.json
			if err := stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{domainID(now): keys.json}}); err != nil {
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

// ValidateJWTSVID tells who a JWT-SVID is by and what it claims, if it is good for the audience.
func (a *workloadAPI) ValidateJWTSVID(ctx context.Context, rq *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	id, err := servedOf(ctx)
	if err != nil {
		return nil, err
	}
	if rq.GetAudience() == "" || rq.GetSvid() == "" || len(rq.GetSvid()) > maxToken {
		return nil, status.Errorf(codes.InvalidArgument, "audience and svid are needed, the svid of at most %d bytes", maxToken)
	}
	now, err := id.source.Identity()
	if err != nil {
		return nil, a.server.failed(id, "JWT-SVID not judged", err)
	}
	keys, err := id.bundle.wait(ctx)
	if err != nil {
		return nil, a.server.failed(id, "JWT-SVID not judged", err)
	}
	svid, err := validate(now, keys, rq)
	if err != nil && id.bundle.again(ctx, keys) { // by a key that came without its lead
		if keys, err = id.bundle.wait(ctx); err == nil {
			svid, err = validate(now, keys, rq)
		}
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the JWT-SVID is not good for this audience")
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the claims of the JWT-SVID can't be passed on")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

func validate(now *identity.Identity, keys *jwtKeys, rq *workload.ValidateJWTSVIDRequest) (*jwtsvid.SVID, error) {
	domain, err := spiffeid.TrustDomainFromString(now.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	return jwtsvid.ParseAndValidate(rq.GetSvid(), jwtbundle.FromJWTAuthorities(domain, keys.keys), []string{rq.GetAudience()})
}
