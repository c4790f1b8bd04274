package sts

import (
	"context"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

const (
	// svidTTL is how long a JWT-SVID lives. It can't be revoked, so its life is that of a short relay token.
	svidTTL = 5 * time.Minute

	maxSVIDAudiences = 16

	algSVID = "ES256" // which every verifier of JWT-SVIDs knows (JWT-SVID 2.1); EdDSA is none of its algorithms
	typSVID = "JWT"   // JWT-SVID 2.3
)

// SVID is a JWT-SVID and when it ends.
type SVID struct {
	Token   string
	Expires time.Time
}

// svidClaims are all claims of a JWT-SVID of ours (JWT-SVID 3). There is no iss: our issuer identifier vouches for relay
// tokens, and who finds it in a token must find the key in our JWKS.
type svidClaims struct {
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	Expires  int64    `json:"exp"`
	IssuedAt int64    `json:"iat"`
}

// svidDetail is the Detail of svid.issued and svid.denied.
type svidDetail struct {
	Client   string    `json:"client,omitempty"`
	Audience []string  `json:"audience,omitempty"` // IDs; in a denial as they were sent
	Policy   int       `json:"policy"`
	KID      string    `json:"kid,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
	Msg      string    `json:"msg,omitempty"`
	Hint     string    `json:"hint,omitempty"`
}

// SVID makes a JWT-SVID (SPIFFE JWT-SVID) that proves by to audiences: 1 to 16 names or IDs of services, each by itself or one
// that an edge of the call graph leads to from it. It is for who speaks SPIFFE only: no endpoint of ours takes one, and it
// carries no user and no scope. by must have proved itself by its certificate. What SVID returns, a token or a denial, is in the
// audit log already.
func (s *Service) SVID(ctx context.Context, by countersign.Caller, audiences []string) (SVID, error) {
	p := s.cfg.Policy()
	minted, kid, ids, err := s.mintSVID(p, by, audiences)
	if err != nil {
		return SVID{}, s.recordSVIDDenied(ctx, p, by, audiences, err)
	}
	err = s.cfg.Audit.AppendAll(ctx, audit.Event{
		Type: "svid.issued", Outcome: audit.OK, By: by, Subject: by.ID.String(),
		Detail: svidDetail{Client: by.ID.String(), Audience: ids, Policy: p.Version, KID: kid, Expires: minted.Expires},
	})
	if err != nil {
		return SVID{}, notRecorded(err)
	}
	return minted, nil
}

// mintSVID decides and signs. Nothing of it may leave before it is recorded.
func (s *Service) mintSVID(p *countersign.Policy, by countersign.Caller, audiences []string) (SVID, string, []string, error) {
	ids, err := svidAudiences(p, by, audiences)
	if err != nil {
		return SVID{}, "", nil, err
	}
	if frozen := p.Frozen.RefuseTokens(); frozen != nil {
		return SVID{}, "", nil, frozen
	}
	key, signer, err := s.cfg.Keys.Signer(keyring.SVID, algSVID)
	if err != nil {
		if countersign.AsError(err).Code == countersign.CodeNoKey {
			err = countersign.Errorf(countersign.CodeSVIDKey, "no key signs JWT-SVIDs at the moment").
				WithHint("countersign key list shows the keys of purpose %s and when they sign", keyring.SVID).After(time.Minute).Because(err)
		}
		return SVID{}, "", nil, err
	}
	now := s.cfg.Now().Truncate(time.Second)
	expires := now.Add(svidTTL)
	payload, err := marshal(svidClaims{Subject: by.ID.String(), Audience: ids, Expires: expires.Unix(), IssuedAt: now.Unix()})
	if err != nil {
		return SVID{}, "", nil, err
	}
	ready, err := s.svidSigners.get(key, signer, typSVID)
	if err != nil {
		return SVID{}, "", nil, err
	}
	compact, err := ready.Sign(payload)
	return SVID{Token: compact, Expires: expires.UTC()}, key.ID, ids, err
}

// svidAudiences are the IDs that the audiences of a request mean, or why by may not have a JWT-SVID for them. It is pure.
func svidAudiences(p *countersign.Policy, by countersign.Caller, audiences []string) ([]string, error) {
	if by.Method != countersign.ByCertificate || by.ID.Kind() != countersign.ServiceID {
		return nil, countersign.Errorf(countersign.CodeWrongCredential, "a JWT-SVID is for a service that proved itself by its certificate")
	}
	client, step := admitClient(p, by.ID)
	if !step.OK {
		return nil, countersign.Errorf(step.Code, "%s", step.Msg).WithHint("%s", step.Hint)
	}
	if n := len(audiences); n == 0 || n > maxSVIDAudiences {
		return nil, countersign.Errorf(countersign.CodeSVIDAudience, "1 to %d audiences are needed, not %d", maxSVIDAudiences, n)
	}
	var ids []string
	for _, a := range audiences {
		to := byNameOrID(p, a)
		switch {
		case to == nil:
			return nil, countersign.Errorf(countersign.CodeSVIDAudience, "the audience %s names no service of the policy", quote(a)).
				WithHint("send a service's name or ID")
		case to.Disabled != nil:
			return nil, countersign.Errorf(countersign.CodeSVIDCall, "the service %s is disabled, so nobody proves himself to it", to.Name).
				WithHint("countersign service enable %s", to.Name)
		case to.Name != client.Name:
			if _, ok := p.Call(client.Name, to.Name); !ok {
				return nil, countersign.Errorf(countersign.CodeSVIDCall, "the policy has no call %s -> %s", client.Name, to.Name).
					WithHint("%s may call: %s", client.Name, list(callees(p.CallsFrom(client.Name))))
			}
		}
		if id := to.ID.String(); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// recordSVIDDenied makes the denial's record durable and returns the denial; its sender's hanging up does not end that.
func (s *Service) recordSVIDDenied(ctx context.Context, p *countersign.Policy, by countersign.Caller, audiences []string, cause error) error {
	denial := countersign.AsError(cause)
	outcome := audit.Denied
	if denial.Kind == countersign.Unavailable || denial.Kind == countersign.Internal {
		outcome = audit.Failed
	}
	shown := make([]string, 0, min(len(audiences), maxSVIDAudiences))
	for _, a := range audiences[:min(len(audiences), maxSVIDAudiences)] {
		shown = append(shown, quote(a))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), denialWindow)
	defer cancel()
	err := s.cfg.Audit.AppendAll(ctx, audit.Event{
		Type: "svid.denied", Outcome: outcome, By: by, Subject: by.ID.String(), Code: denial.Code,
		Detail: svidDetail{Client: by.ID.String(), Audience: shown, Policy: p.Version, Msg: denial.Msg, Hint: denial.Hint},
	})
	if err != nil {
		return notRecorded(err)
	}
	return denial
}

// SVIDKeys are the public keys of JWT-SVIDs for the trust bundle, oldest first, and how long the bundle may be cached: half of
// the lead, so that every cache has a key before it signs. changed is the number of the newest change of them, in milliseconds
// since 1970: it grows whenever one comes or goes.
func (s *Service) SVIDKeys() (keys []keyring.Key, changed int64, maxAge time.Duration) {
	now := s.cfg.Now()
	for _, k := range s.cfg.Keys.All(keyring.SVID) {
		changed = max(changed, k.Published.UnixMilli())
		if k.State(now) == keyring.Expired {
			changed = max(changed, k.VerifiesUntil.UnixMilli())
			continue
		}
		keys = append(keys, k)
	}
	return keys, changed, s.cfg.Lead / 2
}
