package wire

import "time"

// Clock is the answer to GET /v1/clock and to POST /v1/clock/confirm.
type Clock struct {
	Trusted bool      `json:"trusted"`       // false: nothing that carries a time is signed
	Why     string    `json:"why,omitempty"` // of the doubt, for people
	Time    time.Time `json:"time"`          // what the daemon goes by
	Wall    time.Time `json:"wall"`          // what the machine's clock says
	Ahead   float64   `json:"ahead_seconds"` // how far that is ahead of what the boot clock expects
}

// ClockConfirmation is the body of POST /v1/clock/confirm.
type ClockConfirmation struct {
	Time time.Time `json:"time"` // what time it is; the daemon's wall clock must agree to a minute
}
