package daemon

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/keyring"
)

// KeysConfig says where private keys are made, as URIs: "" or softkms: is sealed in the store, pkcs11: is a token behind a PKCS#11
// module (docs/hsm.md). A key stays where it was made until it is rotated out.
type KeysConfig struct {
	Root         string    `yaml:"root" mapstructure:"root"`
	Intermediate string    `yaml:"intermediate" mapstructure:"intermediate"`
	Token        string    `yaml:"token" mapstructure:"token"`
	Also         []string  `yaml:"also" mapstructure:"also"` // further tokens that hold keys of ours, and get no new ones
	PIN          PINConfig `yaml:"pin" mapstructure:"pin"`
}

// PINConfig says where the PIN of tokens is. It is never in the configuration itself.
type PINConfig struct {
	File string `yaml:"file" mapstructure:"file"` // of tokens whose URI has no pin-source
}

// places are the places that the configuration names, or what is wrong with them.
func (c Config) places() (p keyring.Places, faults []Problem) {
	parse := func(key, uri string) keyring.Place {
		place, err := keyring.ParsePlace(uri)
		if err == nil {
			err = place.Supported()
		}
		if err != nil {
			faults = append(faults, Problem{Key: key, Msg: placeFault(err)})
		}
		return place
	}
	p.Root, p.Intermediate, p.Token = parse("keys.root", c.Keys.Root), parse("keys.intermediate", c.Keys.Intermediate), parse("keys.token", c.Keys.Token)
	for _, uri := range c.Keys.Also {
		p.Also = append(p.Also, parse("keys.also", uri))
	}
	return p, faults
}

// placeFault is what a fault of a place says without its code: a list of faults has its own form.
func placeFault(err error) string {
	if known := countersign.AsError(err); known.Code == countersign.CodeKMSBuild {
		return fmt.Sprintf("%s: %s (%s)", known.Msg, known.Hint, known.Code)
	}
	return err.Error()
}

// validateKeys checks the section keys.
func (c Config) validateKeys() []Problem {
	p, faults := c.places()
	if len(faults) == 0 {
		if err := p.Check(); err != nil {
			faults = append(faults, Problem{Key: "keys.also", Msg: err.Error()})
		}
	}
	if file := c.Keys.PIN.File; file != "" && !filepath.IsAbs(file) {
		faults = append(faults, Problem{Key: "keys.pin.file", Msg: "must be the absolute path of a file with the PIN"})
	}
	return faults
}

// outside says which keys no backup holds.
func (p *parts) outside() []string {
	of := map[string]int{}
	for _, k := range p.keys.Outside() {
		of[k.Token()]++
	}
	var out []string
	for _, token := range slices.Sorted(maps.Keys(of)) {
		out = append(out, fmt.Sprintf("%d private keys are in the token %s and in no backup: the daemon starts only where it finds that very token, or a copy of it that holds these keys", of[token], token))
	}
	return out
}

// tokens judges the tokens that hold keys, as a running daemon tells it.
func (f Facts) tokens() []Finding {
	if f.Live == nil {
		return nil // the keys of a daemon that does not run are not looked at; it refuses to start without them
	}
	of := map[string]int{}
	for _, k := range f.Live.Keys.Keys {
		if token, _, outside := strings.Cut(k.KMS, ";id="); outside {
			of[token]++
		}
	}
	var out []Finding
	for _, token := range slices.Sorted(maps.Keys(of)) {
		lost := slices.ContainsFunc(f.Live.Status.Reasons, func(reason string) bool { return strings.HasPrefix(reason, "the token "+token+" is lost") })
		if lost {
			out = append(out, Finding{"token " + token, FindingWrong, fmt.Sprintf("it is lost: its %d keys sign nothing", of[token]),
				"look at the token, its module and the way to it; the daemon tries every 5 s and at SIGHUP, its log tells why it fails (docs/hsm.md)"})
			continue
		}
		out = append(out, Finding{Check: "token " + token, State: FindingOK, What: fmt.Sprintf("it holds %d keys, and can be used", of[token])})
	}
	return out
}
