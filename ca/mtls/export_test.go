package mtls

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/verify"
)

// Shop is what the examples run against: a daemon of real parts on loopback.
type Shop struct{ k *kit }

// exampleTB stands for the testing.T that examples don't have.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (*exampleTB) Helper()                           {}
func (*exampleTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (*exampleTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (e *exampleTB) Cleanup(f func())                { e.cleanups = append(e.cleanups, f) }

func (e *exampleTB) TempDir() string {
	dir, err := os.MkdirTemp("", "mtls-example-")
	if err != nil {
		panic(err)
	}
	e.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// NewShop starts the daemon. end stops it.
func NewShop() (shop *Shop, end func()) {
	e := &exampleTB{}
	shop = &Shop{newKit(e, nil)}
	return shop, func() {
		for _, f := range slices.Backward(e.cleanups) {
			f()
		}
	}
}

// Identity is an identity directory of a service.
func (s *Shop) Identity(service string) string { return s.k.dir(service, 0) }

// JoinFile is a file with a join string for a service.
func (s *Shop) JoinFile(service string) string {
	path := s.k.TempDir() + "/join"
	s.k.must(os.WriteFile(path, []byte(s.k.joinString(service)), 0o600))
	return path
}

// Verifier is that of a service.
func (s *Shop) Verifier(service string) *verify.Verifier { return s.k.verifier(service) }

// Token is a token for orders, as the gateway calls it with.
func (s *Shop) Token(gateway *Source) string { return s.k.incoming(gateway) }

// Settled waits until a source has heard who may call.
func (s *Shop) Settled(src *Source) {
	src.feed.begin()
	s.k.eventually("the callers", func() bool { g, _ := src.feed.now(); return g != nil })
}

// Resolve dials where a name of the shop is really served.
func (s *Shop) Resolve(at map[string]string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, at[address])
	}
}
