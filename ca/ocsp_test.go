package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
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

	"golang.org/x/crypto/ocsp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
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
