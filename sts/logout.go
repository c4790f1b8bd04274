package sts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	typLogout   = "logout+jwt"
	logoutEvent = "http://schemas.openid.net/event/backchannel-logout"
	// longestLogout is how far in the future a logout token's exp may be, so that the memory of its jti stays bounded. The
	// standard recommends two minutes (OpenID Connect Back-Channel Logout 1.0, 4).
	longestLogout = 24 * time.Hour
)

// logoutToken is a verified logout token.
type logoutToken struct {
	issuer   *countersign.Issuer
	id       string // jti
	sub, sid string // one of them may be ""
	expires  time.Time
}

// usedLogout marks a jti as used. It is kept under [logoutToken.key] until the token is over.
type usedLogout struct {
	At time.Time `json:"at"`
}

func logoutsTable() storage.Table[usedLogout] {
	return storage.Table[usedLogout]{Name: "logout_tokens"}
}

func (l *logoutToken) key() string {
	sum := sha256.Sum256([]byte(l.issuer.URL + "\x00" + l.id))
	return hex.EncodeToString(sum[:])
}

// ParseLogoutForm reads the form of a back-channel logout request (OpenID Connect Back-Channel Logout 1.0, 2.5).
func ParseLogoutForm(form url.Values) (string, error) {
	f := fields{form: form}
	f.checkAll()
	token := f.one("logout_token", jwt.MaxToken)
	if token == "" {
		f.fail(countersign.CodeLogoutToken, "logout_token is missing")
	}
	return token, f.err
}

// Logout takes a logout token of a `users` issuer (OpenID Connect Back-Channel Logout 1.0, 2.6) and revokes the session that
// it names, or all tokens of its subject if it names none. The token alone says who asks: by is nobody, or counts as nobody.
// Codes: CodeLogoutToken, CodeLogoutReplay, CodeIssuerDown, CodeRevocationsFull, those of the store and the audit log.
func (s *Service) Logout(ctx context.Context, by countersign.Caller, compact string) error {
	by = countersign.Caller{Addr: by.Addr, RequestID: by.RequestID}
	p := s.cfg.Policy()
	l, err := s.verifyLogout(ctx, p, compact)
	if err == nil {
		by.Name = "issuer " + l.issuer.Name
		err = s.logout(ctx, p, by, l)
	}
	if e := countersign.AsError(err); err != nil && e.Kind == countersign.Invalid {
		s.cfg.Audit.Stranger(e.Code, by.Addr)
	}
	return err
}

// logout revokes. The jti is used up by the same Apply: a token that was sent twice took effect once, also at the same time.
func (s *Service) logout(ctx context.Context, p *countersign.Policy, by countersign.Caller, l *logoutToken) error {
	o := order{by: by}
	o.Reason = "back-channel logout"
	if l.sid != "" {
		o.Kind, o.Value, o.Name, o.Issuer = countersign.RevokeSession, countersign.RevokedSession(l.issuer.URL, l.sid), l.sid, l.issuer.URL
	} else {
		sub, err := subOf(p, l.issuer, l.sub)
		if err != nil {
			return wrongLogout("%s", countersign.AsError(err).Msg)
		}
		o.Kind, o.Value, o.Name = countersign.RevokeSubject, countersign.RevokedSubject(sub), sub
	}
	key := l.key()
	switch _, err := logoutsTable().Get(ctx, s.cfg.Store, key); {
	case err == nil:
		return replayed()
	case !errors.Is(err, storage.ErrNotFound):
		return storeError(err)
	}
	var err error
	if o.once, err = logoutsTable().Put(key, usedLogout{At: s.cfg.Now().UTC()}, l.expires.Add(skew), storage.Cond{Absent: true}); err != nil {
		return err
	}
	_, err = s.revoke(ctx, o)
	return err
}

func wrongLogout(format string, args ...any) error {
	return countersign.Errorf(countersign.CodeLogoutToken, "the logout token: "+format, args...)
}

// unknownLogout is one answer to whatever is wrong before the signature is verified: strangers learn nothing of whom the policy
// trusts. The log has the cause.
func unknownLogout(cause error) error {
	return countersign.Errorf(countersign.CodeLogoutToken, "the logout token: no issuer of users signed it").Because(cause)
}

func replayed() error {
	return countersign.Errorf(countersign.CodeLogoutReplay, "the logout token's jti was used before")
}

// verifyLogout settles who signed before any other claim counts.
func (s *Service) verifyLogout(ctx context.Context, p *countersign.Policy, compact string) (*logoutToken, error) {
	t, err := jwt.Parse(compact)
	if err != nil {
		return nil, wrongLogout("%s", err)
	}
	iss, _, err := t.Claims.String("iss")
	if err != nil {
		return nil, wrongLogout("%s", err)
	}
	issuer, ok := p.Issuer(iss) // never our own: a policy can't name it
	if !ok || issuer.Use == countersign.UseWorkloads {
		return nil, unknownLogout(fmt.Errorf("%s is no issuer of users in the policy", quote(iss)))
	}
	set, err := s.issuers.keys(ctx, p, issuer, t.KID)
	if err != nil {
		return nil, err
	}
	if err := t.Verify(set, issuer.Algorithms); err != nil {
		return nil, unknownLogout(err)
	}
	return readLogout(p, issuer, t, s.cfg.Now())
}

// readLogout judges the claims of a logout token whose signature is the issuer's (2.4, 2.6). It is pure.
func readLogout(p *countersign.Policy, issuer *countersign.Issuer, t *jwt.Token, now time.Time) (*logoutToken, error) {
	c := t.Claims
	if t.Typ != "" && !t.HasType(typLogout) && !t.HasType(typGeneric) {
		return nil, wrongLogout("its type is %s", quote(t.Typ))
	}
	if err := c.CheckTimes(now, skew); err != nil {
		return nil, wrongLogout("%s", err)
	}
	r := reader{claims: c}
	l := &logoutToken{issuer: issuer, id: r.text("jti"), sub: r.optional("sub"), sid: r.optional("sid"), expires: r.time("exp")}
	r.time("iat")
	events, _, err := c.Object("events")
	if err != nil {
		return nil, wrongLogout("%s", err)
	}
	event, isObject, err := events.Object(logoutEvent)
	_ = event // its members are nobody's business (2.4: it should be empty)
	aud, audErr := c.Audience()
	switch {
	case r.err != nil:
		return nil, wrongLogout("%s", countersign.AsError(r.err).Msg)
	case audErr != nil:
		return nil, wrongLogout("%s", audErr)
	case err != nil || !isObject:
		return nil, wrongLogout("its events have no member %s that is an object", logoutEvent)
	case c.Has("nonce"):
		return nil, wrongLogout("it has a nonce, so it is an ID token") // 2.4
	case l.sub == "" && l.sid == "":
		return nil, wrongLogout("it names neither a sub nor a sid")
	case l.sid != "" && !oneName(l.sid, maxSub):
		return nil, wrongLogout("its sid must be text of at most %d bytes", maxSub)
	case len(l.id) > maxWord:
		return nil, wrongLogout("its jti has more than %d bytes", maxWord)
	case l.expires.Sub(now) > longestLogout:
		return nil, wrongLogout("it is valid for longer than %s", longestLogout)
	case !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(audiencesOf(p, issuer), a) }):
		return nil, wrongLogout("it is addressed to none of the audiences that the policy has for %s", issuer.Name)
	}
	return l, nil
}

// audiencesOf are all by which services of the policy take tokens of an issuer: the client IDs that the issuer knows us by.
func audiencesOf(p *countersign.Policy, issuer *countersign.Issuer) []string {
	var all []string
	for i := range p.Services {
		all = append(all, p.Services[i].AudiencesFor(issuer.Name)...)
	}
	return all
}
