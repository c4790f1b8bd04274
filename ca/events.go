package ca

import (
	"context"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

// The types of the events about certificates. An intent is followed by exactly one of issued, recovered and abandoned,
// with the same subject: the serial. (A repeat appends another issued.)
const (
	eventIntent    = "certificate.intent"
	eventIssued    = "certificate.issued"
	eventRecovered = "certificate.recovered" // the record is there, the event was missing
	eventAbandoned = "certificate.abandoned" // the serial never became a recorded certificate
	eventDenied    = "certificate.denied"
)

// certificateDetail is the detail of intent and issued.
type certificateDetail struct {
	ID          countersign.ID `json:"id,omitzero"` // of leaves
	Profile     Profile        `json:"profile"`
	How         string         `json:"how"`
	Role        string         `json:"role,omitempty"` // of intents for operators: "operator.added" may not come to be written
	NotAfter    time.Time      `json:"not_after"`
	SPKI        string         `json:"spki,omitempty"`
	TBS         string         `json:"tbs_sha256,omitempty"` // of intents: the exact bytes to be signed
	Fingerprint string         `json:"fingerprint,omitempty"`
	Issuer      string         `json:"issuer,omitempty"` // serial
}

type revocationDetail struct {
	ID     countersign.ID `json:"id"`
	Reason string         `json:"reason"`
	SPKI   string         `json:"spki"`
}

type denialDetail struct {
	Why string `json:"why"`
}

type settledDetail struct {
	ID  countersign.ID `json:"id,omitzero"`
	Why string         `json:"why,omitempty"`
}

type operatorDetail struct {
	Role   string `json:"role"`
	Serial string `json:"serial"`
}

const (
	howInit     = "init"
	howRotation = "rotation"
	howSchedule = "schedule" // of responders
)

func authorityIntent(by countersign.Caller, p Profile, how string, t checkedTBS, notAfter time.Time) audit.Event {
	return audit.Event{
		Type: eventIntent, Outcome: audit.Intent, By: by, Subject: t.serial,
		Detail: certificateDetail{Profile: p, How: how, NotAfter: notAfter, TBS: t.digest()},
	}
}

func issuedEvent(by countersign.Caller, how string, i issuer) audit.Event {
	return audit.Event{
		Type: eventIssued, Outcome: audit.OK, By: by, Subject: i.serial,
		Detail: certificateDetail{Profile: i.Role, How: how, NotAfter: i.cert.NotAfter, Fingerprint: fingerprint(i.cert)},
	}
}

func intentEvent(o order, s Subject, t checkedTBS) audit.Event {
	d := certificateDetail{
		ID: o.names.id, Profile: o.profile, How: o.how, NotAfter: s.NotAfter,
		SPKI: o.csr.spki, TBS: t.digest(), Issuer: serialText(s.Issuer.SerialNumber),
	}
	if o.how == howOperator {
		d.Role = o.role.String()
	}
	return audit.Event{Type: eventIntent, Outcome: audit.Intent, By: o.by, Subject: t.serial, Detail: d}
}

func issuedRecordEvent(o order, r Record) audit.Event {
	return audit.Event{
		Type: eventIssued, Outcome: audit.OK, By: o.by, Subject: r.Serial,
		Detail: certificateDetail{
			ID: r.ID, Profile: Profile(r.Kind), How: o.how, NotAfter: r.NotAfter,
			SPKI: r.SPKI, Fingerprint: r.Fingerprint, Issuer: r.Issuer,
		},
	}
}

// doneEvents tell of a certificate that is recorded, and of the operator that came with it.
func doneEvents(o order, r Record) []audit.Event {
	events := []audit.Event{issuedRecordEvent(o, r)}
	if o.how == howOperator {
		events = append(events, audit.Event{
			Type: "operator.added", Outcome: audit.OK, By: o.by, Subject: r.ID.Name(),
			Detail: operatorDetail{Role: o.role.String(), Serial: r.Serial},
		})
	}
	return events
}

// abandon tells that the serial of an intent will never be a recorded certificate. If that can't be told now, settling
// tells it later.
func (a *Authority) abandon(ctx context.Context, o order, serial, why string) {
	_, err := a.cfg.Audit.Append(context.WithoutCancel(ctx), audit.Event{
		Type: eventAbandoned, Outcome: audit.Failed, By: o.by, Subject: serial,
		Detail: settledDetail{ID: o.names.id, Why: why},
	})
	if err != nil {
		a.flights.leave(serial)
		return
	}
	a.flights.end(serial)
}

// deny records a refusal and returns it; if it can't be recorded, that is what is returned. Not recorded are refusals of
// nobody in particular (the transport counts them, so that strangers can't fill the log) and what failed without
// a rule having said no (the transport logs it).
func (a *Authority) deny(ctx context.Context, by countersign.Caller, subject string, refusal error) error {
	e := countersign.AsError(refusal)
	a.metrics.countDenied(e.Code)
	switch e.Kind {
	case countersign.Invalid, countersign.Denied, countersign.Conflict, countersign.NotFound, countersign.TooLarge:
	case countersign.Unavailable:
		if e.Code != countersign.CodeIssuerExpiring {
			return e
		}
	default:
		return e
	}
	_, err := a.cfg.Audit.Append(ctx, audit.Event{
		Type: eventDenied, Outcome: audit.Denied, By: by, Subject: subject, Code: e.Code, Detail: denialDetail{Why: e.Msg},
	})
	if err != nil {
		return err
	}
	return e
}
