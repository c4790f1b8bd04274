package sts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	defaultLead  = time.Hour
	maxJudgments = 3 // of one request, when the policy changes under it
)

// Config of a [Service]. Issuer, Policy, Keys, Audit and Store are required.
type Config struct {
	Issuer     string                     // our issuer identifier, exact: `iss` of what is minted
	Policy     func() *countersign.Policy // the one in force; never nil
	Keys       *keyring.Ring              // its purpose token signs
	Audit      *audit.Log                 // holds every answer before it leaves
	Store      storage.Store              // keeps the revocations, and which client assertions were used
	Lead       time.Duration              // how long a key is published before it signs; JWKS may be cached for half of it. Default 1 h
	Now        func() time.Time           // nil: time.Now
	Logger     *slog.Logger               // nil: discards
	Registerer prometheus.Registerer      // may be nil
	Transport  http.RoundTripper          // to all external issuers, for tests; nil: one of each issuer's `ca`
}

// Service is the token endpoint, and what belongs to it: revocation, introspection, the feed of revocations. It is safe for
// concurrent use. An exchange writes nothing but an audit record and, for a client that
// authenticates by an assertion, that this one was used.
type Service struct {
	cfg         Config
	log         *slog.Logger
	keys        *published
	issuers     *issuers
	clientKeys  *clientKeys
	signers     signers
	svidSigners signers      // of JWT-SVIDs: another purpose of keys
	verified    jwt.Verified // subject tokens
	rulings     rulings
	revocations *revokedSet
	feed        feedPages
	metrics     *metrics
	metadata    []byte
}

// New checks the configuration, reads our keys and the revocations, and puts in force those that only the audit log knows:
// a crash came between, or the store was restored from an older copy. Nothing is fetched yet. ctx bounds New only.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Issuer == "" || cfg.Policy == nil || cfg.Keys == nil || cfg.Audit == nil || cfg.Store == nil || cfg.Lead < 0 {
		return nil, errors.New("sts: Issuer, Policy, Keys, Audit and Store are required, and Lead can't be negative")
	}
	if cfg.Lead == 0 {
		cfg.Lead = defaultLead
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	doc, err := metadata(cfg.Issuer)
	if err != nil {
		return nil, err
	}
	revocations := newRevokedSet(cfg.Now)
	m, err := newMetrics(cfg.Registerer, revocations.len)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, log: cfg.Logger, metrics: m, metadata: doc, clientKeys: &clientKeys{},
		keys:        &published{ring: cfg.Keys, now: cfg.Now},
		revocations: revocations,
		issuers:     &issuers{now: cfg.Now, log: cfg.Logger, transport: cfg.Transport, remotes: map[source]*jwt.Remote{}},
	}
	if _, err := s.keys.get(); err != nil {
		return nil, err
	}
	if err := s.settle(ctx); err != nil {
		return nil, fmt.Errorf("read the revocations: %w", err)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(newIssuerMetrics(cfg.Policy, s.issuers)); err != nil {
			return nil, fmt.Errorf("register the metrics of issuers: %w", err)
		}
	}
	return s, nil
}

// Token answers one token request of by. What it returns, a token or a denial, is in the audit log already; if it can't
// be put there, the answer is that error. Errors are *[countersign.Error], whose Code.Info().OAuth is the wire error.
func (s *Service) Token(ctx context.Context, by countersign.Caller, r Request) (Response, error) {
	started := s.cfg.Now()
	x, err := s.decide(ctx, by, r)
	if err == nil {
		err = s.stillGood(x)
	}
	if err == nil && r.Still != nil {
		if err = r.Still(); err != nil {
			x.trace.Steps = append(x.trace.Steps, failed(StepClient, err))
		}
	}
	if err == nil {
		x.token, err = s.mint(x)
	}
	if err == nil {
		err = s.recordIssued(ctx, x)
	} else {
		err = s.recordDenied(ctx, x, err)
	}
	s.metrics.observe(err, s.cfg.Now().Sub(started))
	if err != nil {
		return Response{}, err
	}
	s.remember(x)
	return Response{
		AccessToken: x.token.compact, IssuedTokenType: TypeAccessToken, TokenType: "Bearer",
		ExpiresIn: int(x.grant.Expires.Sub(x.grant.IssuedAt) / time.Second), Scope: strings.Join(x.grant.Scopes, " "),
	}, nil
}

// exchange is one request on its way.
type exchange struct {
	by      countersign.Caller
	request Request
	policy  *countersign.Policy // one and the same for all steps
	now     time.Time
	subject *Subject // nil until verified
	from    verifiedToken
	trace   Trace
	grant   Grant
	token   minted

	granted       bool           // the decision was made, and has words if trace has
	actorID       countersign.ID // whom the actor token proves
	mayAct, actor string         // for the record: see subjectDetail

	digest [sha256.Size]byte // of the subject token's text, if it is hashed
	hashed bool
	keyed  bool      // it may be remembered
	key    rulingKey // if it is keyed
	ruling *ruling   // nil: judged from the beginning
	claims *draft
	record *recordDraft
}

// decide judges a request by the policy that is in force when it is done: the wait for an issuer's keys may take seconds, and
// who was disabled or removed meanwhile must get nothing.
func (s *Service) decide(ctx context.Context, by countersign.Caller, r Request) (*exchange, error) {
	for n := 1; ; n++ {
		x := &exchange{by: by, request: r, policy: s.cfg.Policy(), now: s.cfg.Now()}
		var err error
		if !s.recall(x) {
			err = s.judge(ctx, x)
		}
		switch {
		case err != nil || s.cfg.Policy() == x.policy:
			return x, err
		case by.Method == countersign.ByAssertion:
			// The assertion was held against the policy before this one, which may have taken the key back.
			return x, countersign.Errorf(countersign.CodeBusy, "the policy changed during the exchange").
				WithHint("send the request again, with a new client assertion").After(time.Second)
		case n == maxJudgments:
			return x, countersign.Errorf(countersign.CodeBusy, "the policy changed %d times during the exchange", n).After(time.Second)
		}
	}
}

// judge takes x through all steps. The error is the denial, and x.trace tells how it came about.
func (s *Service) judge(ctx context.Context, x *exchange) error {
	client, step := s.admit(x)
	if !x.add(StepClient, step) {
		return x.trace.Err()
	}
	if frozen := x.policy.Frozen.RefuseTokens(); frozen != nil {
		x.trace.Steps = append(x.trace.Steps, failed(StepClient, frozen))
		return frozen
	}
	// Nothing is judged by a clock that may be wrong; the signer asks it again.
	if err := s.cfg.Keys.Guard(); err != nil {
		return err
	}
	if err := x.request.check(); err != nil {
		x.trace.Steps = append(x.trace.Steps, refusedRequest(x.request, err))
		return err
	}
	in := s.input(x)
	if !in.Machine {
		subject, from, err := s.verify(ctx, x.policy, client, x.request.SubjectToken, kindOf(x.request.SubjectTokenType), x.now)
		if err == nil {
			err = s.revoked(subject.Facts) // after the wait for keys: a revocation that came meanwhile counts
		}
		if err != nil {
			x.trace.Steps = append(x.trace.Steps, refusedToken(x.policy, s.cfg.Issuer, client, x.request.SubjectToken, err))
			return err
		}
		x.now = s.cfg.Now() // lifetimes count from the end of a wait for keys
		x.subject, in.Subject, in.Now = subject, subject, x.now
		x.from = from
	}
	if in.ActorSent {
		in.Actor = s.provenBy(x.request.ActorToken, x.now)
		x.actorID = in.Actor
		if x.actor = in.Actor.String(); x.actor == "" {
			x.actor = provesNobody
		}
	}
	if in.Subject != nil && in.Subject.MayAct != nil {
		if x.mayAct = mayActNo; names(in.Subject.MayAct, in.Client.String(), in.Issuer) {
			x.mayAct = mayActOK
		}
	}
	granted := false
	if x.grant, granted = grantOf(x.policy, in); !granted {
		x.grant, x.trace = Decide(x.policy, in)
		if denial := x.trace.Err(); denial != nil {
			return denial
		}
	}
	x.granted = true
	if b := x.grant.Audience.Bind; b != "" && b != countersign.BindNone {
		if step := x.grant.bind(x.by.Thumbprint); !step.OK {
			s.explain(x)
			x.add(StepBinding, step)
			return x.trace.Err()
		}
	}
	return nil
}

// explain puts into words how the grant came about, for the record of what failed afterwards. A decision is pure, so it comes
// out as it did.
func (s *Service) explain(x *exchange) {
	if !x.granted || len(x.trace.Steps) > 0 {
		return
	}
	in := s.input(x)
	in.Subject, in.Actor = x.subject, x.actorID
	_, x.trace = Decide(x.policy, in)
}

// input is what x has Decide judge, without what the tokens in the request tell.
func (s *Service) input(x *exchange) Input {
	return Input{
		Now: x.now, Issuer: s.cfg.Issuer, Client: x.by.ID, Machine: x.request.GrantType == GrantClientCredentials,
		ActorSent: x.request.ActorToken != "", Audiences: x.request.Audiences, Resources: x.request.Resources, Scopes: x.request.Scopes,
	}
}

// admit is step 1: only the certificate of a service or its client assertion proves a client, whatever client_id says.
func (s *Service) admit(x *exchange) (*countersign.Service, Step) {
	proven := x.by.Method == countersign.ByCertificate || x.by.Method == countersign.ByAssertion
	if !proven || x.by.ID.Kind() != countersign.ServiceID {
		return nil, denied(countersign.CodeClient, "", "a client proves itself by the certificate of a service or a client assertion")
	}
	client, step := admitClient(x.policy, x.by.ID)
	if id := x.request.ClientID; step.OK && id != "" && id != client.ID.String() {
		return nil, denied(countersign.CodeClientMismatch, "", "client_id is %s, the client is %s", quote(id), client.ID).
			hint("send the ID as client_id, or leave it out")
	}
	return client, step
}

func (x *exchange) add(name string, step Step) bool {
	step.Name = name
	if !step.OK {
		step.Nearest, step.Change = adviseClient(x.policy, x.by.ID, step.Code)
		step = advised(step)
	}
	x.trace.Steps = append(x.trace.Steps, step)
	return step.OK
}

// verify is step 2: who signed the token is settled before any other claim of it counts. Our own iss decides first, so that
// no policy can make an external issuer speak for us.
func (s *Service) verify(ctx context.Context, p *countersign.Policy, client *countersign.Service, compact string, kind tokenKind, now time.Time) (*Subject, verifiedToken, error) {
	t, err := s.verified.Parse(compact)
	if err != nil {
		return nil, verifiedToken{}, wrongClaim(err)
	}
	from := verifiedToken{t, s.verified.Known(t)}
	subject, err := s.verifyParsed(ctx, p, client, t, kind, now)
	return subject, from, err
}

// verifiedToken is what a Subject was read from.
type verifiedToken struct {
	token *jwt.Token
	again bool // it was verified before
}

func (s *Service) verifyParsed(ctx context.Context, p *countersign.Policy, client *countersign.Service, t *jwt.Token, kind tokenKind, now time.Time) (*Subject, error) {
	iss, _, err := t.Claims.String("iss")
	if err != nil {
		return nil, wrongClaim(err)
	}
	if iss == s.cfg.Issuer {
		if kind == idToken {
			return nil, countersign.Errorf(countersign.CodeSubjectKind, "the subject token is an access token of ours, no ID token").
				WithHint("send subject_token_type=%s", TypeAccessToken)
		}
		if err := s.verifyOwn(t); err != nil {
			return nil, err
		}
		return readOwn(p, s.cfg.Issuer, client, t, now)
	}
	issuer, err := acceptedFrom(p, client, iss)
	if err != nil {
		return nil, err
	}
	set, err := s.issuers.keys(ctx, p, issuer, t.KID)
	if err != nil {
		return nil, err
	}
	if err := s.verified.Verify(t, set, issuer.Algorithms); err != nil {
		return nil, wrongSignature(err)
	}
	return readExternal(p, issuer, client, t, kind, now)
}

func (s *Service) verifyOwn(t *jwt.Token) error {
	k, err := s.keys.get()
	if err != nil {
		return err
	}
	if err := s.verified.Verify(t, k.set, []string{"ES256", "RS256"}); err != nil {
		return wrongSignature(err)
	}
	return nil
}

func wrongSignature(err error) error {
	var refusal *jwt.Error
	if errors.As(err, &refusal) && refusal.Reason == jwt.ReasonKID {
		return countersign.Errorf(countersign.CodeSubjectKey, "the subject token: %s", refusal.Msg)
	}
	return wrongClaim(err)
}

// provenBy is whom an actor token proves: a service, by a token that client_credentials gave to it and that nobody passed
// on. Anything else proves nobody.
func (s *Service) provenBy(compact string, now time.Time) countersign.ID {
	t, err := jwt.Parse(compact)
	if err != nil {
		return countersign.ID{}
	}
	c := reader{claims: t.Claims}
	iss, subIssuer, sub, client := c.text("iss"), c.text("sub_iss"), c.text("sub"), c.text("client_id")
	if c.err != nil || t.Typ != typAccess && t.Typ != typGeneric || iss != s.cfg.Issuer || subIssuer != iss || sub != client || t.Claims.Has("act") ||
		s.verifyOwn(t) != nil || checkTimes(t.Claims, now) != nil {
		return countersign.ID{}
	}
	id, err := countersign.ParseID(sub)
	if err != nil || s.revoked(ownFacts(s.cfg.Policy(), t.Claims)) != nil {
		return countersign.ID{}
	}
	return id
}

// subjectDigest is the SHA-256 of the subject token's text.
func (x *exchange) subjectDigest() [sha256.Size]byte {
	if !x.hashed {
		x.hashed, x.digest = true, jwt.Digest(x.request.SubjectToken)
	}
	return x.digest
}

// digest names a token in the audit log without giving it away.
func digest(token string) string {
	sum := jwt.Digest(token)
	return hex.EncodeToString(sum[:])
}
