package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestNormalURI holds RFC 3986 6.2.2 and 6.2.3.
func TestNormalURI(t *testing.T) {
	for raw, want := range map[string]string{
		"https://a.example":                      "https://a.example/",
		"https://a.example/":                     "https://a.example/",
		"HTTPS://A.Example:443/x":                "https://a.example/x",
		"http://a.example:80/x":                  "http://a.example/x",
		"https://a.example:80/x":                 "https://a.example:80/x",
		"https://a.example:/x":                   "https://a.example/x",
		"https://[::1]:443/x":                    "https://[::1]/x",
		"https://[::1]:8443/x":                   "https://[::1]:8443/x",
		"https://a.example/x?y#z":                "https://a.example/x",
		"https://a.example/%7euser/%41%2f%c3%a4": "https://a.example/~user/A%2F%C3%A4",
		"https://a.example/a/./b/../c":           "https://a.example/a/c",
		"https://a.example/a/%2e%2E/c":           "https://a.example/c",
		"https://a.example/../../c":              "https://a.example/c",
		"https://a.example/a/..":                 "https://a.example/",
		"https://a.example/a/.":                  "https://a.example/a/",
		"https://a.example/a//b":                 "https://a.example/a//b",
		"https://a.example/A":                    "https://a.example/A",
		"https://a.example/a%252fb":              "https://a.example/a%252fb",
	} {
		if got, err := normalURI(raw); err != nil || got != want {
			t.Errorf("%s: %s, want %s (%v)", raw, got, want, err)
		}
	}
	for _, raw := range []string{"", "/x", "a.example/x", "https:/x", "https:x", "https://", "ftp://a.example/", "https://u@a.example/", "https://a.example/%zz", "https://a.example/\x00"} {
		if got, err := normalURI(raw); err == nil {
			t.Errorf("%q is taken as %q", raw, got)
		}
	}
}

func TestSameURI(t *testing.T) {
	base, err := readBase("https://shop.example/api/")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/orders": true, "/orders/": false, "orders": false, "//orders": false, "*": false, "": false, "/x/../orders": true, "/%6frders": true,
	} {
		if got := sameURI("https://shop.example/api/orders", base, path); got != want {
			t.Errorf("%q: %t", path, got)
		}
	}
}

func FuzzNormalURI(f *testing.F) {
	for _, seed := range []string{"https://a.example:443/%7e/../x?y#z", "http://[::1]:80/./", "https://a/%2f%2F/..", "https://a/ b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		once, err := normalURI(raw)
		if err != nil {
			return
		}
		if twice, err := normalURI(once); err != nil || twice != once {
			t.Errorf("%q becomes %q and then %q (%v)", raw, once, twice, err)
		}
		if u, err := url.Parse(once); err != nil || strings.Contains(u.EscapedPath()+"/", "/../") || u.RawQuery != "" {
			t.Errorf("%q becomes %q", raw, once)
		}
	})
}

// TestReplaysAreBounded: what is remembered is bounded in number and time, and when it is full nothing new is taken.
func TestReplaysAreBounded(t *testing.T) {
	key := func(n int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, n)) }
	now := time.Unix(1_800_000_000, 0)
	r := newReplays(time.Minute, 10)
	for n := range 10 {
		if got := r.add(key(n), now); got != fresh {
			t.Fatal(n, got)
		}
	}
	for _, later := range []time.Duration{0, time.Minute, 2*time.Minute - 1} {
		if got := r.add(key(10), now.Add(later)); got != full {
			t.Errorf("after %s one more is %d", later, got)
		}
		if got := r.add(key(3), now.Add(later)); got != replayed {
			t.Errorf("after %s one of the ten is %d", later, got)
		}
	}
	if got := r.add(key(10), now.Add(2*time.Minute)); got != fresh || len(r.now)+len(r.last) > 10 {
		t.Error(got, len(r.now), len(r.last))
	}
	// Each is remembered for the whole window, whenever it came.
	for start := range 120 {
		r := newReplays(time.Minute, 1000)
		r.add(key(0), now)
		came := now.Add(time.Duration(start) * time.Second)
		r.add(key(1), came)
		for s := range 60 {
			if got := r.add(key(1), came.Add(time.Duration(s)*time.Second)); got != replayed {
				t.Fatalf("one that came at %d s is forgotten %d s later", start, s)
			}
		}
	}
}

// TestSustainedProofs holds the rate that docs/verify.md states: about 1000 proofs a second for ever, not twice as many.
func TestSustainedProofs(t *testing.T) {
	for perSecond, want := range map[int]outcome{1090: fresh, 1150: full} {
		seen, now := newProofs(Config{Leeway: defaultLeeway}).seen, time.Unix(1_800_000_000, 0)
		if seen.window != 2*time.Minute {
			t.Fatal(seen.window)
		}
		last, n := fresh, uint64(0)
		for second := range 6 * 60 {
			for range perSecond {
				var key [sha256.Size]byte
				n++
				binary.BigEndian.PutUint64(key[:], n)
				if last = seen.add(key, now.Add(time.Duration(second)*time.Second)); last != fresh {
					break
				}
			}
			if last != fresh {
				break
			}
		}
		if last != want {
			t.Errorf("%d a second: %d, want %d", perSecond, last, want)
		}
	}
}

func FuzzFeed(f *testing.F) {
	for _, seed := range []string{
		`{"iss":"https://cs","iat":1,"exp":2,"since":0,"cursor":3,"more":false,"revocations":[{"kind":"sub","value":"x","before":1,"until":2}]}`,
		`{"iss":"https://cs","iat":1,"exp":2,"since":0,"cursor":3,"more":true,"revocations":[{"kind":"jti","value":"a.b","before":-62135596800,"until":9e9}]}`,
		`{"revocations":[[]]}`, `{}`,
	} {
		f.Add(`{"alg":"ES256","kid":"k","typ":"revocations+jwt"}`, seed)
	}
	f.Fuzz(func(t *testing.T, header, payload string) {
		compact := encode(header) + "." + encode(payload) + ".AAAA"
		token, p, err := readPage(compact)
		if err != nil {
			return
		}
		if !token.HasType(feedType) || p.issuer == "" && !token.Claims.Has("iss") || p.since < 0 || p.cursor < 0 {
			t.Errorf("%+v", p)
		}
		for _, r := range p.list {
			if r.Value == "" || len(r.Value) > maxRevoker || r.Until.Unix() < 0 || r.Before.Year() > 9999 {
				t.Errorf("%+v", r)
			}
			switch r.Kind {
			case "jti", "txn", "sid", "sub", "service":
			default:
				t.Errorf("%+v", r)
			}
		}
	})
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
