package mtls

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
)

type callers struct{}

// Callers admits the services that the call graph lets call this one, as the authority tells (GET /v1/callers): edges and
// revocations, at the handshake and on kept connections.
func Callers() Authorizer { return callers{} }

func (callers) begin(*Source) {}

func (callers) authorize(src *Source, p peer) error {
	return errors.New("the authority has not said yet who may call")
}

type callersFeed struct{}

func newCallersFeed(*Source) *callersFeed { return &callersFeed{} }
func (f *callersFeed) wait()              {}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
