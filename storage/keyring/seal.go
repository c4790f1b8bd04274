package keyring

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
)

// sealVersion is what a newly sealed key gets. It counts how often a key was sealed and is bound to the sealing, so
// halves of two sealings of one key don't fit together.
const sealVersion = 1

// sealed is a private key at rest. Both parts are AES-256-GCM: a random nonce of 12 bytes, ciphertext, tag of 16 bytes.
type sealed struct {
	Version uint32 `json:"version"`
	DataKey []byte `json:"data_key"` // the data key under the KEK
	Private []byte `json:"private"`  // PKCS#8 DER under the data key
}

// The first part of each additional data: what is sealed, and in which format.
const (
	labelCheck   = "countersign keyring 1: kek check"
	labelDataKey = "countersign keyring 1: data key"
	labelPrivate = "countersign keyring 1: private key"
	labelURI     = "countersign keyring 1: key uri"
)

// newAEAD is AES-256-GCM that puts a random nonce before the ciphertext (NIST SP 800-38D 8.2.2: up to 2^32 uses of a
// key; a KEK seals a few dozen data keys a year, a data key seals once).
func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != kekSize {
		return nil, fmt.Errorf("a key for AES-256 has %d bytes, this one has %d", kekSize, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// additionalData binds what is sealed to what it belongs to. Each part has its length before it: no two different
// lists of parts encode alike.
func additionalData(label, id string, purpose Purpose, version uint32) []byte {
	var b []byte
	for _, part := range []string{label, id, string(purpose)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return binary.BigEndian.AppendUint32(b, version)
}

// seal wraps key for rest. Only id and purpose stand in the clear beside it.
func seal(kek cipher.AEAD, id string, purpose Purpose, key crypto.Signer) (sealed, error) {
	der, err := pkcs8(key)
	if err != nil {
		return sealed{}, err
	}
	defer clear(der)
	return sealBytes(kek, labelPrivate, id, purpose, der)
}

func sealBytes(kek cipher.AEAD, label, id string, purpose Purpose, secret []byte) (sealed, error) {
	dataKey := make([]byte, kekSize)
	defer clear(dataKey)
	if _, err := rand.Read(dataKey); err != nil {
		return sealed{}, err
	}
	aead, err := newAEAD(dataKey)
	if err != nil {
		return sealed{}, err
	}
	return sealed{
		Version: sealVersion,
		DataKey: kek.Seal(nil, nil, dataKey, additionalData(labelDataKey, id, purpose, sealVersion)),
		Private: aead.Seal(nil, nil, secret, additionalData(label, id, purpose, sealVersion)),
	}, nil
}

// unseal is the signer of a sealed key, and proves that it is the private half of pub.
func unseal(kek cipher.AEAD, id string, purpose Purpose, pub crypto.PublicKey, s sealed) (crypto.Signer, error) {
	der, err := unsealBytes(kek, labelPrivate, id, purpose, s)
	defer clear(der)
	if err != nil {
		return nil, err
	}
	key, err := newSigner(der)
	if err != nil {
		return nil, err
	}
	if !samePublic(key.Public(), pub) {
		return nil, errors.New("its private half belongs to another public half")
	}
	return key, nil
}

func unsealBytes(kek cipher.AEAD, label, id string, purpose Purpose, s sealed) ([]byte, error) {
	dataKey, err := kek.Open(nil, nil, s.DataKey, additionalData(labelDataKey, id, purpose, s.Version))
	defer clear(dataKey)
	if err != nil {
		return nil, errors.New("its data key does not unseal: it was changed, or sealed for another key or under another KEK")
	}
	aead, err := newAEAD(dataKey)
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, s.Private, additionalData(label, id, purpose, s.Version))
	if err != nil {
		return nil, errors.New("its private half does not unseal: it was changed, or sealed for another key")
	}
	return secret, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	own, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(b)
}

// checkValue proves a KEK later without any key: the empty text, sealed.
func checkValue(kek cipher.AEAD) []byte { return kek.Seal(nil, nil, nil, []byte(labelCheck)) }

// fits tells whether value was made with kek.
func fits(kek cipher.AEAD, value []byte) bool {
	_, err := kek.Open(nil, nil, value, []byte(labelCheck))
	return err == nil
}

// marshalPublic is the public half as PKIX DER.
func marshalPublic(pub crypto.PublicKey) ([]byte, error) { return x509.MarshalPKIXPublicKey(pub) }
