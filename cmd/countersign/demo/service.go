package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// ServiceOptions say which service to be. A service without Issuer is the gateway: it takes the user's own token, which
// the authority verifies when it is exchanged. All others demand mTLS and a relay token that is addressed to them.
type ServiceOptions struct {
	Name     string
	Identity string // identity directory
	Issuer   string // of relay tokens
	Needs    string // the scope that a request needs here
	Next     string // URL of the next service; "" at the end of the chain
	NextName string // its name: the audience to exchange for
	Scope    string // to ask for there
}

// Hop is what one service saw of a request, and what it got from the next.
type Hop struct {
	Service string          `json:"service"`
	Peer    string          `json:"peer,omitempty"` // the mTLS client
	KID     string          `json:"kid"`
	Claims  json.RawMessage `json:"claims"` // of the token that the request carried
	Next    *Hop            `json:"next,omitempty"`
	Error   string          `json:"error,omitempty"`
}

type service struct {
	ServiceOptions
	id       *identity.Identity
	verifier *verify.Verifier // nil at the gateway
	tokens   *client.Client
	next     *http.Client
}

// Service runs one of the demo's services until ctx ends.
func Service(ctx context.Context, out io.Writer, o ServiceOptions) error {
	id, err := identity.Load(o.Identity)
	if err != nil {
		return err
	}
	s := &service{ServiceOptions: o, id: id}
	if s.tokens, err = client.New(client.Config{URL: id.Server, Identity: id}); err != nil {
		return err
	}
	server := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.TLS()}}
	if o.Issuer != "" {
		server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, id.Pool()
		s.verifier, err = verify.New(verify.Config{Issuer: o.Issuer, Audience: o.Name, Roots: id.Pool()})
		if err != nil {
			return err
		}
	}
	if o.Next != "" {
		s.next = local.Client(&tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: id.Pool(), Certificates: []tls.Certificate{id.TLS()},
			VerifyConnection: func(state tls.ConnectionState) error { return s.expectPeer(state, o.NextName) },
		})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, local.Listening+"https://"+listener.Addr().String())
	return local.ServeTLS(ctx, listener, http.HandlerFunc(s.serve), server)
}

// expectPeer demands that the next service is the one that the token will be for: a certificate of another service of
// the same roots is not it.
func (s *service) expectPeer(state tls.ConnectionState, name string) error {
	want, err := countersign.NewServiceID(s.id.ID.TrustDomain(), name)
	if err != nil {
		return err
	}
	if got := peerID(&state); got != want.String() {
		return fmt.Errorf("the peer is %q and not %s", got, want)
	}
	return nil
}

func peerID(state *tls.ConnectionState) string {
	if state == nil || len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return ""
	}
	return state.PeerCertificates[0].URIs[0].String()
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "a token is needed", http.StatusUnauthorized)
		return
	}
	hop, status := s.handle(r.Context(), token, verify.Peer(r.TLS))
	hop.Peer = peerID(r.TLS)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(hop) // the peer is gone; nothing to tell it
}

// handle is what each service does: verify, then exchange and call on. A token is never passed on as it came.
func (s *service) handle(ctx context.Context, token string, peer *x509.Certificate) (*Hop, int) {
	hop := &Hop{Service: s.Name}
	parsed, err := jwt.Parse(token)
	if err != nil {
		hop.Error = err.Error()
		return hop, http.StatusUnauthorized
	}
	hop.KID, hop.Claims = parsed.KID, parsed.Payload
	if s.verifier != nil {
		claims, err := s.verifier.VerifyPeer(ctx, token, peer)
		if err != nil {
			hop.Error = err.Error()
			return hop, http.StatusUnauthorized
		}
		if !slices.Contains(claims.Scopes, s.Needs) {
			hop.Error = "the token lacks the scope " + s.Needs
			return hop, http.StatusForbidden
		}
	}
	if s.Next == "" {
		return hop, http.StatusOK
	}
	next, err := s.exchange(ctx, token)
	if err == nil {
		hop.Next, err = s.callNext(ctx, next)
	}
	if err != nil {
		hop.Error = err.Error()
		return hop, http.StatusBadGateway
	}
	return hop, http.StatusOK
}

// exchange gets the token for the next hop (RFC 8693). The certificate of the connection is the client.
func (s *service) exchange(ctx context.Context, token string) (string, error) {
	answer, err := s.tokens.Token(ctx, url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"client_id":          {s.id.ID.String()},
		"subject_token":      {token},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"audience":           {s.NextName},
		"scope":              {s.Scope},
	})
	return answer.AccessToken, err
}

func (s *service) callNext(ctx context.Context, token string) (*Hop, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Next, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	return readHop(s.next, request)
}

// readHop sends a request of the chain and reads what came back.
func readHop(c *http.Client, request *http.Request) (*Hop, error) {
	response, err := c.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var hop Hop
	if err := json.Unmarshal(body, &hop); err != nil {
		return nil, errors.New(response.Status + ": " + string(bytes.TrimSpace(body)))
	}
	for h := &hop; h != nil; h = h.Next {
		if h.Error != "" {
			return &hop, fmt.Errorf("%s: %s", h.Service, h.Error)
		}
	}
	return &hop, nil
}
