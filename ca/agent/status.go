package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign/ca/identity"
)

// Status is what `agent status -o json` prints and the status socket answers. Names are stable.
type Status struct {
	Running    bool             `json:"running"` // an agent answered; false: read from the directories
	PID        int              `json:"pid,omitempty"`
	Version    string           `json:"version,omitempty"`
	Since      time.Time        `json:"since,omitzero"`
	Healthy    bool             `json:"healthy"` // every identity is
	Identities []IdentityStatus `json:"identities"`
}

// IdentityStatus is the state of one identity.
type IdentityStatus struct {
	Name        string       `json:"name"`
	Dir         string       `json:"dir"`
	ID          string       `json:"id,omitempty"`
	Serial      string       `json:"serial,omitempty"`
	State       State        `json:"state"`
	Healthy     bool         `json:"healthy"`
	Why         string       `json:"why,omitempty"` // it is not healthy
	NotBefore   time.Time    `json:"not_before,omitzero"`
	NotAfter    time.Time    `json:"not_after,omitzero"`
	RenewAt     time.Time    `json:"renew_at,omitzero"`
	Server      string       `json:"server,omitempty"`
	LastAttempt time.Time    `json:"last_attempt,omitzero"`
	LastError   string       `json:"last_error,omitempty"`
	Failures    int          `json:"failures"`              // renewals in a row that failed
	Skew        float64      `json:"skew_seconds"`          // by how much this clock is ahead of the authority's; negative: behind
	Budget      float64      `json:"outage_budget_seconds"` // how long the authority may be away from now on
	Reload      ReloadStatus `json:"reload"`
	Unwritten   bool         `json:"unwritten,omitempty"` // a newer certificate waits to be written
	SpringError string       `json:"spring_error,omitempty"`
}

// ReloadStatus says how far the program got with the newest files.
type ReloadStatus struct {
	OK       bool      `json:"ok"`               // false: an alarm
	Serial   string    `json:"serial,omitempty"` // delivered last
	At       time.Time `json:"at,omitzero"`
	Verified bool      `json:"verified"`           // it was seen to be served
	Served   string    `json:"served,omitempty"`   // serial that the last look saw
	Attempts int       `json:"attempts,omitempty"` // at the files that are not delivered yet
	Error    string    `json:"error,omitempty"`
	Kept     string    `json:"kept,omitempty"` // version directory that is held for the program
}

// State is how near a certificate is to its end.
type State string

// The states. Late to critical are named after the parts of the lifetime that are left: under 1/3, 1/6, 1/20.
const (
	StateNone     State = "none"
	StateOK       State = "ok"
	StateLate     State = "late"     // the renewal is overdue
	StateLow      State = "low"      // not ready any more
	StateCritical State = "critical" //
	StateExpired  State = "expired"
)

// stateAt judges a certificate by the clock. It is pure.
func stateAt(now, notBefore, notAfter time.Time) State {
	lifetime, left := notAfter.Sub(notBefore), notAfter.Sub(now)
	switch {
	case notAfter.IsZero():
		return StateNone
	case left < 0:
		return StateExpired
	case left < lifetime/20:
		return StateCritical
	case left < lifetime/6:
		return StateLow
	case left < lifetime/3:
		return StateLate
	}
	return StateOK
}

// ready tells whether a state is good enough for /readyz.
func (s State) ready() bool { return s == StateOK || s == StateLate }

// judge sets State, Healthy and Why.
func (s *IdentityStatus) judge(now time.Time) {
	s.State = stateAt(now, s.NotBefore, s.NotAfter)
	left := s.NotAfter.Sub(now).Round(time.Second)
	switch {
	case s.State == StateNone && s.LastError == "":
		s.Why = "there is no certificate yet"
	case s.State == StateNone:
		s.Why = "there is no certificate: " + s.LastError
	case s.State == StateExpired:
		s.Why = fmt.Sprintf("the certificate expired %s ago", -left)
	case !s.State.ready():
		s.Why = fmt.Sprintf("the certificate ends in %s: less than a sixth of its lifetime is left", left)
	case s.Unwritten:
		s.Why = "the new certificate can't be written: " + s.LastError
	case !s.Reload.OK:
		s.Why = "the program did not take the new certificate: " + s.Reload.Error
	case s.SpringError != "":
		s.Why = SpringFile + " could not be written: " + s.SpringError
	}
	if s.LastError != "" && s.State != StateNone && !s.State.ready() {
		s.Why += "; the last renewal failed: " + s.LastError
	}
	s.Healthy = s.Why == ""
}

// judged sets Healthy from the identities'.
func (s Status) judged() Status {
	s.Healthy = len(s.Identities) > 0 && !slices.ContainsFunc(s.Identities, func(i IdentityStatus) bool { return !i.Healthy })
	return s
}

// ReadStatus is the state of the identities as their directories alone tell it, without an agent.
func ReadStatus(c Config, now time.Time) Status {
	s := Status{Identities: []IdentityStatus{}}
	for _, cfg := range c.Identities {
		i := IdentityStatus{Name: cfg.name(), Dir: cfg.Dir, Reload: ReloadStatus{OK: true}}
		id, err := identity.Load(cfg.Dir)
		if err != nil {
			i.LastError = err.Error()
		} else {
			i.fill(id)
			r := readRecord(cfg.Dir)
			i.Reload = ReloadStatus{OK: true, Serial: r.Serial, At: r.At, Verified: r.Verified, Kept: kept(cfg.Dir)}
			if cfg.notifies() && (r.Serial != id.Serial || r.Roots != rootsHash(id) || cfg.Verify != nil && !r.Verified) {
				i.Reload.OK, i.Reload.Error = false, "the newest files were not delivered to it"
			}
		}
		i.judge(now)
		s.Identities = append(s.Identities, i)
	}
	return s.judged()
}

func (s *IdentityStatus) fill(id *identity.Identity) {
	s.ID, s.Serial, s.NotBefore, s.NotAfter = id.ID.String(), id.Serial, id.NotBefore, id.NotAfter
	if s.Server == "" {
		s.Server = id.Server
	}
}

// notifies tells whether anything is done or looked at after a change.
func (id Identity) notifies() bool { return len(id.Reload.hooks()) > 0 || id.Verify != nil }

// rootsHash names the roots of an identity, in whatever order they come.
func rootsHash(id *identity.Identity) string {
	var sums []string
	for _, root := range id.Roots {
		sum := sha256.Sum256(root.Raw)
		sums = append(sums, string(sum[:]))
	}
	slices.Sort(sums)
	all := sha256.New()
	for _, sum := range sums {
		all.Write([]byte(sum))
	}
	return hex.EncodeToString(all.Sum(nil)[:8])
}
