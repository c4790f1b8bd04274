package keyring

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
)

// Place is where private keys are made and stay: sealed in the store (the zero Place), or in a token behind a PKCS#11
// module, which never gives them out. It holds the name of the PIN's file and never the PIN.
type Place struct {
	module   string // path of the PKCS#11 module
	by       string // by what the token is found: "token" (its label), "serial" or "slot-id"
	token    string // that
	sessions int    // open at most; 0: what the module's wrapper thinks right
	pin      string // path of the PIN's file; "": [Config].PINFile
}

// Places say where new keys are made. Keys stay where they are: a key of a place that is not named here any more can't be used,
// so Also keeps such places.
type Places struct {
	Root         Place // keys of purpose [CA] that are for roots
	Intermediate Place // all others of purpose [CA]
	Token        Place // keys of purpose [Token]; keys of [SVID] and [Audit] are always sealed in the store (adr/0028)
	Also         []Place
}

const (
	schemeSoft   = "softkms"
	schemePKCS11 = "pkcs11"
	maxPlace     = 1024 // bytes of a URI
)

// of is where a new key is made.
func (p Places) of(purpose Purpose, root bool) Place {
	switch {
	case purpose == Token:
		return p.Token
	case purpose == CA && root:
		return p.Root
	case purpose == CA:
		return p.Intermediate
	}
	return Place{}
}

// managed are the places outside the store, each once.
func (p Places) managed() []Place {
	var all []Place
	for _, place := range append([]Place{p.Root, p.Intermediate, p.Token}, p.Also...) {
		if place.Managed() && !slices.ContainsFunc(all, place.same) {
			all = append(all, place)
		}
	}
	return all
}

// Check demands that one token is not described in two ways.
func (p Places) Check() error {
	for _, a := range p.managed() {
		for _, b := range append([]Place{p.Root, p.Intermediate, p.Token}, p.Also...) {
			if a.same(b) && a != b {
				return fmt.Errorf("%s is written in two ways: give it the same module-path, pin-source and max-sessions everywhere", a)
			}
		}
	}
	return nil
}

// Managed tells whether the keys are outside the store.
func (p Place) Managed() bool { return p.by != "" }

// same tells whether both mean one token.
func (p Place) same(o Place) bool { return p.by == o.by && p.token == o.token }

// String names the token, as key URIs do: neither the module, which differs from machine to machine, nor the PIN's file.
func (p Place) String() string {
	if !p.Managed() {
		return schemeSoft + ":"
	}
	return schemePKCS11 + ":" + p.by + "=" + escape(p.token)
}

// Supported is CodeKMSBuild where this build can't use the place.
func (p Place) Supported() error {
	if !p.Managed() || pkcs11Built {
		return nil
	}
	return countersign.Errorf(countersign.CodeKMSBuild, "%s is behind a PKCS#11 module, and this build of countersign, which is static, can't load one", p).
		WithHint("run the build for hardware keys in its place: make build-hsm, which makes bin/countersign-hsm")
}

// ParsePlace reads a URI: "" or "softkms:" is the store; else RFC 7512 with what finds a token and no key:
//
//	pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;token=countersign?pin-source=/run/secrets/pin
//
// token, serial or slot-id says which token. A PIN in the URI is refused, and no error repeats one. Paths are absolute.
func ParsePlace(text string) (Place, error) {
	if text == "" || text == schemeSoft+":" {
		return Place{}, nil
	}
	if len(text) > maxPlace {
		return Place{}, fmt.Errorf("the URI has %d bytes; at most %d are read", len(text), maxPlace)
	}
	rest, ok := strings.CutPrefix(text, schemePKCS11+":")
	if !ok {
		// The text itself is not repeated: it may be a PIN in the wrong place.
		return Place{}, errors.New("must begin with pkcs11: (a token behind a PKCS#11 module) or be softkms: (sealed in the store)")
	}
	attributes, err := parseAttributes(rest)
	if err != nil {
		return Place{}, err
	}
	var p Place
	for name, value := range attributes {
		if err := p.set(name, value); err != nil {
			return Place{}, err
		}
	}
	switch {
	case p.by == "":
		return Place{}, errors.New("must say which token: token=LABEL, serial=SERIAL or slot-id=NUMBER")
	case p.module == "":
		return Place{}, errors.New("must say module-path=/absolute/path/of/the/module.so")
	}
	return p, nil
}

// set takes one attribute.
func (p *Place) set(name, value string) error {
	var err error
	switch name {
	case "token", "serial", "slot-id":
		if p.by != "" {
			return errors.New("must name its token once: by token, by serial or by slot-id")
		}
		if name == "slot-id" {
			if n, bad := strconv.ParseUint(value, 10, 31); bad != nil || strconv.FormatUint(n, 10) != value {
				return errors.New("slot-id must be a number")
			}
		}
		p.by, p.token = name, value
	case "module-path":
		p.module, err = absolute(name, value)
	case "pin-source":
		p.pin, err = absolute(name, strings.TrimPrefix(value, "file:"))
	case "max-sessions":
		if p.sessions, err = strconv.Atoi(value); err != nil || p.sessions < 2 || p.sessions > 65536 {
			return errors.New("max-sessions must be a number from 2 to 65536")
		}
	case "pin-value", "pin-prompt":
		return fmt.Errorf("%s is refused: the PIN belongs in a file of its own, pin-source=/path, and never in a URI", name)
	case "id", "object":
		return fmt.Errorf("%s is refused: it names a key, and the keyring names its keys itself", name)
	default:
		return fmt.Errorf("there is no attribute %.20q here; there are module-path, token, serial, slot-id, max-sessions and pin-source", name)
	}
	return err
}

func absolute(name, path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s must be an absolute path", name)
	}
	return filepath.Clean(path), nil
}

// parseAttributes reads name=value pairs, percent-encoded: those before ? end with ;, those after it with & (RFC 7512 2.3).
func parseAttributes(text string) (map[string]string, error) {
	path, query, asked := strings.Cut(text, "?")
	pairs := strings.Split(path, ";")
	if asked {
		pairs = append(pairs, strings.Split(query, "&")...)
	}
	found := map[string]string{}
	for _, pair := range pairs {
		name, encoded, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(encoded)
		switch {
		case !ok:
			return nil, errors.New("must be made of name=value parts: ; between them before the ?, & after it")
		case err != nil || value == "" || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return nil, fmt.Errorf("the value of %.20q is empty or not percent-encoded as it must be", name)
		}
		if _, twice := found[name]; twice {
			return nil, fmt.Errorf("%.20q stands there twice", name)
		}
		found[name] = value
	}
	return found, nil
}

// escape percent-encodes all that could be taken for something else, by whichever rules.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// keyURI is the URI of a key in p: what the record of the key says.
func (p Place) keyURI(id, label string) string {
	return p.String() + ";id=" + id + ";object=" + escape(label)
}

// placeOf finds the place of a key among those that are configured.
func placeOf(keyURI string, among []Place) (Place, error) {
	for _, p := range among {
		if strings.HasPrefix(keyURI, p.String()+";id=") {
			return p, nil
		}
	}
	named, _, _ := strings.Cut(keyURI, ";id=")
	return Place{}, countersign.Errorf(countersign.CodeKMSPlace, "a key is in %.200s, which the configuration names nowhere", named).
		WithHint("name it with module-path and pin-source under keys.also; keys stay in their token until they are rotated out")
}
