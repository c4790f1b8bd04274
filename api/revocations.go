package api

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts"
)

// feedMaxAge is how long the feed may be cached: verifiers poll it to be seconds behind.
const feedMaxAge = time.Second

// tokenForm reads what revocation and introspection take.
func (s *Server) tokenForm(rq *request) (sts.TokenForm, error) {
	parsed, err := sts.ParseTokenForm(rq.form)
	if err != nil {
		return sts.TokenForm{}, s.refused(rq.Context, rq.caller, err) // as at the token endpoint
	}
	return parsed, nil
}

// revokeToken is RFC 7009 2: 200 without a body, also when there was nothing to revoke.
func (s *Server) revokeToken(rq *request) error {
	form, err := s.tokenForm(rq)
	if err != nil {
		return err
	}
	if err := s.STS.RevokeToken(rq.Request().Context(), rq.caller, form); err != nil {
		return err
	}
	return rq.NoContent(http.StatusOK)
}

// introspect is RFC 7662 2.
func (s *Server) introspect(rq *request) error {
	form, err := s.tokenForm(rq)
	if err != nil {
		return err
	}
	answer, err := s.STS.Introspect(rq.caller, form)
	if err != nil {
		return s.refused(rq.Context, rq.caller, err)
	}
	return rq.Blob(http.StatusOK, wire.JSON, append(answer, '\n'))
}

// logout is OpenID Connect Back-Channel Logout 1.0, 2.5 and 2.8: 200 without a body.
func (s *Server) logout(rq *request) error {
	form, err := readForm(rq)
	if err != nil {
		return err
	}
	token, err := sts.ParseLogoutForm(form)
	if err != nil {
		return err
	}
	if err := s.STS.Logout(rq.Request().Context(), rq.caller, token); err != nil {
		return err
	}
	return rq.NoContent(http.StatusOK)
}

// feed is the signed list of revocations that sts/verify polls.
func (s *Server) feed(rq *request) error {
	since, err := cursor(rq.Request().URL.RawQuery)
	if err != nil {
		return err
	}
	page, err := s.STS.Feed(since)
	if err != nil {
		return err
	}
	rq.Response().Header().Del("Pragma") // it may be cached, unlike all else at /oauth2
	return rq.document(wire.JWT, page.Body, page.ETag, feedMaxAge)
}

// cursor reads since, a decimal number in its one spelling; without it the feed begins at 0. Other parameters are ignored.
func cursor(rawQuery string) (int64, error) {
	query, err := url.ParseQuery(rawQuery)
	sent := query["since"]
	if err == nil && len(sent) == 0 {
		return 0, nil
	}
	if err == nil && len(sent) == 1 {
		since, err := strconv.ParseInt(sent[0], 10, 64)
		if err == nil && since >= 0 && strconv.FormatInt(since, 10) == sent[0] {
			return since, nil
		}
	}
	return 0, countersign.Errorf(countersign.CodeParameter, "since must be one cursor that the feed gave, or 0")
}

// revokeTokens is an operator's revocation.
func (s *Server) revokeTokens(rq *request) error {
	var in wire.TokenRevocationRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	made, err := s.STS.Revoke(rq.Request().Context(), rq.caller, sts.RevokeRequest{
		JTI: in.JTI, Transaction: in.Transaction, Subject: in.Subject, SessionID: in.SessionID, Issuer: in.Issuer, Service: in.Service, Reason: in.Reason,
	})
	if err != nil {
		return err
	}
	return rq.answer(http.StatusCreated, tokenRevocation(made))
}

// tokenRevocations lists what is revoked, the newest first.
func (s *Server) tokenRevocations(rq *request) error {
	limit, err := rq.number("limit", 1, 1000, 100)
	if err != nil {
		return err
	}
	before := time.Time{}
	if text, ok := rq.query["after"]; ok {
		cursor, err := strconv.ParseInt(text, 10, 64)
		if err != nil || cursor <= 0 {
			return countersign.Errorf(countersign.CodeParameter, "after must be the next of another page")
		}
		before = time.UnixMicro(cursor)
	}
	list, next, err := s.STS.Revocations(rq.Request().Context(), before, limit)
	if err != nil {
		return err
	}
	out := wire.TokenRevocations{Revocations: make([]wire.TokenRevocation, 0, len(list))}
	for _, r := range list {
		out.Revocations = append(out.Revocations, tokenRevocation(r))
	}
	if !next.IsZero() {
		out.Next = strconv.FormatInt(next.UnixMicro(), 10)
	}
	return rq.answer(http.StatusOK, out)
}

func tokenRevocation(r sts.Revocation) wire.TokenRevocation {
	out := wire.TokenRevocation{
		Kind: string(r.Kind), Value: r.Value, Name: r.Name, Issuer: r.Issuer, MadeAt: r.Made, Until: r.Until.UTC(), Reason: r.Reason, By: r.By,
	}
	if r.Kind == countersign.RevokeSubject || r.Kind == countersign.RevokeService {
		out.Before = r.Before.UTC()
	}
	return out
}
