package local

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/mtls"
)

const wait = 20 * time.Second // for a broken program only

func at(socket string) workloadapi.ClientOption { return workloadapi.WithAddr("unix://" + socket) }

// SPIFFE's own library gets the certificate, follows its renewal, and two of its users speak mTLS.
func TestX509Source(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	first, _ := k.serve([]Rule{me("reports")}, nil, src)
	second, _ := k.serve([]Rule{me("orders")}, nil, src)
	reports, err := workloadapi.NewX509Source(k.within(wait), workloadapi.WithClientOptions(at(first)))
	k.must(err)
	defer reports.Close()
	orders, err := workloadapi.NewX509Source(k.within(wait), workloadapi.WithClientOptions(at(second)))
	k.must(err)
	defer orders.Close()
	svid, err := reports.GetX509SVID()
	k.must(err)
	if svid.ID.String() != reportsID || len(svid.Certificates) != 2 || svid.Hint != "reports" {
		t.Errorf("the SVID: %s, %d certificates, hint %q", svid.ID, len(svid.Certificates), svid.Hint)
	}
	bundle, err := reports.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString(domain))
	if err != nil || len(bundle.X509Authorities()) != 1 {
		t.Errorf("the bundle: %v, %v", bundle, err)
	}
	speak(t, reports, orders)

	k.must(src["reports"].Renew(t.Context()))
	k.eventually("the library has the renewed certificate", func() bool {
		now, err := reports.GetX509SVID()
		return err == nil && now.Certificates[0].SerialNumber.Cmp(svid.Certificates[0].SerialNumber) != 0
	})
	speak(t, reports, orders)
	k.noSecrets()
}

// speak lets from call to by mTLS, each of them naming the other.
func speak(t *testing.T, from, to *workloadapi.X509Source) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(to, to, tlsconfig.AuthorizeID(spiffeid.RequireFromString(reportsID))))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = conn.(*tls.Conn).HandshakeContext(context.Background())
			conn.Close()
		}
		served <- err
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: wait}, "tcp", l.Addr().String(),
		tlsconfig.MTLSClientConfig(from, from, tlsconfig.AuthorizeID(spiffeid.RequireFromString(ordersID))))
	if err != nil {
		t.Errorf("call: %v", err)
	} else {
		conn.Close()
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// JWT-SVIDs go along the edges of the call graph, and are good at who they are for and nowhere else.
func TestJWTSource(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	first, _ := k.serve([]Rule{me("reports")}, nil, src)
	second, _ := k.serve([]Rule{me("orders")}, nil, src)
	reports, err := workloadapi.NewJWTSource(k.within(wait), workloadapi.WithClientOptions(at(first)))
	k.must(err)
	defer reports.Close()
	svid, err := reports.FetchJWTSVID(k.within(wait), jwtsvid.Params{Audience: ordersID})
	k.must(err)
	if svid.ID.String() != reportsID || len(svid.Audience) != 1 || svid.Audience[0] != ordersID {
		t.Errorf("%+v", svid)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), reports, []string{ordersID}); err != nil {
		t.Errorf("by the bundle: %v", err)
	}
	judged, err := workloadapi.ValidateJWTSVID(k.within(wait), svid.Marshal(), ordersID, at(second))
	if err != nil || judged.ID.String() != reportsID {
		t.Errorf("validated: %+v, %v", judged, err)
	}
	for name, c := range map[string]struct{ token, audience string }{
		"another audience":     {svid.Marshal(), inventoryID},
		"no audience":          {svid.Marshal(), ""},
		"nothing":              {"", ordersID},
		"garbage":              {"a.b.c", ordersID},
		"a flipped bit":        {flip(svid.Marshal()), ordersID},
		"much":                 {string(make([]byte, maxToken+1)), ordersID},
		"its name, not its ID": {svid.Marshal(), "orders"},
	} {
		_, err := workload.NewSpiffeWorkloadAPIClient(k.dial(second)).ValidateJWTSVID(secured(k.within(wait)),
			&workload.ValidateJWTSVIDRequest{Audience: c.audience, Svid: c.token})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		p    jwtsvid.Params
		code codes.Code
	}{
		"no edge":         {jwtsvid.Params{Audience: inventoryID}, codes.PermissionDenied},
		"one of two":      {jwtsvid.Params{Audience: ordersID, ExtraAudiences: []string{inventoryID}}, codes.PermissionDenied},
		"another domain":  {jwtsvid.Params{Audience: "spiffe://elsewhere/x"}, codes.InvalidArgument},
		"somebody else's": {jwtsvid.Params{Audience: ordersID, Subject: spiffeid.RequireFromString(ordersID)}, codes.PermissionDenied},
	} {
		if _, err := reports.FetchJWTSVID(k.within(wait), c.p); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	_, err = workload.NewSpiffeWorkloadAPIClient(k.dial(first)).FetchJWTSVID(secured(k.within(wait)), &workload.JWTSVIDRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("without an audience: %v", err)
	}
	k.rotatesJWT(reports, first, second)
	k.noSecrets(svid.Marshal())
}

// rotatesJWT: the new key is in the library's bundle before it signs, and a key that came without its lead is found too.
func (k *kit) rotatesJWT(reports *workloadapi.JWTSource, first, second string) {
	k.Helper()
	td := spiffeid.RequireTrustDomainFromString(domain)
	_, err := k.admin.Rotate(k.Context(), "svid", wire.RotateRequest{})
	k.must(err)
	k.eventually("the library has the new key", func() bool {
		bundle, err := reports.GetJWTBundleForTrustDomain(td)
		return err == nil && len(bundle.JWTAuthorities()) == 2
	})
	k.eventually("the new key signs", func() bool {
		_, err := k.admin.Rotate(k.Context(), "svid", wire.RotateRequest{Now: true})
		return err == nil
	})
	svid, err := reports.FetchJWTSVID(k.within(wait), jwtsvid.Params{Audience: ordersID})
	k.must(err)
	k.eventually("the new key is known elsewhere", func() bool {
		_, err := workloadapi.ValidateJWTSVID(k.within(wait), svid.Marshal(), ordersID, at(second))
		return err == nil
	})
}

func secured(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func flip(token string) string {
	b := []byte(token)
	b[len(b)-10] ^= 1
	return string(b)
}

// Without the mandatory metadata no call of the Workload API does anything (SPIFFE Workload Endpoint 4.1).
func TestSecurityHeader(t *testing.T) {
	k := newKit(t)
	socket, _ := k.serve([]Rule{me("reports")}, nil, map[string]*mtls.Source{"reports": k.source("reports")})
	api := workload.NewSpiffeWorkloadAPIClient(k.dial(socket))
	for name, md := range map[string]metadata.MD{
		"none": {}, "false": {"workload.spiffe.io": {"false"}}, "in capitals": {"workload.spiffe.io": {"True"}}, "empty": {"workload.spiffe.io": {""}},
		"twice": {"workload.spiffe.io": {"true", "true"}},
	} {
		ctx := metadata.NewOutgoingContext(k.within(wait), md)
		calls := map[string]func() error{
			"FetchX509SVID": func() error {
				s, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
				k.must(err)
				_, err = s.Recv()
				return err
			},
			"FetchX509Bundles": func() error {
				s, err := api.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
				k.must(err)
				_, err = s.Recv()
				return err
			},
			"FetchJWTBundles": func() error {
				s, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
				k.must(err)
				_, err = s.Recv()
				return err
			},
			"FetchJWTSVID": func() error {
				_, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{ordersID}})
				return err
			},
			"ValidateJWTSVID": func() error {
				_, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: ordersID, Svid: "x"})
				return err
			},
		}
		for method, call := range calls {
			if err := call(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s with %s: %v", method, name, err)
			}
		}
	}
	bundles, err := workloadapi.FetchX509Bundles(k.within(wait), at(socket))
	if err != nil || !bundles.Has(spiffeid.RequireTrustDomainFromString(domain)) {
		t.Errorf("with it: %v", err)
	}
}
