package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// serialNumber is a serial as 128 bits, big-endian: in the order of the numbers.
type serialNumber [16]byte

// crlEntry is a revoked certificate in a list.
type crlEntry struct {
	serial serialNumber
	at     time.Time // when it was revoked
	reason int       // RFC 5280 5.3.1; 0 is unspecified, and is not written
}

// listPlan is everything that a list is made from.
type listPlan struct {
	issuer     *x509.Certificate
	number     int64
	thisUpdate time.Time // whole seconds
	nextUpdate time.Time // whole seconds
	url        string    // of a shard: as its certificates name it; "": the list is of everything
	shard      string    // the first digits of all serials in it
	entries    []crlEntry
}

// checkedList is a list that may be signed.
type checkedList struct{ checkedBytes }

// prepareList makes the exact bytes of a list, as prepare makes those of certificates, and checks them.
func prepareList(p listPlan) (checkedList, error) {
	by, err := algorithmOf(p.issuer.PublicKey)
	if err != nil {
		return checkedList{}, err
	}
	template := &x509.RevocationList{
		SignatureAlgorithm: by.x509, Number: big.NewInt(p.number), ThisUpdate: p.thisUpdate, NextUpdate: p.nextUpdate,
		RevokedCertificateEntries: make([]x509.RevocationListEntry, 0, len(p.entries)),
	}
	for _, e := range p.entries {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(e.serial[:]), RevocationTime: e.at.Truncate(second), ReasonCode: e.reason,
		})
	}
	if p.url != "" {
		point, err := issuingPoint(p.url)
		if err != nil {
			return checkedList{}, fmt.Errorf("encode the distribution point: %w", err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: oidIssuingPoint, Critical: true, Value: point}}
	}
	raw, err := take(p.issuer.PublicKey, func(signer crypto.Signer) ([]byte, error) {
		return x509.CreateRevocationList(rand.Reader, template, p.issuer, signer)
	})
	if err != nil {
		return checkedList{}, fmt.Errorf("make the list's bytes: %w", err)
	}
	unsigned, err := by.assemble(raw, nil)
	if err != nil {
		return checkedList{}, err
	}
	draft, err := x509.ParseRevocationList(unsigned)
	if err != nil {
		return checkedList{}, fmt.Errorf("read the list's bytes: %w", err)
	}
	if err := checkList(p, draft); err != nil {
		return checkedList{}, fmt.Errorf("the list is not what was decided: %w", err)
	}
	if !bytes.Equal(draft.RawTBSRevocationList, raw) {
		return checkedList{}, errors.New("other bytes were checked than were made")
	}
	return checkedList{checkedBytes{raw: raw, key: p.issuer.PublicKey}}, nil
}

// issuingPoint is the extension of RFC 5280 5.2.5 with a name and nothing else: the list is of all certificates, and for all
// reasons, that point there.
func issuingPoint(url string) ([]byte, error) {
	type distributionPointName struct {
		FullName []asn1.RawValue `asn1:"tag:0"`
	}
	return asn1.Marshal(struct {
		Name distributionPointName `asn1:"tag:0"`
	}{distributionPointName{[]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(url)}}}})
}

var (
	oidCRLNumber    = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidReasonCode   = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidIssuingPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// checkList holds the parsed list against what was decided. It shares no code with prepareList.
func checkList(p listPlan, l *x509.RevocationList) error {
	by, err := algorithmOf(p.issuer.PublicKey)
	switch {
	case err != nil:
		return err
	case p.issuer.KeyUsage&x509.KeyUsageCRLSign == 0 || len(p.issuer.SubjectKeyId) == 0:
		return errors.New("an issuer that signs no lists")
	case !bytes.Equal(l.RawIssuer, p.issuer.RawSubject):
		return errors.New("issuer")
	case !bytes.Equal(l.AuthorityKeyId, p.issuer.SubjectKeyId):
		return errors.New("authority key identifier")
	case l.SignatureAlgorithm != by.x509:
		return errors.New("signature algorithm")
	case l.Number == nil || !l.Number.IsInt64() || l.Number.Int64() != p.number || p.number <= 0:
		return errors.New("number")
	case !l.ThisUpdate.Equal(p.thisUpdate) || !l.NextUpdate.Equal(p.nextUpdate) || !l.NextUpdate.After(l.ThisUpdate):
		return errors.New("interval")
	case (p.url == "") != (p.shard == ""):
		return errors.New("a shard without an address, or an address without one")
	}
	if err := checkListExtensions(p, l); err != nil {
		return err
	}
	return checkEntries(p, l.RevokedCertificateEntries)
}

// checkListExtensions: key identifier and number, of a shard its point too, and no other.
func checkListExtensions(p listPlan, l *x509.RevocationList) error {
	var keyID, number, point int
	for _, e := range l.Extensions {
		switch {
		case e.Id.Equal(oidAuthorityKeyID) && !e.Critical:
			keyID++
		case e.Id.Equal(oidCRLNumber) && !e.Critical:
			number++
		case e.Id.Equal(oidIssuingPoint) && e.Critical && p.url != "" && pointsTo(e.Value) == p.url:
			point++
		default:
			return fmt.Errorf("extension %s", e.Id)
		}
	}
	points := 0
	if p.url != "" {
		points = 1
	}
	if keyID != 1 || number != 1 || point != points {
		return errors.New("extensions")
	}
	return nil
}

// pointsTo is the one URI of an issuing distribution point that has nothing else; "" if it is no such.
func pointsTo(der []byte) string {
	constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
	whole := cryptobyte.String(der)
	var sequence, point, names, uri cryptobyte.String
	if !whole.ReadASN1(&sequence, cbasn1.SEQUENCE) || !whole.Empty() ||
		!sequence.ReadASN1(&point, constructed) || !sequence.Empty() ||
		!point.ReadASN1(&names, constructed) || !point.Empty() ||
		!names.ReadASN1(&uri, cbasn1.Tag(6).ContextSpecific()) || !names.Empty() {
		return ""
	}
	return string(uri)
}

// checkEntries: exactly the planned ones, each serial once and in its shard, with no extension but the reason.
func checkEntries(p listPlan, entries []x509.RevocationListEntry) error {
	if len(entries) != len(p.entries) {
		return fmt.Errorf("it has %d entries and not %d", len(entries), len(p.entries))
	}
	var before serialNumber
	for i, e := range entries {
		want, reasons := p.entries[i], 0
		if want.reason != 0 {
			reasons = 1
		}
		if e.SerialNumber.Sign() <= 0 || e.SerialNumber.BitLen() > 128 {
			return errors.New("serial")
		}
		var serial serialNumber
		e.SerialNumber.FillBytes(serial[:])
		switch {
		case serial != want.serial || bytes.Compare(before[:], serial[:]) >= 0:
			return fmt.Errorf("serial %x", serial)
		case p.shard != "" && fmt.Sprintf("%02x", serial[0]) != p.shard:
			return fmt.Errorf("serial %x is of another shard", serial)
		case !e.RevocationTime.Equal(want.at.Truncate(second)) || e.ReasonCode != want.reason || len(e.Extensions) != reasons:
			return fmt.Errorf("entry of the serial %x", serial)
		case reasons == 1 && (!e.Extensions[0].Id.Equal(oidReasonCode) || e.Extensions[0].Critical):
			return fmt.Errorf("extension of the serial %x", serial)
		}
		before = serial
	}
	return nil
}
