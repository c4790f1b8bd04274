package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	feedType   = "revocations+jwt"
	feedMedia  = "application/jwt"
	maxFeed    = 1 << 20 // bytes of an answer, which package jwt holds to as well
	maxRevoker = 1024    // bytes of what a revocation names
)

// page is an answer of the list of revocations.
type page struct {
	issuer          string
	issued, expires time.Time
	since, cursor   int64
	more            bool
	list            []countersign.Revocation
}

// page asks once; nil: nothing has changed since. It leaves s as it was unless the answer is good.
func (s *feedSource) page(cfg Config, now time.Time) (*page, error) {
	ctx, cancel := context.WithTimeout(context.Background(), feedTimeout)
	defer cancel()
	etag := s.etag
	if !now.Before(s.until) {
		etag = "" // only a signed answer says that the list is the issuer's
	}
	body, tag, err := s.get(ctx, etag)
	if err != nil {
		return nil, fmt.Errorf("fetch the revocations from %s: %w", s.uri, err)
	}
	if body == "" {
		return nil, nil
	}
	t, p, err := readPage(body)
	if err != nil {
		return nil, fmt.Errorf("the revocations from %s: %w", s.uri, err)
	}
	keys, err := s.keys.Set(ctx, t.KID)
	if err != nil {
		return nil, err
	}
	if err := t.Verify(keys, []string{"ES256"}); err != nil {
		return nil, fmt.Errorf("the revocations from %s: %w", s.uri, err)
	}
	if err := s.judge(p, cfg, now); err != nil {
		return nil, err
	}
	s.etag, s.issued, s.until = tag, latest(s.issued, p.issued), p.expires
	if p.cursor > s.since { // never back: a node that is behind, or was restored, does not make us ask for less
		s.since, s.etag = p.cursor, "" // the tag is of the answer to another question
	}
	return p, nil
}

// judge compares a signed answer with what was asked, and with what is known already. An older one is refused: somebody might
// replay it to hide what was revoked since. Pages are kept for some seconds, and the clocks of nodes differ by some; more than
// a minute is neither.
func (s *feedSource) judge(p *page, cfg Config, now time.Time) error {
	switch {
	case p.issuer != cfg.Issuer:
		return fmt.Errorf("the revocations are of the issuer %.100q", p.issuer)
	case p.issued.After(now.Add(cfg.Leeway)) || !now.Before(p.expires.Add(cfg.Leeway)):
		return fmt.Errorf("the revocations are of %s, good until %s", p.issued.Format(time.RFC3339), p.expires.Format(time.RFC3339))
	case p.issued.Before(s.issued.Add(-jwt.MaxSkew)):
		return fmt.Errorf("the revocations are of %s, older than those of %s", p.issued.Format(time.RFC3339), s.issued.Format(time.RFC3339))
	case p.since != s.since:
		return fmt.Errorf("the revocations are those since %d; asked for were those since %d", p.since, s.since)
	case p.more && p.cursor <= s.since:
		return errors.New("the revocations go on where they began")
	}
	return nil
}

// get is one request; the body is "" if nothing has changed.
func (s *feedSource) get(ctx context.Context, etag string) (body, tag string, err error) {
	u, err := url.Parse(s.uri)
	if err != nil {
		return "", "", err
	}
	query := u.Query()
	query.Set("since", strconv.FormatInt(s.since, 10))
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", "", err
	}
	req.Header.Set("Accept", feedMedia)
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	switch {
	case resp.StatusCode == http.StatusNotModified && etag != "":
		return "", "", nil
	case resp.StatusCode != http.StatusOK:
		return "", "", fmt.Errorf("the answer is %d, not 200 (redirects are not followed)", resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxFeed+1))
	if err != nil {
		return "", "", err
	}
	if len(b) == 0 {
		return "", "", errors.New("the answer is empty")
	}
	return string(b), resp.Header.Get("ETag"), nil
}

// readPage reads an answer, as strictly as a token. Nothing of it is proved yet.
func readPage(compact string) (*jwt.Token, *page, error) {
	t, err := jwt.ParseDocument(compact)
	if err != nil {
		return nil, nil, err
	}
	if !t.HasType(feedType) {
		return nil, nil, fmt.Errorf("the typ %q is not %s", t.Typ, feedType)
	}
	p := &page{}
	var errs [6]error
	var has [6]bool
	p.issuer, has[0], errs[0] = t.Claims.String("iss")
	p.issued, has[1], errs[1] = t.Claims.Time("iat")
	p.expires, has[2], errs[2] = t.Claims.Time("exp")
	p.since, has[3], errs[3] = t.Claims.Integer("since")
	p.cursor, has[4], errs[4] = t.Claims.Integer("cursor")
	p.more, has[5], errs[5] = t.Claims.Bool("more")
	list, ok, err := t.Claims.Objects("revocations")
	if err := errors.Join(errors.Join(errs[:]...), err); err != nil {
		return nil, nil, err
	}
	if !ok || has != [6]bool{true, true, true, true, true, true} {
		return nil, nil, errors.New("iss, iat, exp, since, cursor, more or revocations is missing")
	}
	p.list = make([]countersign.Revocation, len(list))
	for i, entry := range list {
		if p.list[i], err = readRevocation(entry); err != nil {
			return nil, nil, err
		}
	}
	return t, p, nil
}

// readRevocation reads one. A kind that is not known refuses the whole list: to pass over it would be to take what is revoked.
func readRevocation(c jwt.Claims) (countersign.Revocation, error) {
	var r countersign.Revocation
	kind, err := nonEmpty(c, "kind")
	if err != nil {
		return r, err
	}
	if r.Value, err = nonEmpty(c, "value"); err != nil {
		return r, err
	}
	if len(r.Value) > maxRevoker {
		return r, fmt.Errorf("a revocation names something of more than %d bytes", maxRevoker)
	}
	before := false
	r.Kind = countersign.RevocationKind(kind)
	switch r.Kind {
	case countersign.RevokeJTI, countersign.RevokeTransaction, countersign.RevokeSession:
	case countersign.RevokeSubject, countersign.RevokeService:
		before = true
	default:
		return r, fmt.Errorf("%.40q is a kind of revocation that is not known here", kind)
	}
	ok := false
	if r.Until, ok, err = c.Time("until"); err != nil || !ok {
		return r, fmt.Errorf("a revocation of kind %s has no time until which it counts", kind)
	}
	if !before {
		return r, nil // it counts for the others only
	}
	if r.Before, ok, err = c.Time("before"); err != nil || !ok {
		return r, fmt.Errorf("a revocation of kind %s has no time before which it counts", kind)
	}
	return r, nil
}
