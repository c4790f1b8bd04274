//go:build hsm && cgo

package keyring

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/pkcs11"
)

// pkcs11Built tells whether this build can load PKCS#11 modules.
const pkcs11Built = true

// openPKCS11 opens a token. The PIN is a value of its own: no URI that may stand in an error holds it.
func openPKCS11(uri, pin string) (manager, error) {
	return pkcs11.New(context.Background(), apiv1.Options{Type: apiv1.PKCS11, URI: uri, Pin: pin})
}
