package keyring

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// No test leaves a goroutine behind.
func TestMain(m *testing.M) {
	if point := os.Getenv(killVar); point != "" {
		rotateAndDie(os.Getenv(killVar+"_DIR"), point)
	}
	goleak.VerifyTestMain(m)
}
