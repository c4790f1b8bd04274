//go:build !(hsm && cgo)

package keyring

import (
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

// The static build names the build that it needs, whether the configuration or a record names a token, sealed or not.
func TestStaticBuildNamesTheOther(t *testing.T) {
	p, err := ParsePlace("pkcs11:module-path=/m.so;token=a?pin-source=/pin")
	if err != nil {
		t.Fatal(err)
	}
	ring := &Ring{cfg: Config{Now: time.Now}}
	st := state{entries: map[string]entry{"k": {key: Key{ID: "k", Purpose: Token}, record: record{KMS: p.keyURI("0a", "x")}}}}
	for name, err := range map[string]error{"place": p.Supported(), "record": ring.placed(st)} {
		known := countersign.AsError(err)
		if known.Code != countersign.CodeKMSBuild || !strings.Contains(known.Msg, "pkcs11:token=a") || !strings.Contains(known.Hint, "make build-hsm") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended := st.entries["k"]
	ended.key.SignsUntil, ended.key.VerifiesUntil = time.Unix(1, 0), time.Unix(2, 0)
	st.entries["k"] = ended
	if err := ring.placed(st); err != nil {
		t.Errorf("an expired key: %v", err)
	}
}
