package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// standing is what is said of one certificate. Not known: it is none of the issuer's.
type standing struct {
	known   bool
	revoked bool
	at      time.Time // when it was revoked
	reason  int       // RFC 5280 5.3.1; 0 is unspecified, and is not written
}

// responsePlan is everything that a response is made from.
type responsePlan struct {
	issuer     *x509.Certificate // of all that is asked about
	responder  *x509.Certificate
	keyHash    []byte    // SHA-1 of the responder's key: its name in the answer
	producedAt time.Time // whole seconds
	thisUpdate time.Time // whole seconds
	nextUpdate time.Time // whole seconds
	asked      []certID
	standing   []standing // of each that is asked about
	nonce      []byte     // as in ocspRequest
}

// checkedResponse is a response that may be signed.
type checkedResponse struct {
	checkedBytes
	responder []byte // its certificate
}

var (
	oidOCSPBasic   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidOCSPNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
)

// generalized has seconds and no fraction (RFC 5280 4.1.2.5.2, RFC 6960 4.2.2.1).
const generalized = "20060102150405Z"

// prepareResponse makes the exact bytes of a ResponseData (RFC 6960 4.2.1) and checks them.
func prepareResponse(p responsePlan) (checkedResponse, error) {
	key, ok := p.responder.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return checkedResponse{}, errors.New("the responder's key is not of P-256")
	}
	if len(p.asked) == 0 || len(p.asked) != len(p.standing) {
		return checkedResponse{}, fmt.Errorf("%d answers to %d questions", len(p.standing), len(p.asked))
	}
	tag := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }
	moment := func(b *cryptobyte.Builder, at time.Time) {
		b.AddASN1(cbasn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(at.UTC().Format(generalized))) })
	}
	single := func(b *cryptobyte.Builder, id certID, s standing) {
		b.AddBytes([]byte(id.raw))
		switch {
		case !s.known:
			b.AddASN1(tag(2), func(*cryptobyte.Builder) {})
		case !s.revoked:
			b.AddASN1(tag(0), func(*cryptobyte.Builder) {})
		default:
			b.AddASN1(tag(1).Constructed(), func(b *cryptobyte.Builder) {
				moment(b, s.at)
				if s.reason != 0 {
					b.AddASN1(tag(0).Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(s.reason)) })
				}
			})
		}
		moment(b, p.thisUpdate)
		b.AddASN1(tag(0).Constructed(), func(b *cryptobyte.Builder) { moment(b, p.nextUpdate) })
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag(2).Constructed(), func(b *cryptobyte.Builder) { b.AddASN1OctetString(p.keyHash) })
		moment(b, p.producedAt)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for n, id := range p.asked {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { single(b, id, p.standing[n]) })
			}
		})
		if p.nonce == nil {
			return
		}
		b.AddASN1(tag(1).Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidOCSPNonce)
					b.AddASN1OctetString(p.nonce)
				})
			})
		})
	})
	raw, err := b.Bytes()
	if err != nil {
		return checkedResponse{}, fmt.Errorf("make the response's bytes: %w", err)
	}
	if err := checkResponse(p, raw); err != nil {
		return checkedResponse{}, fmt.Errorf("the response is not what was decided: %w", err)
	}
	return checkedResponse{checkedBytes{raw: raw, key: key}, p.responder.Raw}, nil
}

// sign gives the OCSPResponse (RFC 6960 4.2.1): signed, with the responder's certificate in it.
func (r checkedResponse) sign(key crypto.Signer) ([]byte, error) {
	by, err := algorithmOf(r.key)
	if err != nil {
		return nil, err
	}
	signature, err := r.signature(key)
	if err != nil {
		return nil, err
	}
	basic, err := asn1.Marshal(struct {
		Data      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
		Certs     []asn1.RawValue `asn1:"explicit,tag:0"`
	}{
		asn1.RawValue{FullBytes: r.raw}, by.id,
		asn1.BitString{Bytes: signature, BitLength: len(signature) * 8}, []asn1.RawValue{{FullBytes: r.responder}},
	})
	if err != nil {
		return nil, fmt.Errorf("assemble the response: %w", err)
	}
	type responseBytes struct {
		Type     asn1.ObjectIdentifier
		Response []byte
	}
	return asn1.Marshal(struct {
		Status asn1.Enumerated
		Bytes  responseBytes `asn1:"explicit,tag:0"`
	}{0, responseBytes{oidOCSPBasic, basic}})
}

// responseData is a ResponseData as encoding/asn1 reads it. What made it uses another package.
type responseData struct {
	Responder  []byte    `asn1:"explicit,tag:2"`
	ProducedAt time.Time `asn1:"generalized"`
	Responses  []singleResponse
	Extensions []pkix.Extension `asn1:"explicit,tag:1,optional"`
}

type singleResponse struct {
	ID         asn1.RawValue
	Status     asn1.RawValue
	ThisUpdate time.Time `asn1:"generalized"`
	NextUpdate time.Time `asn1:"generalized,explicit,tag:0"`
}

// checkResponse holds the bytes of a response against what was decided. It shares no code with prepareResponse.
func checkResponse(p responsePlan, raw []byte) error {
	var d responseData
	if rest, err := asn1.Unmarshal(raw, &d); err != nil || len(rest) > 0 {
		return errors.Join(errors.New("encoding"), err)
	}
	if err := checkResponder(p); err != nil {
		return err
	}
	switch {
	case !bytes.Equal(d.Responder, p.keyHash) || len(p.keyHash) != 20:
		return errors.New("responder")
	case !d.ProducedAt.Equal(p.producedAt) || p.producedAt.Before(p.responder.NotBefore) || p.nextUpdate.After(p.responder.NotAfter):
		return errors.New("produced outside the responder's interval")
	case !p.nextUpdate.After(p.producedAt) || p.thisUpdate.After(p.producedAt):
		return errors.New("interval")
	case len(d.Responses) != len(p.asked) || len(p.asked) != len(p.standing):
		return errors.New("number of answers")
	}
	for n, s := range d.Responses {
		if string(s.ID.FullBytes) != p.asked[n].raw || !s.ThisUpdate.Equal(p.thisUpdate) || !s.NextUpdate.Equal(p.nextUpdate) {
			return fmt.Errorf("answer %d", n)
		}
		if err := checkStatus(p.standing[n], p.thisUpdate, s.Status); err != nil {
			return err
		}
	}
	switch {
	case p.nonce == nil && len(d.Extensions) == 0:
		return nil
	case p.nonce != nil && len(d.Extensions) == 1 && d.Extensions[0].Id.Equal(oidOCSPNonce) && !d.Extensions[0].Critical &&
		bytes.Equal(d.Extensions[0].Value, p.nonce):
		return nil
	}
	return errors.New("extensions")
}

// checkResponder: the issuer made it for this and nothing else (RFC 6960 4.2.2.2).
func checkResponder(p responsePlan) error {
	c := p.responder
	switch {
	case !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("the responder's certificate is none of a responder")
	case !bytes.Equal(c.AuthorityKeyId, p.issuer.SubjectKeyId) || !bytes.Equal(c.RawIssuer, p.issuer.RawSubject) || len(c.AuthorityKeyId) == 0:
		return errors.New("the responder is one of another issuer")
	}
	return nil
}

// checkStatus: good [0], revoked [1] with time and reason, unknown [2].
func checkStatus(want standing, thisUpdate time.Time, got asn1.RawValue) error {
	if got.Class != asn1.ClassContextSpecific {
		return errors.New("status")
	}
	if !want.known || !want.revoked {
		tag := 2
		if want.known {
			tag = 0
		}
		if got.Tag != tag || got.IsCompound || len(got.Bytes) != 0 {
			return errors.New("status")
		}
		return nil
	}
	var at time.Time
	rest, err := asn1.UnmarshalWithParams(got.Bytes, &at, "generalized")
	if err != nil || got.Tag != 1 || !got.IsCompound || !at.Equal(want.at.Truncate(second)) || at.After(thisUpdate) {
		return errors.New("revocation")
	}
	if want.reason == 0 && len(rest) == 0 {
		return nil
	}
	var reason asn1.Enumerated
	if rest, err = asn1.UnmarshalWithParams(rest, &reason, "explicit,tag:0"); err != nil || len(rest) > 0 || int(reason) != want.reason || want.reason == 0 {
		return errors.New("reason")
	}
	return nil
}
