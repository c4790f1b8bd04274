package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/keyring"
)

// answering is a house with responders.
func answering(t *testing.T, adjust func(*Config)) *house {
	t.Helper()
	h := newHouse(t, adjust)
	h.must(h.keepResponders(t.Context()))
	return h
}

// askGo asks as x/crypto's client does, and checks the answer as it does. The status is -1 if the responder refuses.
func (h *house) askGo(serial *big.Int, issuer *x509.Certificate, hash crypto.Hash) (*ocsp.Response, string) {
	h.t.Helper()
	der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: serial}, issuer, &ocsp.RequestOptions{Hash: hash})
	h.must(err)
	answer := h.OCSP(h.t.Context(), der)
	if answer.Status != OCSPSuccessful {
		return nil, answer.Status
	}
	r, err := ocsp.ParseResponse(answer.DER, issuer)
	h.must(err)
	if r.SerialNumber.Cmp(serial) != 0 || r.IssuerHash != hash || !r.ThisUpdate.Equal(answer.ThisUpdate) || !r.NextUpdate.Equal(answer.NextUpdate) {
		h.t.Errorf("%+v is an answer to something else", r)
	}
	if now := h.clock.now(); r.ThisUpdate.After(now) || !r.NextUpdate.After(now) {
		h.t.Errorf("it is %s, and the answer is of %s to %s", now, r.ThisUpdate, r.NextUpdate)
	}
	return r, map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}[r.Status]
}

// wantOCSP demands a status by both hashes.
func (h *house) wantOCSP(c *Certificate, want string) *ocsp.Response {
	h.t.Helper()
	var r *ocsp.Response
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		var got string
		if r, got = h.askGo(c.Chain[0].SerialNumber, c.Chain[1], hash); got != want {
			h.t.Errorf("%s by %s: %s, want %s", c.ID, hash, got, want)
		}
	}
	return r
}

// askOpenSSL has `openssl ocsp` make the request, and judge the answer against the roots: args are -issuer, -cert and so on,
// certificates in them as files.
func (h *house) askOpenSSL(args ...any) string {
	h.t.Helper()
	dir := h.t.TempDir()
	var given []string
	for n, arg := range args {
		if cert, ok := arg.(*x509.Certificate); ok {
			name := fmt.Sprint(n)
			h.must(os.WriteFile(filepath.Join(dir, name), []byte(certPEM(cert)), 0o600))
			arg = name
		}
		given = append(given, arg.(string))
	}
	var roots []byte
	for _, cert := range h.Roots() {
		roots = append(roots, certPEM(cert)...)
	}
	h.must(os.WriteFile(filepath.Join(dir, "roots"), roots, 0o600))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		der, err := io.ReadAll(r.Body)
		if err != nil {
			h.t.Error(err)
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(h.OCSP(r.Context(), der).DER)
	}))
	defer server.Close()
	// The chain is judged at the house's time; the answer's own times are of this house too, and not today's.
	cmd := exec.CommandContext(h.t.Context(), "openssl", append(append([]string{"ocsp"}, given...), "-url", server.URL, "-CAfile", "roots",
		"-attime", big.NewInt(h.clock.now().Unix()).String(), "-validity_period", "3153600000")...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("%s%v", out, err)
}

// TestOCSP: openssl and Go take an answer for good, revoked and unknown certificates, with and without nonce.
func TestOCSP(t *testing.T) {
	h := answering(t, pointing)
	c, other := h.join("orders", newKey(t, "")), h.join("gateway", newKey(t, ""))
	inter := c.Chain[1]
	if !slices.Equal(c.Chain[0].OCSPServer, []string{pkiURL + "/ocsp"}) {
		t.Errorf("it names the responder %q", c.Chain[0].OCSPServer)
	}
	h.wantOCSP(c, "good")
	stranger, err := newSerial()
	h.must(err)
	if _, got := h.askGo(stranger, inter, crypto.SHA1); got != "unknown" {
		t.Errorf("a serial that was never issued: %s", got)
	}
	if _, got := h.askGo(c.Chain[0].SerialNumber, h.Roots()[0], crypto.SHA1); got != "unknown" {
		t.Errorf("a serial of another issuer of ours: %s", got)
	}
	h.must(h.Revoke(t.Context(), admin(), other.Serial, "keyCompromise"))
	if r := h.wantOCSP(other, "revoked"); r.RevocationReason != ocsp.KeyCompromise || r.RevokedAt.After(r.ThisUpdate) {
		t.Errorf("%d at %s", r.RevocationReason, r.RevokedAt)
	}
	for _, hash := range []string{"-sha1", "-sha256"} {
		for _, nonce := range []string{"-nonce", "-no_nonce"} {
			out := h.askOpenSSL(nonce, "-issuer", inter, hash, "-cert", c.Chain[0], "-cert", other.Chain[0], "-serial", "0x"+hex.EncodeToString(stranger.Bytes()))
			for _, want := range []string{"Response verify OK", ": good\n", ": revoked\n", "Reason: keyCompromise", ": unknown\n"} {
				if !strings.Contains(out, want) {
					t.Errorf("%s %s: openssl says nothing of %q:\n%s", hash, nonce, want, out)
				}
			}
			if strings.Contains(out, "WARNING") { // there is no nonce in the answer
				t.Errorf("%s %s:\n%s", hash, nonce, out)
			}
		}
	}
}

// TestOCSPAfterRollover: every intermediate that is not retired has a responder of its own, and the root one for them; with
// a root's key away, its last responder answers until its end, and nobody after that.
func TestOCSPAfterRollover(t *testing.T) {
	h := answering(t, func(c *Config) { pointing(c); c.ServiceTTL = 30 * day })
	first, old, root := h.join("orders", newKey(t, "")), h.signing(), h.Roots()[0]
	h.clock.add(time.Minute)
	h.rotate(Rotation{Role: ProfileIntermediate})
	second := h.join("gateway", newKey(t, ""))
	if _, got := h.askGo(second.Chain[0].SerialNumber, second.Chain[1], crypto.SHA1); got != OCSPTryLater {
		t.Errorf("before the new intermediate has a responder: %s", got)
	}
	h.must(h.keepResponders(t.Context()))
	h.must(h.Revoke(t.Context(), admin(), first.Serial, "superseded"))
	h.wantOCSP(first, "revoked")
	h.wantOCSP(second, "good")
	for _, c := range []*Certificate{first, second} {
		if out := h.askOpenSSL("-issuer", c.Chain[1], "-cert", c.Chain[0]); !strings.Contains(out, "Response verify OK") {
			t.Errorf("%s:\n%s", c.ID, out)
		}
	}
	if out := h.askOpenSSL("-issuer", root, "-cert", old.cert); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, ": good\n") {
		t.Errorf("the old intermediate:\n%s", out)
	}
	if out := h.askOpenSSL("-issuer", root, "-cert", old.cert, "-issuer", old.cert, "-cert", first.Chain[0]); !strings.Contains(out, "unauthorized") {
		t.Errorf("of two issuers:\n%s", out)
	}
	h.must(h.Retire(t.Context(), admin(), old.serial))
	if r, got := h.askGo(old.cert.SerialNumber, root, crypto.SHA256); got != "revoked" || r.RevocationReason != ocsp.CessationOfOperation {
		t.Errorf("the retired intermediate: %s %+v", got, r)
	}
	if _, got := h.askGo(first.Chain[0].SerialNumber, old.cert, crypto.SHA1); got != OCSPUnauthorized {
		t.Errorf("a retired intermediate answers: %s", got)
	}
	// A new root: who trusts only the old one comes to the answer by the cross certificate.
	h.clock.add(time.Minute)
	h.rotate(Rotation{Role: ProfileRoot, Now: true})
	h.must(h.keepResponders(t.Context()))
	third := h.join("inventory", newKey(t, ""))
	h.wantOCSP(third, "good")
	if _, got := h.askGo(third.Chain[2].SerialNumber, root, crypto.SHA1); got != "good" {
		t.Errorf("the cross certificate: %s", got)
	}
	rootIssuer, _ := h.issuers.Load().find(serialText(root.SerialNumber))
	h.must(h.cfg.Keys.Drop(t.Context(), admin(), rootIssuer.KeyID)) // it went offline
	h.must(h.keepResponders(t.Context()))
	if _, got := h.askGo(second.Chain[1].SerialNumber, root, crypto.SHA1); got != "good" {
		t.Errorf("the root's key is offline, its responder lives: %s", got)
	}
	h.clock.add(responderTTL)
	h.must(h.keepResponders(t.Context()))
	if _, got := h.askGo(second.Chain[1].SerialNumber, root, crypto.SHA1); got != OCSPUnauthorized {
		t.Errorf("the root's key is offline, its responder over: %s", got)
	}
	h.wantOCSP(third, "good")
}

// TestOCSPAgrees: who is refused as a client is revoked here, and the other way round, whatever revoked him.
func TestOCSPAgrees(t *testing.T) {
	h := answering(t, pointing)
	agree := func(name string, c *Certificate, want string) {
		t.Helper()
		h.wantOCSP(c, want)
		_, err := h.PeerCaller(t.Context(), c.Chain[0], countersign.Caller{})
		if (err != nil) != (want == "revoked") {
			t.Errorf("%s: as a client %v, by OCSP %s", name, err, want)
		}
	}
	first := h.join("orders", newKey(t, ""))
	owner := h.peer(first)
	unseen, err := h.Issue(t.Context(), owner, IssueRequest{CSR: request(t, newKey(t, ""))})
	h.must(err)
	second, err := h.Issue(t.Context(), owner, IssueRequest{CSR: request(t, newKey(t, ""))})
	h.must(err)
	if r := h.wantOCSP(unseen, "revoked"); r.RevocationReason != ocsp.Superseded {
		t.Errorf("the successor that was replaced: %+v", r)
	}
	agree("the first", first, "good")
	agree("the second", second, "good")
	// A lineage that is blocked, its certificates not marked yet: what a crash between the two leaves.
	line, err := lineagesTable().Get(t.Context(), h.bolt, first.Serial)
	h.must(err)
	ops, err := h.blockOps(line, "privilegeWithdrawn", "a test")
	h.must(err)
	_, err = h.bolt.Apply(t.Context(), ops...)
	h.must(err)
	agree("a blocked lineage", second, "revoked")
	h.must(h.sweepLeft(t.Context()))
	agree("a blocked lineage, marked", first, "revoked")
	// Two certificates of one key, in two lineages: the key is compromised by one of them.
	key := newKey(t, "")
	one, two := h.join("gateway", key), h.join("gateway", key)
	agree("before", two, "good")
	h.must(h.Revoke(t.Context(), admin(), one.Serial, "keyCompromise"))
	agree("one", one, "revoked")
	agree("of the same key", two, "revoked")
	// Others that are recorded answer too.
	server, err := h.IssueServer(t.Context(), request(t, newKey(t, "")))
	h.must(err)
	h.wantOCSP(server, "good")
	operator, err := h.AddOperator(t.Context(), admin(), "alice", countersign.RoleAdmin, request(t, newKey(t, "")))
	h.must(err)
	agree("an operator", operator, "good")
	h.must(h.Revoke(t.Context(), admin(), operator.Serial, "cessationOfOperation"))
	agree("an operator", operator, "revoked")
	// A record that can't be read is neither good nor unknown.
	_, err = h.bolt.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: certificatesTable().Name, Key: server.Serial, Value: []byte("{")})
	h.must(err)
	if _, got := h.askGo(server.Chain[0].SerialNumber, server.Chain[1], crypto.SHA1); got != OCSPInternal {
		t.Errorf("a damaged record: %s", got)
	}
}

// TestOCSPKept: an answer without a nonce costs one signature as long as it is true, and not a moment longer.
func TestOCSPKept(t *testing.T) {
	h := answering(t, pointing)
	c := h.join("orders", newKey(t, ""))
	ask := func() *OCSPResponse {
		der, err := ocsp.CreateRequest(c.Chain[0], c.Chain[1], nil)
		h.must(err)
		return h.OCSP(t.Context(), der)
	}
	one := ask()
	h.clock.add(ocspKeep - time.Second)
	if !bytes.Equal(one.DER, ask().DER) {
		t.Error("it was signed anew")
	}
	h.clock.add(2 * time.Second)
	two := ask()
	if bytes.Equal(one.DER, two.DER) || !two.NextUpdate.After(one.NextUpdate) {
		t.Error("an old answer is given for ever")
	}
	h.must(h.Revoke(t.Context(), admin(), c.Serial, ""))
	h.wantOCSP(c, "revoked")
	for range 3 {
		serial, err := newSerial()
		h.must(err)
		h.askGo(serial, c.Chain[1], crypto.SHA1)
	}
	for range 2 { // what is asked with a nonce is answered to who asked
		asked := draftRequest{ids: [][]byte{[]byte(askedAs(h, c))}, extensions: [][]byte{draftNonce(16)}}.der()
		if r := h.OCSP(t.Context(), asked); r.Shared || !bytes.Contains(r.DER, draftNonce(16)) {
			t.Errorf("with a nonce: %+v", r)
		}
		h.wantOCSP(c, "revoked")
		if r := ask(); !r.Shared || bytes.Contains(r.DER, draftNonce(16)) {
			t.Errorf("without a nonce: %+v", r)
		}
	}
	if n := h.ocsp.kept.order.Len(); n != 2 { // by SHA-1 and by SHA-256
		t.Errorf("%d answers are kept", n)
	}
	for n := range maxKept + 10 {
		h.ocsp.kept.put(keptAnswer{asked: fmt.Sprint(n), answer: two})
	}
	if n, m := h.ocsp.kept.order.Len(), len(h.ocsp.kept.at); n != maxKept || m != maxKept {
		t.Errorf("%d answers are kept under %d names", n, m)
	}
}

// askedAs is the CertID of c as Go sends it.
func askedAs(h *house, c *Certificate) string {
	h.t.Helper()
	der, err := ocsp.CreateRequest(c.Chain[0], c.Chain[1], nil)
	h.must(err)
	r, err := parseOCSP(der)
	h.must(err)
	return r.asked[0].raw
}

// TestOCSPBusy: when all places to sign are taken, the answer is that, and what was signed before is still given.
func TestOCSPBusy(t *testing.T) {
	h := answering(t, pointing)
	c, other := h.join("orders", newKey(t, "")), h.join("gateway", newKey(t, ""))
	h.wantOCSP(c, "good")
	for range cap(h.ocsp.slots) {
		h.ocsp.slots <- struct{}{}
	}
	h.wantOCSP(c, "good")
	if _, got := h.askGo(other.Chain[0].SerialNumber, other.Chain[1], crypto.SHA1); got != OCSPTryLater {
		t.Errorf("nobody can sign: %s", got)
	}
}

// TestResponder: its certificate, its life, and its key.
func TestResponder(t *testing.T) {
	h := answering(t, nil)
	ctx := t.Context()
	use := func() responder { return (*h.ocsp.inUse.Load())[h.signing().serial] }
	r := use()
	checkLint(t, r.cert)
	if r.cert.IsCA || !slices.Equal(r.cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || len(r.cert.URIs)+len(r.cert.DNSNames) != 0 {
		t.Errorf("%+v", r.cert)
	}
	if life := r.cert.NotAfter.Sub(r.cert.NotBefore) + second; life != responderTTL {
		t.Errorf("it lives for %s", life)
	}
	noCheck := slices.ContainsFunc(r.cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidOCSPNoCheck) && bytes.Equal(e.Value, []byte{5, 0}) })
	if !noCheck {
		t.Error("clients would ask whether it is revoked")
	}
	told := 0
	for _, kind := range []string{eventIntent, eventIssued} {
		for _, e := range h.events(kind) {
			if e.Subject == serialText(r.cert.SerialNumber) {
				told++
			}
		}
	}
	if told != 2 {
		t.Errorf("%d events and not an intent and an outcome", told)
	}
	if _, got := h.askGo(r.cert.SerialNumber, h.signing().cert, crypto.SHA1); got != "good" {
		t.Errorf("of itself: %s", got)
	}
	if _, err := h.PeerCaller(ctx, r.cert, countersign.Caller{}); err == nil {
		t.Error("a responder is a client")
	}
	h.must(h.keepResponders(ctx))
	h.reopen()
	h.must(h.keepResponders(ctx))
	if use().KeyID != r.KeyID {
		t.Error("it was replaced without a need")
	}
	h.clock.add(responderTTL/2 + time.Hour)
	h.must(h.keepResponders(ctx))
	next := use()
	if next.KeyID == r.KeyID || !next.cert.NotAfter.After(r.cert.NotAfter) {
		t.Error("it was not replaced at half of its life")
	}
	by := countersign.Daemon("test")
	h.must(h.dropResponders(ctx, by))
	h.must(h.cfg.Keys.Drop(ctx, by, next.KeyID)) // a restored store may lack a key
	h.must(h.keepResponders(ctx))
	if use().KeyID == next.KeyID {
		t.Error("a responder without a key is not replaced")
	}
	if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n != 2 {
		t.Errorf("%d keys and not one of the intermediate and one of the root", n)
	}
	c := h.join("orders", newKey(t, ""))
	h.wantOCSP(c, "good")
	h.clock.add(3 * 7 * day)
	h.must(h.keepResponders(ctx))
	h.must(h.housekeep(ctx, 0, 0))
	page, err := h.bolt.List(ctx, respondersTable().Name, storage.ListOptions{Limit: 100})
	h.must(err)
	if len(page.Items) != 2 {
		t.Errorf("%d records", len(page.Items))
	}
}

// TestResponderLeftByACrash: recorded and not told: the next start tells it; a key that nothing names is dropped.
func TestResponderLeftByACrash(t *testing.T) {
	h := answering(t, nil)
	ctx, i := t.Context(), h.signing()
	serial := serialText((*h.ocsp.inUse.Load())[i.serial].cert.SerialNumber)
	if known, err := h.onRecord(ctx, serial); err != nil || !known {
		t.Errorf("settling would abandon a responder: %v", err)
	}
	_, err := h.cfg.Keys.Create(ctx, admin(), keyring.NewKey{Purpose: keyring.OCSP, Alg: "ES256"})
	h.must(err)
	for _, step := range []struct {
		after time.Duration
		keys  int
	}{{0, 3}, {2 * orphanAge, 2}} {
		h.clock.add(step.after)
		h.must(h.roll(ctx))
		if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n != step.keys {
			t.Errorf("%d keys, want %d", n, step.keys)
		}
	}
}

// TestOCSPSealed: a sealed daemon signs nothing, and says that it will.
func TestOCSPSealed(t *testing.T) {
	h := answering(t, nil)
	c := h.join("orders", newKey(t, ""))
	kek := h.kek
	h.kek = nil
	h.reopen()
	h.must(h.keepResponders(t.Context()))
	if _, got := h.askGo(c.Chain[0].SerialNumber, c.Chain[1], crypto.SHA1); got != OCSPTryLater {
		t.Errorf("sealed: %s", got)
	}
	h.must(h.cfg.Keys.Unseal(kek))
	h.wantOCSP(c, "good")
}

// TestCheckResponse changes one thing of what was decided at a time: each is noticed.
func TestCheckResponse(t *testing.T) {
	h := answering(t, nil)
	c := h.join("orders", newKey(t, ""))
	der, err := ocsp.CreateRequest(c.Chain[0], c.Chain[1], nil)
	h.must(err)
	asks, err := parseOCSP(der)
	h.must(err)
	asks.nonce = []byte{4, 1, 7}
	now, by := h.clock.now(), h.signing()
	revoked := standing{known: true, revoked: true, at: now.Add(-time.Hour), reason: 1}
	r := (*h.ocsp.inUse.Load())[by.serial]
	p := planResponse(by, r, asks, []standing{revoked}, now)
	checked, err := prepareResponse(p)
	h.must(err)
	if _, err := checked.sign(newKey(t, "")); err == nil {
		t.Error("an answer with a signature of the wrong key was handed out")
	}
	status := func(s standing) func(*responsePlan) {
		return func(p *responsePlan) { p.standing = []standing{s} }
	}
	root := (*h.ocsp.inUse.Load())[serialText(h.Roots()[0].SerialNumber)]
	for name, change := range map[string]func(*responsePlan){
		"good":              status(standing{known: true}),
		"unknown":           status(standing{}),
		"reason":            status(standing{known: true, revoked: true, at: revoked.at, reason: 4}),
		"no reason":         status(standing{known: true, revoked: true, at: revoked.at}),
		"time":              status(standing{known: true, revoked: true, at: revoked.at.Add(second), reason: 1}),
		"two":               func(p *responsePlan) { p.standing = append(p.standing, p.standing...) },
		"serial":            func(p *responsePlan) { p.asked = []certID{{raw: p.asked[0].raw[:len(p.asked[0].raw)-1] + "x"}} },
		"this":              func(p *responsePlan) { p.thisUpdate = p.thisUpdate.Add(second) },
		"next":              func(p *responsePlan) { p.nextUpdate = p.nextUpdate.Add(second) },
		"produced":          func(p *responsePlan) { p.producedAt = p.producedAt.Add(second) },
		"nonce":             func(p *responsePlan) { p.nonce = []byte{4, 1, 8} },
		"no nonce":          func(p *responsePlan) { p.nonce = nil },
		"key":               func(p *responsePlan) { p.keyHash = root.keyHash },
		"other responder":   func(p *responsePlan) { p.responder = root.cert },
		"the issuer itself": func(p *responsePlan) { p.responder = by.cert },
		"a leaf":            func(p *responsePlan) { p.responder = c.Chain[0] },
		"a responder's end": func(p *responsePlan) {
			over := *p.responder
			over.NotAfter = p.nextUpdate.Add(-second)
			p.responder = &over
		},
	} {
		other := p
		change(&other)
		if err := checkResponse(other, checked.raw); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	h.must(checkResponse(p, checked.raw))
	if err := checkResponse(p, append(bytes.Clone(checked.raw), 0)); err == nil {
		t.Error("a byte more: not noticed")
	}
	late := p
	late.standing = []standing{{known: true, revoked: true, at: p.thisUpdate.Add(second)}}
	if _, err := prepareResponse(late); err == nil {
		t.Error("a revocation later than its answer")
	}
}

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

// TestDamagedResponder: what can't be read of responders keeps nobody from an answer, and is no reason to make more and more.
func TestDamagedResponder(t *testing.T) {
	h := answering(t, nil)
	c := h.join("orders", newKey(t, ""))
	_, err := h.bolt.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: respondersTable().Name, Key: strings.Repeat("0", 32), Value: []byte("{")})
	h.must(err)
	h.wantOCSP(c, "good")
	h.reopen()
	for range 3 {
		if err := h.keepResponders(t.Context()); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("nobody is told: %v", err)
		}
		h.wantOCSP(c, "good")
	}
	h.clock.add(2 * orphanAge)
	h.must(h.roll(t.Context()))
	if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n != 4 {
		t.Errorf("%d keys, and two issuers of two starts", n)
	}
}
