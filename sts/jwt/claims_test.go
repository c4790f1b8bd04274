package jwt

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTimes holds "exp required, numeric, finite; skew at most 60 s". It is 1,800,000,000.
func TestTimes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		claims string
		skew   time.Duration
		want   Reason // "": taken
	}{
		{"good", `{"exp":1800000001,"nbf":1800000000,"iat":1800000000}`, 0, ""},
		{"fractions", `{"exp":1800000000.5,"nbf":1799999999.9}`, 0, ""},
		{"exponents", `{"exp":1.9e9}`, 0, ""},
		{"exp missing", `{"iat":1800000000}`, 0, ReasonClaim},
		{"exp null", `{"exp":null}`, 0, ReasonClaim},
		{"exp string", `{"exp":"1800000300"}`, 0, ReasonClaim},
		{"exp boolean", `{"exp":true}`, 0, ReasonClaim},
		{"exp array", `{"exp":[1800000300]}`, 0, ReasonClaim},
		{"exp object", `{"exp":{}}`, 0, ReasonClaim},
		{"exp negative", `{"exp":-1}`, 0, ReasonClaim},
		{"exp of int64 min", `{"exp":-9223372036854775808}`, 0, ReasonClaim},
		{"exp of uint64 max", `{"exp":18446744073709551615}`, 0, ReasonClaim},
		{"exp 1e300", `{"exp":1e300}`, 0, ReasonClaim},
		{"exp in milliseconds", `{"exp":1800000300000}`, 0, ReasonClaim},
		{"exact member names", `{"EXP":1800000300}`, 0, ReasonClaim},
		{"exp is now", `{"exp":1800000000}`, 0, ReasonExpired},
		{"exp passed", `{"exp":1799999999}`, 0, ReasonExpired},
		{"exp zero", `{"exp":0}`, time.Minute, ReasonExpired},
		{"exp within the skew", `{"exp":1799999941}`, time.Minute, ""},
		{"exp at the skew", `{"exp":1799999940}`, time.Minute, ReasonExpired},
		{"skew is cut to 60 s", `{"exp":1799999940}`, time.Hour, ReasonExpired},
		{"a negative skew is none", `{"exp":1800000001}`, -time.Hour, ""},
		{"nbf in the future", `{"exp":1900000000,"nbf":1800000001}`, 0, ReasonNotYet},
		{"nbf within the skew", `{"exp":1900000000,"nbf":1800000060}`, time.Minute, ""},
		{"nbf beyond the skew", `{"exp":1900000000,"nbf":1800000060.5}`, time.Hour, ReasonNotYet},
		{"nbf string", `{"exp":1900000000,"nbf":"0"}`, 0, ReasonClaim},
		{"iat in the future", `{"exp":1900000000,"iat":1800000001}`, 0, ReasonFuture},
		{"iat within the skew", `{"exp":1900000000,"iat":1800000060}`, time.Minute, ""},
		{"iat null", `{"exp":1900000000,"iat":null}`, 0, ReasonClaim},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := must(ParseClaims([]byte(tt.claims))).CheckTimes(now(), tt.skew)
			if tt.want != "" {
				wantReason(t, err, tt.want)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
	_, err := ParseClaims([]byte(`{"exp":1e400}`))
	wantReason(t, err, ReasonJSON)
}

func TestClaims(t *testing.T) {
	c := must(ParseClaims([]byte(`{"sub":"alice","Act":{"sub":"evil"},"n":7,"aud":["a","b"],"none":[],
		"mixed":["a",null],"null":null,"act":{"sub":"x","act":{"sub":"y"}}}`)))
	if diff := cmp.Diff([]string{"sub", "Act", "n", "aud", "none", "mixed", "null", "act"}, c.Names()); diff != "" {
		t.Error(diff)
	}
	if s, ok, err := c.String("sub"); s != "alice" || !ok || err != nil {
		t.Error(s, ok, err)
	}
	if s, ok, err := c.String("SUB"); s != "" || ok || err != nil {
		t.Error("SUB binds to sub:", s, ok, err)
	}
	act, ok, err := c.Object("act")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	inner, _, _ := act.Object("act")
	if s, _, _ := inner.String("sub"); s != "y" {
		t.Error("the inner act is", s)
	}
	if got := must(c.Audience()); !cmp.Equal(got, []string{"a", "b"}) {
		t.Error(got)
	}
	if list, ok, err := c.Strings("none"); len(list) != 0 || !ok || err != nil {
		t.Error(list, ok, err)
	}
	if !c.Has("null") || c.Has("nil") {
		t.Error("null is not there or nil is")
	}
	for _, name := range []string{"n", "null", "aud", "act"} {
		if _, ok, err := c.String(name); !ok || err == nil {
			t.Errorf("%q is a string", name)
		}
	}
	for _, name := range []string{"n", "null", "sub", "mixed", "act"} {
		if _, ok, err := c.Strings(name); !ok || err == nil {
			t.Errorf("%q is an array of strings", name)
		}
	}
	for _, name := range []string{"n", "null", "sub", "aud"} {
		if _, ok, err := c.Object(name); !ok || err == nil {
			t.Errorf("%q is an object", name)
		}
	}
	for _, aud := range []string{`null`, `1`, `{}`, `[1]`, `[["a"]]`, `["a",null]`} {
		if got, err := must(ParseClaims([]byte(`{"aud":` + aud + `}`))).Audience(); err == nil {
			t.Errorf("aud %s is %q", aud, got)
		}
	}
	if got, err := (Claims{}).Audience(); got != nil || err != nil {
		t.Error("no aud is", got, err)
	}
	_, err = ParseClaims(make([]byte, MaxToken+1))
	wantReason(t, err, ReasonSize)
}
