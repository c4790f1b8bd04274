package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
)

// checkpoint is the payload of a frame that signs the chain up to a sequence before its own.
type checkpoint struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"` // hex
	KID  string `json:"kid"`
	Sig  []byte `json:"sig"`
}

// checkpointPayload is what is signed. Its first line is of no other use of any key.
func checkpointPayload(seq uint64, h hash) []byte {
	return fmt.Appendf(nil, "countersign audit checkpoint v1\n%d\n%s\n", seq, hexHash(h))
}

// Sign makes the signature that [Log.Verify] takes: over the SHA-256 of payload in ASN.1 for ECDSA keys (SEC 1, as
// crypto.Signer gives it), over payload itself for Ed25519 (RFC 8032).
func Sign(s crypto.Signer, payload []byte) ([]byte, error) {
	switch s.Public().(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(payload)
		return s.Sign(rand.Reader, sum[:], crypto.SHA256)
	case ed25519.PublicKey:
		return s.Sign(rand.Reader, payload, crypto.Hash(0))
	}
	return nil, fmt.Errorf("a key of type %T can't sign checkpoints", s.Public())
}

func verifySignature(key crypto.PublicKey, payload, sig []byte) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(payload)
		return ecdsa.VerifyASN1(key, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(key, payload, sig)
	}
	return false
}

// check holds the checkpoint to the hash that the log has at its sequence.
func (c checkpoint) check(h hash, key func(kid string) (crypto.PublicKey, bool)) error {
	if c.Hash != hexHash(h) {
		return fmt.Errorf("the checkpoint signs another record %d", c.Seq)
	}
	public, ok := key(c.KID)
	if !ok {
		return fmt.Errorf("the checkpoint is signed by the unknown key %q", c.KID)
	}
	if !verifySignature(public, checkpointPayload(c.Seq, h), c.Sig) {
		return errors.New("the checkpoint's signature is wrong")
	}
	return nil
}

func parseCheckpoint(payload []byte) (checkpoint, error) {
	var c checkpoint
	err := json.Unmarshal(payload, &c)
	return c, err
}
