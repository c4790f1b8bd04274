package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// JoinToken is a one-time secret with which a service enrols. Only the one who made it ever sees Secret.
type JoinToken struct {
	Secret  string // 26 characters: 128 random bits in base32 (RFC 4648), lower case, no padding
	ID      string // lower-case hex SHA-256 of Secret
	Service string
	Expires time.Time
}

// joinRecord is what is kept of a join token, under its ID, until a day after its end.
type joinRecord struct {
	Service string    `json:"service"`
	MadeBy  string    `json:"made_by"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Used    *joinUse  `json:"used,omitempty"` // nil: not yet
}

// joinUse says what a join token was used for.
type joinUse struct {
	Serial string    `json:"serial"`
	SPKI   string    `json:"spki"`
	At     time.Time `json:"at"`
}

const (
	keepJoin   = day // after its end, so that "expired" and "used" can be told from "unknown"
	secretSize = 26
)

func joinTable() storage.Table[joinRecord] { return storage.Table[joinRecord]{Name: "join_tokens"} }

// CreateJoinToken makes a join token for a service of the policy in force. ttl is 1 min to 24 h; 0: Config.JoinTTL. The
// caller must be an operator or admin. Codes: CodeRole, CodeTTL, CodeNotInPolicy, CodeServiceDisabled, CodeClock.
func (a *Authority) CreateJoinToken(ctx context.Context, by countersign.Caller, service string, ttl time.Duration) (JoinToken, error) {
	token, err := a.createJoinToken(ctx, by, service, ttl)
	if err != nil {
		return JoinToken{}, a.deny(ctx, by, service, err)
	}
	return token, nil
}

func (a *Authority) createJoinToken(ctx context.Context, by countersign.Caller, service string, ttl time.Duration) (JoinToken, error) {
	if by.Role < countersign.RoleOperator {
		return JoinToken{}, countersign.Errorf(countersign.CodeRole, "join tokens are made by an operator; %s has the role %s", by.Name, by.Role)
	}
	if err := countersign.CheckName(service); err != nil {
		return JoinToken{}, countersign.Errorf(countersign.CodeParameter, "%v", err)
	}
	id, err := countersign.NewServiceID(a.cfg.TrustDomain, service)
	if err != nil {
		return JoinToken{}, countersign.Errorf(countersign.CodeParameter, "%v", err)
	}
	if _, err := serviceInForce(a.cfg.Policy(), id); err != nil {
		return JoinToken{}, err
	}
	if err := a.cfg.Keys.Guard(); err != nil { // its end would be by a clock that may be wrong by years
		return JoinToken{}, err
	}
	if ttl == 0 {
		ttl = a.cfg.JoinTTL
	}
	if ttl < minTTL || ttl > maxJoin {
		return JoinToken{}, countersign.Errorf(countersign.CodeTTL, "a join token lives for %s to %s, not %s", minTTL, maxJoin, ttl)
	}
	var bits [16]byte
	if _, err := rand.Read(bits[:]); err != nil {
		return JoinToken{}, fmt.Errorf("draw a join token: %w", err)
	}
	now := a.cfg.Now().UTC()
	secret := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(bits[:]))
	token := JoinToken{Secret: secret, ID: joinID(secret), Service: service, Expires: now.Add(ttl)}
	op, err := joinTable().Put(token.ID, joinRecord{
		Service: service, MadeBy: by.Name, Created: now, Expires: token.Expires,
	}, token.Expires.Add(keepJoin), storage.Cond{Absent: true})
	if err != nil {
		return JoinToken{}, err
	}
	if _, err := a.cfg.Store.Apply(ctx, op); err != nil {
		return JoinToken{}, storeError(err)
	}
	// Crash point: recorded, and nobody knows the secret. It is left to expire.
	_, err = a.cfg.Audit.Append(ctx, audit.Event{
		Type: "join-token.created", Outcome: audit.OK, By: by, Subject: service,
		Detail: struct {
			JoinToken string    `json:"join_token"`
			Expires   time.Time `json:"expires"`
		}{token.ID, token.Expires},
	})
	if err != nil {
		return JoinToken{}, err
	}
	return token, nil
}

// joinID is the name under which a join token is kept and audited.
func joinID(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// JoinCaller adds to c what the join token proves. A used one is taken, because its holder may repeat his request with
// the same key; [Authority.Issue] judges that. Codes: CodeJoinToken (unknown or void), CodeJoinTokenExpired. Refusals are
// not audited here: they are those of strangers, whom the transport counts.
func (a *Authority) JoinCaller(ctx context.Context, secret string, c countersign.Caller) (countersign.Caller, error) {
	if !wellFormed(secret) {
		return c, errNoJoinToken()
	}
	id := joinID(secret)
	entry, err := a.joinToken(ctx, id)
	if err != nil {
		return c, err
	}
	token := entry.Value
	if token.Used == nil && !a.cfg.Now().Before(token.Expires) {
		return c, errJoinTokenExpired(token)
	}
	service, err := countersign.NewServiceID(a.cfg.TrustDomain, token.Service)
	if err != nil {
		return c, countersign.Errorf(countersign.CodeDamaged, "the record of the join token is damaged").Because(err)
	}
	c.Method, c.ID, c.JoinToken, c.Role = countersign.ByJoinToken, service, id, countersign.RoleNone
	c.Name = "join token " + id[:8] + " for " + token.Service
	return c, nil
}

func wellFormed(secret string) bool {
	if len(secret) != secretSize {
		return false
	}
	return strings.Trim(secret, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// joinToken is the record of a join token that is known and not void. Disabling a service voids what was made before,
// also when it is enabled again.
func (a *Authority) joinToken(ctx context.Context, id string) (storage.Entry[joinRecord], error) {
	var none storage.Entry[joinRecord]
	if id == "" {
		return none, errNoJoinToken()
	}
	entry, err := joinTable().Get(ctx, a.cfg.Store, id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return none, errNoJoinToken()
	case err != nil:
		return none, storeError(err)
	case subtle.ConstantTimeCompare([]byte(entry.Key), []byte(id)) != 1:
		return none, countersign.Errorf(countersign.CodeDamaged, "the store answered with another record than asked for")
	}
	if s, ok := a.cfg.Policy().Service(entry.Value.Service); ok && !s.VoidBefore.IsZero() && !entry.Value.Created.After(s.VoidBefore) {
		return none, errNoJoinToken()
	}
	return entry, nil
}

// errNoJoinToken does not tell an unknown token from a voided one.
func errNoJoinToken() error {
	return countersign.Errorf(countersign.CodeJoinToken, "this join token is not one that the authority made, or it was voided").
		WithHint("an operator makes another with `countersign join-token create`")
}

func errJoinTokenExpired(t joinRecord) error {
	return countersign.Errorf(countersign.CodeJoinTokenExpired, "the join token expired at %s", t.Expires.UTC().Format(time.RFC3339)).
		WithHint("an operator makes another with `countersign join-token create`")
}

func errJoinTokenUsed(t joinRecord) error {
	return countersign.Errorf(countersign.CodeJoinTokenUsed, "the join token was used at %s, for another request", t.Used.At.UTC().Format(time.RFC3339)).
		WithHint("it is good for one certificate; make another one. If nobody of yours used it, revoke the certificate %s", t.Used.Serial)
}

// unlessUsed is refusal, or that the join token is used up if it is: all that its holder may still do is to repeat
// himself, and beyond that he is a stranger, whose refusals must not fill the audit log.
func (a *Authority) unlessUsed(ctx context.Context, by countersign.Caller, refusal error) error {
	entry, err := a.joinToken(ctx, by.JoinToken)
	if err != nil {
		return err
	}
	if entry.Value.Used != nil {
		return errJoinTokenUsed(entry.Value)
	}
	return refusal
}
