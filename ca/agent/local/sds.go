package local

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/countersign/countersign/ca/identity"
)

// The names of resources, as SPIRE's agent has them; the caller's ID and its trust domain's name the same.
const (
	nameOwn   = "default" // certificate and key
	nameRoots = "ROOTCA"  // trust anchors
	nameAll   = "ALL"     // trust anchors for Envoy's SPIFFE validator
)

const (
	secretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	maxNames     = 64
	maxNameBytes = 512
)

// secrets is Envoy's secret discovery service. What the sent node says of itself counts for nothing.
type secrets struct {
	secret.UnimplementedSecretDiscoveryServiceServer
	server *Server
}

// FetchSecrets answers once.
func (d *secrets) FetchSecrets(ctx context.Context, rq *discovery.DiscoveryRequest) (*discovery.DiscoveryResponse, error) {
	id, err := servedOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkSubscription(rq.GetTypeUrl(), rq.GetResourceNames()); err != nil {
		return nil, err
	}
	now, err := id.source.Identity()
	if err != nil {
		return nil, d.server.failed(id, "secrets not sent", err)
	}
	all, version, err := resourcesOf(now, rq.GetResourceNames())
	if err != nil {
		return nil, err
	}
	return &discovery.DiscoveryResponse{VersionInfo: version, TypeUrl: secretType, Resources: contents(all)}, nil
}

// checkSubscription refuses what can't be meant. It is pure.
func checkSubscription(typeURL string, names []string) error {
	if typeURL != "" && typeURL != secretType {
		return status.Error(codes.InvalidArgument, "secrets are the only resources here: "+secretType)
	}
	if len(names) > maxNames || slices.ContainsFunc(names, func(n string) bool { return len(n) > maxNameBytes }) {
		return status.Errorf(codes.InvalidArgument, "at most %d names of %d bytes are taken", maxNames, maxNameBytes)
	}
	return nil
}

// resource is one secret under the name by which it was asked for.
type resource struct {
	name, version string
	any           *anypb.Any
}

func contents(all []resource) []*anypb.Any {
	var out []*anypb.Any
	for _, r := range all {
		out = append(out, r.any)
	}
	return out
}

// resourcesOf are the secrets of now that names mean; no names mean the own certificate and the trust anchors. Names that are
// not this caller's are left out, as those that do not exist. version is a digest of all. It is pure.
func resourcesOf(now *identity.Identity, names []string) (all []resource, version string, err error) {
	if len(names) == 0 {
		names = []string{nameOwn, nameRoots}
	}
	sum := sha256.New()
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		s, err := secretOf(now, name)
		if err != nil {
			return nil, "", err
		}
		if s == nil {
			continue
		}
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
		if err != nil {
			return nil, "", status.Error(codes.Internal, "the secret can't be written")
		}
		digest := sha256.Sum256(raw)
		sum.Write(digest[:])
		all = append(all, resource{name: name, version: hex.EncodeToString(digest[:8]), any: &anypb.Any{TypeUrl: secretType, Value: raw}})
	}
	return all, hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// secretOf is the secret that name means to the caller whose identity is now; nil: none.
func secretOf(now *identity.Identity, name string) (*tlsv3.Secret, error) {
	switch name {
	case nameOwn, now.ID.String():
		key, err := x509.MarshalPKCS8PrivateKey(now.Key)
		if err != nil { // not wrapped: nothing that has seen a private key speaks
			return nil, status.Error(codes.Internal, "the key can't be written")
		}
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(pemOf("CERTIFICATE", raw(now.Chain)...)),
			PrivateKey:       inline(pemOf("PRIVATE KEY", key)),
		}}}, nil
	case nameRoots, domainID(now):
		return validation(name, &tlsv3.CertificateValidationContext{TrustedCa: inline(pemOf("CERTIFICATE", raw(now.Roots)...))}), nil
	case nameAll:
		config, err := anypb.New(&tlsv3.SPIFFECertValidatorConfig{TrustDomains: []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{{
			Name: now.ID.TrustDomain(), TrustBundle: inline(pemOf("CERTIFICATE", raw(now.Roots)...)),
		}}})
		if err != nil {
			return nil, status.Error(codes.Internal, "the trust anchors can't be written")
		}
		return validation(name, &tlsv3.CertificateValidationContext{CustomValidatorConfig: &core.TypedExtensionConfig{
			Name: "envoy.tls.cert_validator.spiffe", TypedConfig: config,
		}}), nil
	}
	return nil, nil
}

func validation(name string, context *tlsv3.CertificateValidationContext) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: context}}
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

func raw(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}

func pemOf(kind string, blocks ...[]byte) []byte {
	var out []byte
	for _, b := range blocks {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})...)
	}
	return out
}

// receive makes a channel of what a stream's client sends. It ends when the stream does, and with it.
func receive[T any](ctx context.Context, recv func() (T, error)) (<-chan T, <-chan error) {
	requests, failed := make(chan T), make(chan error, 1)
	go func() {
		for {
			rq, err := recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- rq:
			case <-ctx.Done():
				return
			}
		}
	}()
	return requests, failed
}

// nonce numbers the responses of one stream.
type nonce int

func (n nonce) String() string { return strconv.Itoa(int(n)) }
