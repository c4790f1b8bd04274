package keyring

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.step.sm/crypto/kms/apiv1"

	"github.com/countersign/countersign"
)

const (
	// callWait bounds how long one call into a PKCS#11 module is waited for. C code can't be interrupted: one that hangs keeps its
	// slot of the maxCalls until it returns.
	callWait = 5 * time.Second
	maxCalls = 256

	reviveEvery = 5 * time.Second  // between attempts to open a token that was lost
	probeEvery  = 30 * time.Second // between looks at one that nobody may be signing with
)

// manager is what the keyring wants of a key manager; [openPKCS11] opens one.
type manager interface {
	CreateKey(*apiv1.CreateKeyRequest) (*apiv1.CreateKeyResponse, error)
	CreateSigner(*apiv1.CreateSignerRequest) (crypto.Signer, error)
	DeleteKey(uri string) error // one that is not there is no error
	Close() error
}

// device is the token of a [Place], open or lost. What fails in a token loses it: from then on nothing is signed with its
// keys until it was closed and opened again and has shown every one of them anew.
type device struct {
	place   Place
	pinFile string // where the place names none
	slots   chan struct{}
	woken   chan struct{} // holds one: [device.tend] has something to do
	losses  atomic.Uint64

	opening sync.Mutex // one opening at a time; never taken with mu held

	mu    sync.Mutex
	km    manager            // nil: closed
	down  *countersign.Error // why nothing can be done; nil while it works or was never opened
	final bool               // not tried again before [Ring.Retry]: the token refused the PIN, and it counts that
	ended bool               // close was called
	keys  map[string]*heldKey
}

func newDevice(p Place, pinFile string) *device {
	return &device{place: p, pinFile: pinFile, slots: make(chan struct{}, maxCalls), woken: make(chan struct{}, 1), keys: map[string]*heldKey{}}
}

// heldKey signs with a key in a token. It stays the same when the token is opened anew.
type heldKey struct {
	device *device
	uri    string
	public crypto.PublicKey
	in     atomic.Pointer[openKey]
}

// openKey is a key of one opening of its token.
type openKey struct {
	km     manager
	signer crypto.Signer
}

// Public implements crypto.Signer: it is the recorded public half, which the token's was found to be.
func (k *heldKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer. Every failure is CodeKMSDown: nothing was signed, and it may be asked for again.
func (k *heldKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.device.usable(); err != nil {
		return nil, err
	}
	in := k.in.Load()
	var signature []byte
	digest = bytes.Clone(digest) // a call that is given up may still read it
	err := k.device.call(func() (err error) {
		signature, err = in.signer.Sign(random, digest, opts)
		return err
	})
	if err != nil {
		return nil, k.device.lose(in.km, err)
	}
	return signature, nil
}

// Format keeps what is behind the key out of every format verb.
func (k *heldKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "keyring signer") }

// usable is why nothing can be signed, nil if something can.
func (d *device) usable() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down != nil {
		return d.down
	}
	return nil
}

var errHangs = fmt.Errorf("the PKCS#11 module did not answer within %s", callWait)

// call runs f, which calls into the module, and waits callWait for it at most. f owns what it captures until it returns.
func (d *device) call(f func() error) error {
	timer := time.NewTimer(callWait)
	defer timer.Stop()
	select {
	case d.slots <- struct{}{}:
	case <-timer.C:
		return errHangs
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-d.slots }()
		done <- f()
	}()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return errHangs
	}
}

// lose notes that the token failed in the opening km, and is what callers are told.
func (d *device) lose(km manager, cause error) *countersign.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down == nil && d.km == km {
		d.down = d.gone(cause)
		d.losses.Add(1)
		d.wake()
	}
	if d.down != nil {
		return d.down
	}
	return d.gone(cause) // of an opening before this one: asked again it works
}

// gone is the error of a token that can't be used now.
func (d *device) gone(cause error) *countersign.Error {
	// Callers of every kind see it: which token it is stands in log, audit log and readiness.
	return countersign.Errorf(countersign.CodeKMSDown, "the token that holds the key can't be used at the moment; nothing was signed").
		After(reviveEvery).Because(cause)
}

func (d *device) wake() {
	select {
	case d.woken <- struct{}{}:
	default:
	}
}

// manager is the open token, which is opened if it never was. One that was lost is not opened here: that is revive's.
func (d *device) manager() (manager, error) {
	opened := func() (manager, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.down != nil {
			return nil, d.down
		}
		return d.km, nil
	}
	if km, err := opened(); err != nil || km != nil {
		return km, err
	}
	d.opening.Lock()
	defer d.opening.Unlock()
	if km, err := opened(); err != nil || km != nil {
		return km, err
	}
	km, err := d.open()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if refused(err) {
			d.down, d.final = d.gone(err), true
		}
		return nil, err
	}
	d.km = km
	return km, nil
}

// refused tells whether the token itself refused the PIN. After some of these a token locks itself.
func refused(err error) bool {
	known := countersign.AsError(err)
	return known.Code == countersign.CodeKMSPIN && known.Err != nil
}

// open opens the token and logs in. The PIN's file is read each time: it may have been mended.
func (d *device) open() (manager, error) {
	if err := d.place.Supported(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(d.place.module); err != nil {
		return nil, countersign.Errorf(countersign.CodeKMSDown, "the PKCS#11 module of %s can't be loaded: %v", d.place, err).
			WithHint("install the module, or mend module-path under keys in countersign.yaml").After(reviveEvery)
	}
	pin, err := readPIN(d.place, d.pinFile)
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeKMSPIN, "the PIN of %s can't be had: %v", d.place, err)
	}
	uri := d.place.String() + ";module-path=" + escape(d.place.module)
	if d.place.sessions > 0 {
		uri += fmt.Sprintf(";max-sessions=%d", d.place.sessions)
	}
	var km manager
	err = d.call(func() (err error) {
		km, err = openPKCS11(uri, pin)
		return err
	})
	switch {
	case err == nil:
		return km, nil
	case strings.Contains(err.Error(), "CKR_PIN_"):
		return nil, countersign.Errorf(countersign.CodeKMSPIN, "%s refuses the PIN", d.place).
			WithHint("put the user's PIN of this token into the file that pin-source names, then start the daemon again, or send it SIGHUP: it does not try by itself, as tokens lock themselves").Because(err)
	}
	return nil, countersign.Errorf(countersign.CodeKMSDown, "%s can't be opened: %v", d.place, err).After(reviveEvery).
		WithHint("look at the token, its module and the way to it; the module must find a token with that name")
}

// key is the key of a record: found in the token, its public half the recorded one, its private half fitting. Once found it
// is not asked of the token again, until that is opened anew.
func (d *device) key(uri string, public crypto.PublicKey) (*heldKey, error) {
	d.mu.Lock()
	known, ok := d.keys[uri]
	d.mu.Unlock()
	if ok && samePublic(known.public, public) {
		return known, nil
	}
	km, err := d.manager()
	if err != nil {
		return nil, err
	}
	signer, err := d.find(km, uri, public)
	if err != nil {
		return nil, err
	}
	k := &heldKey{device: d, uri: uri, public: public}
	k.in.Store(&openKey{km, signer})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keys[uri] = k
	return k, nil
}

// find looks a key up. A key that is not there, or is another one, is CodeKMSKey: it is never replaced.
func (d *device) find(km manager, uri string, public crypto.PublicKey) (crypto.Signer, error) {
	var signer crypto.Signer
	var signature []byte
	// What is signed means nothing anywhere else: it has a prefix of its own, and 32 random bytes.
	probe := append([]byte("countersign keyring 1: key check"), make([]byte, 32)...)
	_, _ = rand.Read(probe[len(probe)-32:]) // never fails: crypto/rand ends the process instead
	digest := sha256.Sum256(probe)
	differs := false
	err := d.call(func() (err error) {
		if signer, err = km.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: uri}); err != nil {
			return err
		}
		if differs = !samePublic(signer.Public(), public); differs {
			return nil
		}
		signature, err = signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		return err
	})
	switch {
	case errors.Is(err, errHangs):
		return nil, d.gone(err)
	case err != nil && strings.Contains(err.Error(), "not found"):
		return nil, d.wrongKey(uri, "is not there")
	case err != nil:
		return nil, d.gone(err)
	case differs:
		return nil, d.wrongKey(uri, "is another one than the recorded one")
	case !signed(public, digest[:], signature):
		return nil, d.wrongKey(uri, "has another private half than the recorded public one")
	}
	return signer, nil
}

func (d *device) wrongKey(uri, why string) *countersign.Error {
	_, name, _ := strings.Cut(uri, ";id=")
	return countersign.Errorf(countersign.CodeKMSKey, "in %s the key id=%s %s", d.place, name, why).
		WithHint("connect the token that the key was made in; a key that can't be had is never replaced by another")
}

// signed tells whether the signature, DER or PKCS#1 v1.5, is public's.
func signed(public crypto.PublicKey, digest, signature []byte) bool {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, signature) == nil
	}
	return false
}

// create makes a key in the token, which can't be taken out of it.
func (d *device) create(alg, uri string) (crypto.PublicKey, error) {
	request := &apiv1.CreateKeyRequest{Name: uri, SignatureAlgorithm: apiv1.ECDSAWithSHA256}
	if alg == algRS256 {
		request.SignatureAlgorithm, request.Bits = apiv1.SHA256WithRSA, rsaBits
	}
	km, err := d.manager()
	if err != nil {
		return nil, err
	}
	var made *apiv1.CreateKeyResponse
	if err := d.call(func() (err error) { made, err = km.CreateKey(request); return err }); err != nil {
		d.wake() // what failed may have been the request or the token: it is looked at
		return nil, countersign.Errorf(countersign.CodeKMSDown, "no key could be made in %s", d.place).
			WithHint("does the token make keys for %s, and has it room? The daemon's log has the cause", alg).After(reviveEvery).Because(err)
	}
	if err := checkPublic(alg, made.PublicKey); err != nil {
		return nil, countersign.Errorf(countersign.CodeInternal, "%s made another key than it was asked for", d.place).Because(err)
	}
	return made.PublicKey, nil
}

// destroy deletes a key from the token, for good. One that is not there is no error.
func (d *device) destroy(uri string) error {
	km, err := d.manager()
	if err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.keys, uri)
	d.mu.Unlock()
	if err := d.call(func() error { return km.DeleteKey(uri) }); err != nil {
		d.wake()
		return d.gone(err)
	}
	return nil
}

// retain forgets all keys but those with these URIs: what is not in the ring need not be found again.
func (d *device) retain(uris map[string]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uri := range d.keys {
		if !uris[uri] {
			delete(d.keys, uri)
		}
	}
}

// close gives the token back. A token that hangs is left behind.
func (d *device) close() {
	d.mu.Lock()
	km := d.km
	d.km, d.ended = nil, true
	d.down = d.gone(errors.New("the keyring is closed"))
	d.mu.Unlock()
	if km != nil {
		_ = d.call(km.Close) // nothing can be done about it at the end
	}
}
