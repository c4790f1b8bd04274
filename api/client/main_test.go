package client

import (
	"io"
	"log"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// discardLog takes what net/http says about handshakes that a test breaks on purpose.
func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }
