package ca

import (
	"bytes"
	"encoding/asn1"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// draftRequest makes requests, good and bad.
type draftRequest struct {
	ids        [][]byte
	version    []byte
	extensions [][]byte
	single     [][]byte
	tail       []byte
}

func draftID(hash asn1.ObjectIdentifier, length int, serial []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(hash) })
		b.AddASN1OctetString(make([]byte, length))
		b.AddASN1OctetString(make([]byte, length))
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
	})
	return b.BytesOrPanic()
}

func draftExtension(oid asn1.ObjectIdentifier, critical bool, value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1OctetString(value)
	})
	return b.BytesOrPanic()
}

func draftNonce(length int) []byte {
	var b cryptobyte.Builder
	b.AddASN1OctetString(make([]byte, length))
	return draftExtension(oidOCSPNonce, false, b.BytesOrPanic())
}

func (d draftRequest) der() []byte {
	all := func(tag uint8, of [][]byte, b *cryptobyte.Builder) {
		if of == nil {
			return
		}
		b.AddASN1(cbasn1.Tag(tag).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, e := range of {
					b.AddBytes(e)
				}
			})
		})
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(d.version)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, id := range d.ids {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(id)
						all(0, d.single, b)
					})
				}
			})
			all(2, d.extensions, b)
		})
	})
	return append(b.BytesOrPanic(), d.tail...)
}

// TestParseOCSP: what is malformed, and what is not.
func TestParseOCSP(t *testing.T) {
	id := draftID(oidSHA1, 20, []byte{1})
	one := [][]byte{id}
	odd := asn1.ObjectIdentifier{1, 2, 3}
	for name, tc := range map[string]struct {
		request draftRequest
		ok      bool
	}{
		"one":                      {draftRequest{ids: one}, true},
		"the most":                 {draftRequest{ids: slices.Repeat(one, maxAsked)}, true},
		"one more":                 {draftRequest{ids: slices.Repeat(one, maxAsked+1)}, false},
		"none":                     {draftRequest{}, false},
		"version 1":                {draftRequest{ids: one, version: []byte{0xa0, 3, 2, 1, 0}}, true},
		"version 2":                {draftRequest{ids: one, version: []byte{0xa0, 3, 2, 1, 1}}, false},
		"requestor":                {draftRequest{ids: one, version: []byte{0xa1, 3, 0x82, 1, 'x'}}, true},
		"tail":                     {draftRequest{ids: one, tail: []byte{0}}, false},
		"nonce of 0":               {draftRequest{ids: one, extensions: [][]byte{draftNonce(0)}}, false},
		"nonce of 1":               {draftRequest{ids: one, extensions: [][]byte{draftNonce(1)}}, true},
		"nonce of 128":             {draftRequest{ids: one, extensions: [][]byte{draftNonce(128)}}, true},
		"nonce of 129":             {draftRequest{ids: one, extensions: [][]byte{draftNonce(129)}}, false},
		"two nonces":               {draftRequest{ids: one, extensions: [][]byte{draftNonce(16), draftNonce(16)}}, false},
		"nonce without its string": {draftRequest{ids: one, extensions: [][]byte{draftExtension(oidOCSPNonce, false, []byte("0123456789abcdef"))}}, false},
		"nonce of one certificate": {draftRequest{ids: one, single: [][]byte{draftNonce(16)}}, false},
		"unknown extension":        {draftRequest{ids: one, extensions: [][]byte{draftExtension(odd, false, nil)}}, true},
		"critical extension":       {draftRequest{ids: one, extensions: [][]byte{draftExtension(odd, true, nil)}}, false},
		"critical single":          {draftRequest{ids: one, single: [][]byte{draftExtension(odd, true, nil)}}, false},
		"unknown hash":             {draftRequest{ids: [][]byte{draftID(odd, 7, []byte{1})}}, true},
		"SHA-256":                  {draftRequest{ids: [][]byte{draftID(oidSHA256, 32, []byte{1})}}, true},
		"SHA-256 of SHA-1's":       {draftRequest{ids: [][]byte{draftID(oidSHA256, 20, []byte{1})}}, false},
		"serial of 160 bits":       {draftRequest{ids: [][]byte{draftID(oidSHA1, 20, append([]byte{0}, bytes.Repeat([]byte{0xff}, 20)...))}}, true},
		"serial of 161 bits":       {draftRequest{ids: [][]byte{draftID(oidSHA1, 20, append([]byte{1}, make([]byte, 20)...))}}, false},
		"serial not minimal":       {draftRequest{ids: [][]byte{draftID(oidSHA1, 20, []byte{0, 1})}}, false},
		"no serial":                {draftRequest{ids: [][]byte{draftID(oidSHA1, 20, nil)}}, false},
	} {
		r, err := parseOCSP(tc.request.der())
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (len(r.asked) != len(tc.request.ids) || r.asked[0].raw != string(tc.request.ids[0])) {
			t.Errorf("%s: read %+v", name, r)
		}
	}
	for _, der := range [][]byte{nil, {0x30}, {0x30, 0}, {0x30, 0x80, 0, 0}, bytes.Repeat([]byte{0x30}, MaxOCSP+1), []byte("GET / HTTP/1.1")} {
		if _, err := parseOCSP(der); err == nil {
			t.Errorf("% .16x is a request", der)
		}
	}
	h := answering(t, nil)
	for want, der := range map[string][]byte{
		OCSPMalformed:    {0x30, 0},
		OCSPUnauthorized: draftRequest{ids: one}.der(),
	} {
		r := h.OCSP(t.Context(), der)
		if _, err := ocsp.ParseResponse(r.DER, nil); r.Status != want || err == nil || r.Shared {
			t.Errorf("%s: %+v %v", want, r, err)
		}
	}
}

func FuzzOCSP(f *testing.F) {
	one := [][]byte{draftID(oidSHA1, 20, []byte{1})}
	for _, d := range []draftRequest{
		{ids: one}, {ids: slices.Repeat(one, 3), extensions: [][]byte{draftNonce(16)}}, {ids: [][]byte{draftID(oidSHA256, 32, []byte{0x7f})}},
		{ids: one, version: []byte{0xa0, 3, 2, 1, 0}, single: [][]byte{draftExtension(asn1.ObjectIdentifier{1, 2}, false, nil)}},
	} {
		f.Add(d.der())
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := parseOCSP(der)
		if err != nil {
			return
		}
		if len(r.asked) == 0 || len(r.asked) > maxAsked || len(r.nonce) > maxNonce+3 || r.nonce != nil && len(r.nonce) < 3 {
			t.Errorf("accepted %+v", r)
		}
		// What x/crypto reads of the first certificate is what we read.
		if theirs, err := ocsp.ParseRequest(der); err == nil && r.asked[0].hash != otherHash {
			if theirs.SerialNumber.Cmp(r.asked[0].serial) != 0 || string(theirs.IssuerKeyHash) != r.asked[0].key || string(theirs.IssuerNameHash) != r.asked[0].name {
				t.Errorf("x/crypto reads %+v, we %+v", theirs, r.asked[0])
			}
		}
		for _, id := range r.asked {
			if !bytes.Contains(der, []byte(id.raw)) {
				t.Errorf("%x is no part of the request", id.raw)
			}
		}
	})
}
