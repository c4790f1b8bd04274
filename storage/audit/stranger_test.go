package audit

import (
	"testing"
	"time"

	countersign "github.com/countersign/countersign"
)

// Counts that could not be recorded come back to newer ones: the span must cover both, in whichever order they are added.
func TestStrangerSpan(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2026, 1, 2, 3, 4, s, 0, time.UTC) }
	key := strangerKey{countersign.CodeNoCredential, "192.0.2.0/24"}
	older, newer := strangerCount{Count: 2, First: at(1), Last: at(2)}, strangerCount{Count: 1, First: at(3), Last: at(3)}
	want := strangerCount{Prefix: key.prefix, Count: 3, First: at(1), Last: at(3)}
	for _, order := range [][]strangerCount{{older, newer}, {newer, older}} {
		var s strangers
		s.init()
		for _, c := range order {
			s.add(key, c)
		}
		if got := s.drain(); len(got) != 1 || got[0].count != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}
