package keyring

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.step.sm/crypto/kms/uri"

	"github.com/countersign/countersign"
)

func TestParsePlace(t *testing.T) {
	const soft = "/usr/lib/softhsm/libsofthsm2.so"
	for text, want := range map[string]Place{
		"":         {},
		"softkms:": {},
		"pkcs11:module-path=" + soft + ";token=countersign?pin-source=/run/pin":    {module: soft, by: "token", token: "countersign", pin: "/run/pin"},
		"pkcs11:token=a%20b%2Bc?module-path=" + soft + "&pin-source=file:/run/pin": {module: soft, by: "token", token: "a b+c", pin: "/run/pin"},
		"pkcs11:serial=0a1b;module-path=" + soft + ";max-sessions=8":               {module: soft, by: "serial", token: "0a1b", sessions: 8},
		"pkcs11:slot-id=5;module-path=" + soft:                                     {module: soft, by: "slot-id", token: "5"},
	} {
		if got, err := ParsePlace(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	const secret = "s3cr3t"
	for text, want := range map[string]string{
		secret:                                   "must begin with pkcs11:",
		"PKCS11:token=":                          "must begin with pkcs11:",
		"yubikey:slot-id=9a;pin-value=" + secret: "must begin with pkcs11:",
		"pkcs11:":                                "name=value",
		"pkcs11:token=a":                         "module-path",
		"pkcs11:module-path=" + soft:             "which token",
		"pkcs11:module-path=libsofthsm2.so;token=a":                              "absolute",
		"pkcs11:module-path=" + soft + ";token=a?pin-value=" + secret:            "pin-value is refused",
		"pkcs11:module-path=" + soft + ";token=a;pin-value=" + secret:            "pin-value is refused",
		"pkcs11:module-path=" + soft + ";token=a?pin-prompt=x":                   "pin-prompt is refused",
		"pkcs11:module-path=" + soft + ";token=a?pin-source=pin":                 "absolute",
		"pkcs11:module-path=" + soft + ";token=a;serial=1":                       "once",
		"pkcs11:module-path=" + soft + ";token=a;token=a":                        "twice",
		"pkcs11:module-path=" + soft + ";token=a;id=01":                          "names a key",
		"pkcs11:module-path=" + soft + ";token=a;object=x":                       "names a key",
		"pkcs11:module-path=" + soft + ";token=a;pin=" + secret:                  "there is no attribute",
		"pkcs11:module-path=" + soft + ";slot-id=-1":                             "slot-id",
		"pkcs11:module-path=" + soft + ";token=a;max-sessions=1":                 "max-sessions",
		"pkcs11:module-path=" + soft + ";token=%zz":                              "percent",
		"pkcs11:module-path=" + soft + ";token=%0a":                              "percent",
		"pkcs11:module-path=" + soft + ";token=":                                 "empty",
		"pkcs11:module-path=" + soft + ";token=" + strings.Repeat("a", maxPlace): "bytes",
	} {
		_, err := ParsePlace(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%.80q: %v, want %q", text, err, want)
		}
	}
}

// One token is one, however often it is named; its two descriptions must not differ.
func TestPlaces(t *testing.T) {
	a, err := ParsePlace("pkcs11:module-path=/m.so;token=a?pin-source=/pin")
	if err != nil {
		t.Fatal(err)
	}
	other := a
	other.pin = "/other"
	if got := (Places{Root: a, Token: a}).managed(); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if err := (Places{Root: a, Also: []Place{other}}).Check(); err == nil || !strings.Contains(err.Error(), "two ways") {
		t.Errorf("%v", err)
	}
	p := Places{Root: a, Token: a}
	if p.of(CA, true) != a || p.of(CA, false).Managed() || p.of(Token, false) != a || p.of(SVID, false).Managed() || p.of(Audit, false).Managed() {
		t.Error("keys are made elsewhere than they should be")
	}
	if _, err := placeOf(a.keyURI("0a", "x"), []Place{other}); err != nil {
		t.Error(err)
	}
	if _, err := placeOf("pkcs11:token=ab;id=0a;object=x", []Place{a}); countersign.AsError(err).Code != countersign.CodeKMSPlace {
		t.Errorf("a token whose name begins alike: %v", err)
	}
}

// Whatever is read as a place means the same to the library that opens it, and holds no PIN.
func FuzzParsePlace(f *testing.F) {
	f.Add("pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;token=countersign?pin-source=/run/pin")
	f.Add("softkms:")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePlace(text)
		if err != nil || !p.Managed() {
			return
		}
		key := p.keyURI("00ff", "countersign-token")
		read, err := uri.ParseWithScheme(schemePKCS11, key)
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if read.Get(p.by) != p.token || read.Get("object") != "countersign-token" || string(read.GetEncoded("id")) != "\x00\xff" || read.Pin() != "" {
			t.Fatalf("%q means %v to the library", key, read.Values)
		}
		if again, err := placeOf(key, []Place{p}); err != nil || again != p {
			t.Fatalf("%q: %v, %v", key, again, err)
		}
	})
}

// A call that hangs is given up, and keeps its slot: what a module does can't be interrupted.
func TestHangingModule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(Place{by: "token", token: "a"}, "")
		release := make(chan struct{})
		start := time.Now()
		if err := d.call(func() error { <-release; return nil }); err != errHangs || time.Since(start) != callWait {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		if len(d.slots) != 1 {
			t.Errorf("%d slots are taken", len(d.slots))
		}
		if err := d.lose(nil, errHangs); err.Code != countersign.CodeKMSDown || err.RetryAfter <= 0 || d.usable() == nil {
			t.Errorf("%v", err)
		}
		close(release)
		synctest.Wait()
		if err := d.call(func() error { return nil }); err != nil || len(d.slots) != 0 {
			t.Errorf("%v", err)
		}
	})
}

// The URI of a key counts only as it was bound to kid and purpose: who can write to the store can't have another key sign, nor
// use one for another purpose. A build that loads no modules names the one that does.
func TestBoundURI(t *testing.T) {
	key, err := generate(algES256)
	if err != nil {
		t.Fatal(err)
	}
	id, err := thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	kek, err := newAEAD(NewKEK())
	if err != nil {
		t.Fatal(err)
	}
	const uri = "pkcs11:token=a;id=0a;object=x"
	bound, err := sealBytes(kek, labelURI, id, Token, []byte(uri))
	if err != nil {
		t.Fatal(err)
	}
	ring := &Ring{cfg: Config{Now: time.Now}}
	for name, c := range map[string]struct {
		e    entry
		want bool // damaged
	}{
		"as recorded":     {entry{key: Key{ID: id, Purpose: Token, Public: key.Public()}, record: record{KMS: uri, Sealed: bound}}, false},
		"another URI":     {entry{key: Key{ID: id, Purpose: Token}, record: record{KMS: "pkcs11:token=a;id=0b;object=x", Sealed: bound}}, true},
		"another purpose": {entry{key: Key{ID: id, Purpose: CA}, record: record{KMS: uri, Sealed: bound}}, true},
		"another kid":     {entry{key: Key{ID: id + "x", Purpose: Token}, record: record{KMS: uri, Sealed: bound}}, true},
		"not bound":       {entry{key: Key{ID: id, Purpose: Token}, record: record{KMS: uri}}, true},
	} {
		_, err := ring.hold(kek, c.e)
		if err == nil || c.want != (storeError(err).Code == countersign.CodeDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := unseal(kek, id, Token, key.Public(), bound); err == nil {
		t.Error("a URI passes for a private key")
	}
}
