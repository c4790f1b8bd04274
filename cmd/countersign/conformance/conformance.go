// Package conformance tests any token endpoint from outside against RFC 8693 (token exchange), RFC 6749, RFC 8707
// (resource indicators), RFC 8705 (mutual TLS) and what these build on. A check is data: its name, the section that it
// comes from, and a function that sends requests and judges the answers.
//
// It never prints, logs or returns a token or a key, never follows a redirect, never contacts an address but the
// endpoint's and that of the issuer's metadata and keys, and never takes an answer that it did not ask for as proof.
// The good subject token is sent to the endpoint in wrong ways too, also in a URL: use one made for tests.
package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Level says how much a check matters: the word of the specification.
type Level string

// The levels. A SHOULD is also what several specifications advise and none demands.
const (
	Must   Level = "MUST"
	Should Level = "SHOULD"
)

// Outcome is what came of a check.
type Outcome string

// The outcomes.
const (
	Pass          Outcome = "pass"
	Fail          Outcome = "fail"
	NotApplicable Outcome = "n/a"
)

// Config says what is tested, and with what. Endpoint, SubjectToken and Audience are required. What else is absent makes
// the checks that need it not applicable.
type Config struct {
	Endpoint string         // URL of the token endpoint
	Issuer   string         // issuer identifier, for the metadata (RFC 8414) and the keys
	Roots    *x509.CertPool // whom to trust; nil: the system's

	Certificate *tls.Certificate // the client's, for mutual TLS (RFC 8705)
	ClientID    string           // sent as client_id

	// Assertion makes a client assertion (RFC 7523); each request gets a new one. It may stand beside a certificate.
	Assertion func() (string, error)

	SubjectToken        string // a good one
	SubjectTokenType    string // a URN; "": an access token's
	ForeignSubjectToken string // good, but for somebody else
	ExpiredSubjectToken string // was good

	Audience, BadAudience string // one that this client may call, one that it may not
	Resource              string // the same target by its URL (RFC 8707)
	Scope, WiderScope     string // one that is granted, one that exists and is not

	// Next is the service of Audience, as a client: with it the token that was issued is exchanged once more.
	Next         *tls.Certificate
	NextClientID string
	NextAudience string

	Timeout time.Duration // of one request; 0: 20 s
}

// Result is what came of one check. Sent and Seen stand with a failure, and hold no token.
type Result struct {
	Name    string  `json:"name"`
	Section string  `json:"section"`
	Level   Level   `json:"level"`
	Title   string  `json:"title"`
	Outcome Outcome `json:"outcome"`
	Why     string  `json:"why,omitempty"`
	Sent    string  `json:"sent,omitempty"`
	Seen    string  `json:"seen,omitempty"`
}

// Report is what came of all checks, in their order.
type Report struct {
	Endpoint string   `json:"token_endpoint"`
	Results  []Result `json:"checks"`
	Summary  Summary  `json:"summary"`
}

// Summary counts.
type Summary struct {
	Passed        int `json:"passed"`
	FailedMust    int `json:"failed_must"`
	FailedShould  int `json:"failed_should"`
	NotApplicable int `json:"not_applicable"`
}

// Check is one rule. The names of needs are those of [needs].
type Check struct {
	Name, Section string
	Level         Level
	Title         string
	needs         []string
	run           func(*probe) verdict
}

// Checks are all checks, in the order in which they run. The last ones judge the answers to all before them.
func Checks() []Check {
	return slices.Concat(transportChecks(), parameterChecks(), grantChecks(), clientChecks(), subjectChecks(), forgeryChecks(), actorChecks(),
		targetChecks(), scopeChecks(), responseChecks(), tokenChecks(), timeChecks(), partyChecks(), nextChecks(), metadataChecks(), keyChecks(), refusalChecks())
}

// Run runs the checks whose name begins with one of only, or all if there is none. It fails if nothing can be tested at
// all; what the endpoint does wrong stands in the report.
func Run(ctx context.Context, cfg Config, only ...string) (Report, error) {
	if err := cfg.check(); err != nil {
		return Report{}, err
	}
	p := newProbe(ctx, cfg)
	defer p.close()
	report := Report{Endpoint: cfg.Endpoint}
	for _, c := range Checks() {
		if len(only) > 0 && !slices.ContainsFunc(only, func(s string) bool { return strings.HasPrefix(c.Name, s) }) {
			continue
		}
		v := p.judge(c)
		if err := ctx.Err(); err != nil {
			return Report{}, err
		}
		report.add(c, v)
	}
	if len(report.Results) == 0 {
		return Report{}, errors.New("no check has such a name")
	}
	if err := p.unreachable(); err != nil {
		return Report{}, err
	}
	return report, nil
}

func (r *Report) add(c Check, v verdict) {
	result := Result{Name: c.Name, Section: c.Section, Level: c.Level, Title: c.Title, Outcome: v.outcome, Why: v.why}
	switch {
	case v.outcome == NotApplicable:
		r.Summary.NotApplicable++
	case v.outcome == Pass:
		r.Summary.Passed++
	case c.Level == Must:
		r.Summary.FailedMust++
	default:
		r.Summary.FailedShould++
	}
	if v.outcome == Fail && v.reply != nil {
		result.Sent, result.Seen = v.reply.sent, v.reply.seen()
	}
	r.Results = append(r.Results, result)
}

func (c *Config) check() error {
	for _, u := range []struct {
		name, value string
		required    bool
	}{{"token endpoint", c.Endpoint, true}, {"issuer", c.Issuer, false}} {
		if u.value == "" && !u.required {
			continue
		}
		if parsed, err := url.Parse(u.value); err != nil || parsed.Host == "" || parsed.Scheme != "https" && parsed.Scheme != "http" {
			return fmt.Errorf("the %s %q is no http or https URL with a host", u.name, u.value)
		}
	}
	switch {
	case c.SubjectToken == "":
		return errors.New("there is no subject token")
	case c.Audience == "":
		return errors.New("there is no audience")
	}
	if c.SubjectTokenType == "" {
		c.SubjectTokenType = typeAccessToken
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	return nil
}
