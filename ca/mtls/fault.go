package mtls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
)

// answerError is an answer that holds no identity of ours.
type answerError struct{ error }

func (e *answerError) Error() string { return "the answer can't be used: " + e.error.Error() }
func (e *answerError) Unwrap() error { return e.error }

// configError is something at home that keeps from asking.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

// clockError is a handshake that failed for the times in the authority's certificate.
type clockError struct {
	error
	text string
}

func (e *clockError) Error() string { return e.error.Error() + "; " + e.text }
func (e *clockError) Unwrap() error { return e.error }

// busyFor is how long the authority asks to wait: Retry-After of 429 and 503; 0: it does not.
func busyFor(err error) time.Duration {
	var e *client.APIError
	if errors.As(err, &e) && (e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable) {
		return max(e.RetryAfter, time.Second)
	}
	return 0
}

// hasPlace tells whether the authority keeps a place for this one caller at the time that it named.
func hasPlace(err error) bool {
	var e *client.APIError
	return errors.As(err, &e) && e.Code() == countersign.CodePaced
}

// reasonOf sorts errors for metrics.
func reasonOf(err error) Reason {
	var clock *clockError
	var answer *answerError
	var config *configError
	var api *client.APIError
	var unread *client.AnswerError
	switch {
	case errors.As(err, &clock):
		return Clock
	case busyFor(err) > 0:
		return Busy
	case errors.As(err, &answer), errors.As(err, &unread):
		return BadAnswer
	case errors.As(err, &api):
		return Refused
	case errors.As(err, &config), errors.Is(err, ErrNone):
		return Configuration
	}
	return Unreachable
}

// heard compares the clocks by the Date of an answer, which is cut to the second.
func (s *Source) heard(date time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.skew, s.state.skewAtLeast = s.now().Sub(date.Add(time.Second/2)).Round(time.Second), false
}

// nameSkew adds to err how wrong the clock here is, if it is. The caller holds the lock. Where the clock is so wrong that the
// authority's certificate does not count, nothing it says does either; then the certificate's interval bounds the skew, for
// its beginning is never ahead of the authority's clock.
func (s *Source) nameSkew(err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil {
		now := s.now()
		if now.Before(invalid.Cert.NotBefore) {
			s.state.skew, s.state.skewAtLeast = now.Sub(invalid.Cert.NotBefore).Round(time.Second), true
		} else {
			return &clockError{err, fmt.Sprintf("the clock here says %s, and the authority's certificate was over at %s: one of the two has to be mended",
				now.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))}
		}
		return &clockError{err, s.skewText()}
	}
	if text := s.skewText(); text != "" {
		return fmt.Errorf("%w; %s", err, text)
	}
	return err
}

// skewText names a skew that matters; "": it does not. The caller holds the lock.
func (s *Source) skewText() string {
	d, side := s.state.skew, "ahead of"
	if d < 0 {
		d, side = -d, "behind"
	}
	switch {
	case d < skewSaid && !s.state.skewAtLeast:
		return ""
	case s.state.skewAtLeast:
		return fmt.Sprintf("the clock here is at least %s %s the authority's: set it", d, side)
	}
	return fmt.Sprintf("the clock here is %s %s the authority's: set it", d, side)
}

// tellSkew says once that the clocks differ.
func (s *Source) tellSkew() {
	s.mu.Lock()
	text := s.skewText()
	tell := text != "" && !s.state.skewTold
	s.state.skewTold = text != ""
	s.mu.Unlock()
	if tell {
		s.cfg.Logger.Warn(text)
		s.emit(Event{Kind: Skewed})
	}
}
