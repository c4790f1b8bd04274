package local

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"slices"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/countersign/countersign/ca/mtls"
)

// read opens the resources of a response, by name.
func (k *kit) read(all []*anypb.Any) map[string]*tlsv3.Secret {
	k.Helper()
	out := map[string]*tlsv3.Secret{}
	for _, a := range all {
		s := &tlsv3.Secret{}
		k.must(a.UnmarshalTo(s))
		k.must(s.ValidateAll())
		out[s.GetName()] = s
	}
	return out
}

// leaf is the certificate of a secret, whose key must fit it.
func (k *kit) leaf(s *tlsv3.Secret) *x509.Certificate {
	k.Helper()
	pair, err := tls.X509KeyPair(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), s.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	k.must(err)
	return pair.Leaf
}

func names(secrets map[string]*tlsv3.Secret) string {
	return strings.Join(slices.Sorted(maps.Keys(secrets)), " ")
}

// The state-of-the-world protocol as Envoy speaks it: subscribe, ACK, NACK, renewal, another subscription; names that are not
// the caller's are never answered.
func TestStreamSecrets(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	socket, _ := k.serve([]Rule{me("reports")}, nil, src)
	stream, err := secret.NewSecretDiscoveryServiceClient(k.dial(socket)).StreamSecrets(k.within(wait))
	k.must(err)
	send := func(rq *discovery.DiscoveryRequest) {
		t.Helper()
		rq.TypeUrl, rq.Node = secretType, &core.Node{Id: ordersID, Cluster: "orders"} // what it says it is counts for nothing
		k.must(stream.Send(rq))
	}
	recv := func() *discovery.DiscoveryResponse {
		t.Helper()
		got, err := stream.Recv()
		k.must(err)
		if got.GetTypeUrl() != secretType || got.GetNonce() == "" || got.GetVersionInfo() == "" {
			t.Errorf("type %q, nonce %q, version %q", got.GetTypeUrl(), got.GetNonce(), got.GetVersionInfo())
		}
		return got
	}
	asked := []string{nameOwn, nameRoots, ordersID, "spiffe://elsewhere", "DEFAULT", "", "../default"}
	send(&discovery.DiscoveryRequest{ResourceNames: asked})
	first := recv()
	got := k.read(first.GetResources())
	if names(got) != "ROOTCA default" {
		t.Fatalf("answered: %s", names(got))
	}
	leaf := k.leaf(got[nameOwn])
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != reportsID {
		t.Errorf("the certificate is of %v", leaf.URIs)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(got[nameRoots].GetValidationContext().GetTrustedCa().GetInlineBytes())
	between := x509.NewCertPool()
	_, rest := pem.Decode(got[nameOwn].GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	between.AppendCertsFromPEM(rest)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between}); err != nil {
		t.Errorf("the certificate under ROOTCA: %v", err)
	}
	send(&discovery.DiscoveryRequest{ResourceNames: asked, VersionInfo: first.GetVersionInfo(), ResponseNonce: first.GetNonce()})

	k.must(src["orders"].Renew(t.Context())) // another's: nothing is sent
	k.must(src["reports"].Renew(t.Context()))
	second := recv()
	if fresh := k.leaf(k.read(second.GetResources())[nameOwn]); fresh.SerialNumber.Cmp(leaf.SerialNumber) == 0 || second.GetVersionInfo() == first.GetVersionInfo() {
		t.Errorf("after a renewal: serial %x as before, or version %s", fresh.SerialNumber, second.GetVersionInfo())
	}
	// A refusal: not sent again until it is another. An answer to what is over changes nothing.
	send(&discovery.DiscoveryRequest{ResourceNames: asked, VersionInfo: first.GetVersionInfo(), ResponseNonce: second.GetNonce(),
		ErrorDetail: &rpc.Status{Code: 13, Message: "SECRET-OF-ENVOY"}})
	send(&discovery.DiscoveryRequest{ResourceNames: []string{nameAll}, ResponseNonce: first.GetNonce()})
	send(&discovery.DiscoveryRequest{ResourceNames: []string{reportsID, "spiffe://shop.internal", nameAll}, ResponseNonce: second.GetNonce()})
	third := k.read(recv().GetResources())
	if names(third) != "ALL spiffe://shop.internal spiffe://shop.internal/reports" {
		t.Errorf("another subscription: %s", names(third))
	}
	custom := &tlsv3.SPIFFECertValidatorConfig{}
	config := third[nameAll].GetValidationContext().GetCustomValidatorConfig()
	k.must(config.GetTypedConfig().UnmarshalTo(custom))
	if config.GetName() != "envoy.tls.cert_validator.spiffe" || len(custom.GetTrustDomains()) != 1 || custom.GetTrustDomains()[0].GetName() != domain ||
		!bytes.Equal(custom.GetTrustDomains()[0].GetTrustBundle().GetInlineBytes(), got[nameRoots].GetValidationContext().GetTrustedCa().GetInlineBytes()) {
		t.Errorf("ALL: %v", config)
	}
	if log := k.log.String(); !strings.Contains(log, "Envoy refused secrets") {
		t.Errorf("the refusal is not in the log: %s", log)
	}
	k.noSecrets("SECRET-OF-ENVOY")
}

// A name that is somebody else's gets no answer at all, and the stream lives on.
func TestSecretsOfOthersAreSilence(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	socket, _ := k.serve([]Rule{me("reports")}, nil, src)
	api := secret.NewSecretDiscoveryServiceClient(k.dial(socket))
	one, err := api.FetchSecrets(k.within(wait), &discovery.DiscoveryRequest{ResourceNames: []string{ordersID, "orders"}})
	if err != nil || len(one.GetResources()) != 0 {
		t.Errorf("FetchSecrets: %v, %v", one, err)
	}
	stream, err := api.StreamSecrets(k.within(wait))
	k.must(err)
	k.must(stream.Send(&discovery.DiscoveryRequest{ResourceNames: []string{ordersID}}))
	k.must(stream.Send(&discovery.DiscoveryRequest{ResourceNames: []string{nameOwn}}))
	got, err := stream.Recv()
	k.must(err)
	if all := k.read(got.GetResources()); names(all) != "default" || got.GetNonce() != "1" {
		t.Errorf("the first answer is number %s: %s", got.GetNonce(), names(all))
	}
}

// Without names the own certificate and the trust anchors are meant.
func TestFetchSecrets(t *testing.T) {
	k := newKit(t)
	socket, _ := k.serve([]Rule{me("reports")}, nil, map[string]*mtls.Source{"reports": k.source("reports")})
	api := secret.NewSecretDiscoveryServiceClient(k.dial(socket))
	got, err := api.FetchSecrets(k.within(wait), &discovery.DiscoveryRequest{})
	k.must(err)
	if all := k.read(got.GetResources()); names(all) != "ROOTCA default" {
		t.Errorf("%s", names(all))
	}
	again, err := api.FetchSecrets(k.within(wait), &discovery.DiscoveryRequest{TypeUrl: secretType})
	if err != nil || again.GetVersionInfo() != got.GetVersionInfo() {
		t.Errorf("versions of one state: %s, %s, %v", got.GetVersionInfo(), again.GetVersionInfo(), err)
	}
	for name, rq := range map[string]*discovery.DiscoveryRequest{
		"another type":    {TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"},
		"too many names":  {ResourceNames: slices.Repeat([]string{"x"}, maxNames+1)},
		"a name too long": {ResourceNames: []string{strings.Repeat("x", maxNameBytes+1)}},
	} {
		if _, err := api.FetchSecrets(k.within(wait), rq); status.Code(err) != codes.InvalidArgument {
			t.Errorf("FetchSecrets, %s: %v", name, err)
		}
		stream, err := api.StreamSecrets(k.within(wait))
		k.must(err)
		k.must(stream.Send(rq))
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("StreamSecrets, %s: %v", name, err)
		}
		delta, err := api.DeltaSecrets(k.within(wait))
		k.must(err)
		k.must(delta.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: rq.GetTypeUrl(), ResourceNamesSubscribe: rq.GetResourceNames()}))
		if _, err := delta.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("DeltaSecrets, %s: %v", name, err)
		}
	}
	huge := &discovery.DiscoveryRequest{Node: &core.Node{Id: strings.Repeat("x", maxMessage)}}
	if _, err := api.FetchSecrets(k.within(wait), huge); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over %d bytes: %v", maxMessage, err)
	}
}

// The incremental protocol sends what is new or changed, what is subscribed to again, and nothing that the client has.
func TestDeltaSecrets(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	socket, _ := k.serve([]Rule{me("reports")}, nil, src)
	api := secret.NewSecretDiscoveryServiceClient(k.dial(socket))
	stream, err := api.DeltaSecrets(k.within(wait))
	k.must(err)
	recv := func() (map[string]*tlsv3.Secret, map[string]string, *discovery.DeltaDiscoveryResponse) {
		t.Helper()
		got, err := stream.Recv()
		k.must(err)
		var all []*anypb.Any
		versions := map[string]string{}
		for _, r := range got.GetResources() {
			all = append(all, r.GetResource())
			versions[r.GetName()] = r.GetVersion()
		}
		if len(got.GetRemovedResources()) != 0 {
			t.Errorf("removed: %v", got.GetRemovedResources())
		}
		return k.read(all), versions, got
	}
	k.must(stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: []string{nameOwn, nameRoots, ordersID}}))
	all, versions, response := recv()
	if names(all) != "ROOTCA default" {
		t.Fatalf("%s", names(all))
	}
	k.must(stream.Send(&discovery.DeltaDiscoveryRequest{ResponseNonce: response.GetNonce()}))
	k.must(src["reports"].Renew(t.Context()))
	all, _, response = recv()
	if names(all) != "default" {
		t.Errorf("after a renewal: %s", names(all))
	}
	k.must(stream.Send(&discovery.DeltaDiscoveryRequest{ResponseNonce: response.GetNonce(), ErrorDetail: &rpc.Status{Code: 13}}))
	k.must(stream.Send(&discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{nameOwn}, ResourceNamesSubscribe: []string{nameRoots}}))
	if all, _, _ = recv(); names(all) != "ROOTCA" {
		t.Errorf("subscribed to again: %s", names(all))
	}
	k.must(src["reports"].Renew(t.Context())) // of what is not subscribed to any more
	k.must(stream.Send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{nameAll}}))
	if all, _, _ = recv(); names(all) != "ALL" {
		t.Errorf("after the end of a subscription: %s", names(all))
	}

	// A stream that begins anew does not get what it has.
	stream, err = api.DeltaSecrets(k.within(wait))
	k.must(err)
	k.must(stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: []string{nameOwn, nameRoots}, InitialResourceVersions: versions}))
	if all, _, _ = recv(); names(all) != "default" {
		t.Errorf("to who has the trust anchors: %s", names(all))
	}
	many := []string{}
	for i := range maxNames {
		many = append(many, "z"+strings.Repeat("z", i))
	}
	_ = stream.Send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: many})
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ever more names: %v", err)
	}
}
