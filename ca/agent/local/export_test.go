package local

import (
	"testing"

	"github.com/countersign/countersign/ca/mtls"
)

// DocumentSocket is what the commands of the document need: the socket of an agent with the identity orders, and a token that came
// to orders with a request.
type DocumentSocket struct{ Path, Token string }

// ServeForDocument serves it until the test ends.
func ServeForDocument(t *testing.T) DocumentSocket {
	k := newKit(t)
	socket, _ := k.serve([]Rule{me("orders")}, nil, map[string]*mtls.Source{"orders": k.source("orders")})
	token, err := mtls.NewTokens(k.source("reports")).Machine(t.Context(), "orders")
	k.must(err)
	return DocumentSocket{Path: socket, Token: token.Value}
}
