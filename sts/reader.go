package sts

import (
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// reader reads claims and keeps the first error, so that a whole token is read in one expression. After an error every
// value is zero.
type reader struct {
	claims jwt.Claims
	err    error
}

// wrongClaim is the refusal of a subject token whose claims are of the wrong form.
func wrongClaim(err error) error {
	return countersign.Errorf(countersign.CodeSubjectToken, "the subject token: %s", err)
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = countersign.Errorf(countersign.CodeSubjectToken, "the subject token: "+format, args...)
	}
}

// optional is a string claim, "" if it is not there.
func (r *reader) optional(name string) string {
	s, _, err := r.claims.String(name)
	if err != nil {
		r.fail("%s", err)
	}
	if r.err != nil {
		return ""
	}
	return s
}

// text is a string claim that must be there and not empty.
func (r *reader) text(name string) string {
	s := r.optional(name)
	if s == "" {
		r.fail("%q is missing", name)
	}
	return s
}

func (r *reader) time(name string) time.Time {
	t, ok, err := r.claims.Time(name)
	if err != nil || !ok {
		r.fail("%q is missing or no time", name)
		return time.Time{}
	}
	return t
}

// scopes reads a scope claim: one string (RFC 8693 4.2) or an array of strings, as many issuers send it.
func (r *reader) scopes(name string) []string {
	if s, ok, err := r.claims.String(name); err == nil {
		if !ok {
			return nil
		}
		return strings.Split(s, " ")
	}
	scopes, _, err := r.claims.Strings(name)
	if err != nil {
		r.fail("%q is neither a string nor an array of strings", name)
	}
	return scopes
}

// actors reads the chain of a token of ours: objects of exactly sub and act. It ends because tokens are nested at most
// [jwt.MaxDepth] deep.
func (r *reader) actors(name string) *Actor {
	object, ok, err := r.claims.Object(name)
	if !ok {
		return nil
	}
	sub, _, subErr := object.String("sub")
	if err != nil || subErr != nil || sub == "" {
		r.fail("%q is no chain of ours", name)
		return nil
	}
	inner := reader{claims: object}
	actor := &Actor{Sub: sub, Act: inner.actors("act")}
	if inner.err != nil {
		r.fail("%q is no chain of ours", name)
	}
	return actor
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return strconv.Itoa(n) + " " + word + "s"
}
