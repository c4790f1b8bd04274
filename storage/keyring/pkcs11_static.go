//go:build !(hsm && cgo)

package keyring

import "errors"

// pkcs11Built tells whether this build can load PKCS#11 modules.
const pkcs11Built = false

// openPKCS11 is never reached: [Place.Supported] refuses before.
func openPKCS11(string, string) (manager, error) {
	return nil, errors.New("this build loads no PKCS#11 modules")
}
