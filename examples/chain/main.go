// Chain runs the picture that Countersign started from, with real processes on loopback: a client app sends a user's request through
// a gateway (countersign relay), orders (Java 17), inventory (Go with the SDK) and warehouse (Node.js behind countersign relay), by
// mTLS on every hop, with the user's identity kept and at each hop a token that is good for the next only.
//
// Then it does to the chain what happens in earnest: keys rotate and certificates are renewed while requests flow, calls outside of
// the call graph are tried, and a user's transaction is revoked. It exits non-zero if anything differs from what is expected. It
// never contacts anything but loopback, and leaves neither a process nor a file behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Children are told to die with the thread that started them: Run stays on this one, which lives as long as the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	o := Options{Out: os.Stdout}
	flag.StringVar(&o.Countersign, "countersign", "bin/countersign", "the binary")
	flag.StringVar(&o.Source, "source", "examples/chain", "directory of the services' sources")
	flag.BoolVar(&o.Keep, "keep", false, "leave its directory behind: configurations, identities and logs")
	flag.Parse()
	err := Run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\nThe chain did not go as it should:", err)
		os.Exit(4)
	}
}
