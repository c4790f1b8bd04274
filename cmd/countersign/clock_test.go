package main

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/cmd/countersign/daemon"
)

// An operator sees that the clock leapt, is told what to do, and ends it.
func TestClockCommands(t *testing.T) {
	dir := daemon.Dir(t.TempDir() + "/ca")
	var cfg daemon.Config
	_, err := daemon.Init(t.Context(), daemon.InitOptions{
		Dir: dir, Domain: "shop.internal", Listen: "127.0.0.1:0", OpsListen: "127.0.0.1:0", Issuer: "https://localhost:8443",
		Config: func(c *daemon.Config) { c.Audit.Reserve = 0; cfg = *c },
	})
	if err != nil {
		t.Fatal(err)
	}
	var offset atomic.Int64
	start := time.Now()
	wall := func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
	d, err := daemon.Start(t.Context(), daemon.Options{
		Dir: dir, Config: cfg, Now: wall, Boot: func() time.Duration { return time.Since(start) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	// want runs a command and looks for words in all that it prints.
	want := func(code int, words string, args ...string) {
		t.Helper()
		var out bytes.Buffer
		got := run(t.Context(), append(args, "--dir", string(dir)), strings.NewReader(""), &out, &out)
		if got != code || !strings.Contains(out.String(), words) {
			t.Errorf("countersign %s: exit code %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, words, out.String())
		}
	}
	want(exitOK, "believed", "clock", "status")
	want(exitOK, "true", "clock", "confirm")
	offset.Store(int64(48 * time.Hour))
	want(exitCondition, "was set forward by 48h0m0s", "clock", "status")
	want(exitCondition, "countersign clock confirm", "clock", "status")
	want(exitCondition, "was set forward", "status")
	want(exitRemote, "CS1032", "key", "rotate", "token")
	want(exitRemote, "CS1006", "clock", "confirm") // by this machine's clock, it is not
	want(exitLocal, "is no time", "clock", "confirm", "--time", "noon")
	want(exitLocal, "no command", "clock", "conform")
	want(exitOK, "true", "clock", "confirm", "--time", wall().Format(time.RFC3339))
	want(exitOK, "true", "clock", "status")
	want(exitOK, "pending", "key", "rotate", "token")
	want(exitOK, "clock.confirmed", "audit", "search", "--type", "clock.confirmed")
}
