package countersign_test

import (
	"testing"

	"github.com/countersign/countersign"
)

func TestNearest(t *testing.T) {
	known := []string{"listen", "limits", "lead", "log"}
	for word, want := range map[string]string{
		"lisen": "listen", "listne": "listen", "limit": "limits", "laed": "lead", "lead": "lead", "lg": "log",
		"": "", "certificate": "", "xyz": "",
	} {
		if got := countersign.Nearest(word, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
