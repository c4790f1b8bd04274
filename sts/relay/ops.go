package relay

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

type health struct{ ready atomic.Bool } // it listens, and was not told to stop

// readiness is the body of /readyz.
type readiness struct {
	Ready       bool      `json:"ready"`
	Reason      string    `json:"reason,omitempty"`
	ID          string    `json:"id,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	RenewFailed string    `json:"renew_failed,omitempty"` // why the last renewal failed; ready as long as the certificate is good
}

func (r *Relay) readiness() readiness {
	st := r.src.Status()
	out := readiness{ID: st.ID.String(), Serial: st.Serial, NotAfter: st.NotAfter}
	if st.LastError != nil {
		out.RenewFailed = st.LastError.Error()
	}
	switch _, err := r.src.Identity(); {
	case err != nil:
		out.Reason = err.Error()
	case !r.health.ready.Load():
		out.Reason = "the relay does not listen yet, or is stopping"
	default:
		out.Ready = true
	}
	return out
}

// openOps serves /livez, /readyz and /metrics. Readiness is the relay's own: a daemon or an application that is down makes no
// relay be taken out of service, since the next one would find the same.
func (r *Relay) openOps(address string) (*listener, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		state := r.readiness()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !state.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(state)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{}))
	return open(r.base, door{name: "ops", address: address, handler: mux}, func(h http.Handler) http.Handler { return h }, r.log)
}
