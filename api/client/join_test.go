package client

import (
	"encoding/hex"
	"strings"
	"testing"
)

func TestParseJoin(t *testing.T) {
	fingerprint := strings.Repeat("0a", 32)
	good := "https://ca.internal:8443#abc234." + fingerprint
	j, err := ParseJoin(good)
	if err != nil || j.URL != "https://ca.internal:8443" || j.Host != "ca.internal" || j.Token != "abc234" || hex.EncodeToString(j.Fingerprint[:]) != fingerprint {
		t.Fatalf("got %+v, %v", j, err)
	}
	if j, err := ParseJoin("https://[::1]:8443#abc." + fingerprint); err != nil || j.Host != "::1" {
		t.Errorf("an IPv6 address: %+v, %v", j, err)
	}
	for name, s := range map[string]string{
		"empty":               "",
		"no fragment":         "https://ca.internal:8443",
		"no TLS":              strings.Replace(good, "https", "http", 1),
		"a path":              "https://ca.internal:8443/x#abc." + fingerprint,
		"a query":             "https://ca.internal:8443?x#abc." + fingerprint,
		"a user":              "https://u@ca.internal:8443#abc." + fingerprint,
		"no host":             "https://:8443#abc." + fingerprint,
		"no token":            "https://ca.internal:8443#." + fingerprint,
		"no fingerprint":      "https://ca.internal:8443#abc",
		"short fingerprint":   good[:len(good)-1],
		"upper fingerprint":   "https://ca.internal:8443#abc." + strings.ToUpper(fingerprint),
		"token of other text": "https://ca.internal:8443#abc%0d%0a." + fingerprint,
		"too long":            "https://ca.internal:8443#" + strings.Repeat("a", MaxJoinString) + "." + fingerprint,
	} {
		if _, err := ParseJoin(s); err == nil {
			t.Errorf("%s: %q is read", name, s)
		} else if strings.Contains(err.Error(), "abc") {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add("https://ca.internal:8443#abc." + strings.Repeat("0a", 32))
	f.Add("https://[::1]#a." + strings.Repeat("ff", 32))
	f.Add("#.")
	f.Fuzz(func(t *testing.T, s string) {
		j, err := ParseJoin(s)
		if err != nil {
			return
		}
		again, err := ParseJoin(j.URL + "#" + j.Token + "." + hex.EncodeToString(j.Fingerprint[:]))
		if err != nil || again != j {
			t.Errorf("%q reads as %+v, which reads as %+v, %v", s, j, again, err)
		}
	})
}
