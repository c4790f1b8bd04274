package bench

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Report is what a benchmark found.
type Report struct {
	Machine     string `json:"machine"`
	Connections int    `json:"connections"`
	Requests    int    `json:"requests"` // of each row
	Alg         string `json:"alg"`      // of the minted tokens
	Raw         Raw    `json:"raw"`
	Rows        []Row  `json:"rows"`
}

// Raw is what the bare cryptography of one exchange costs: milliseconds of CPU time.
type Raw struct {
	Verify float64 `json:"verify_cpu_ms"` // an ES256 signature
	Sign   float64 `json:"sign_cpu_ms"`   // with Alg
}

// Row is one phase.
type Row struct {
	Name      string  `json:"name"`
	Rate      float64 `json:"rate"` // per second
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	CPU       float64 `json:"server_cpu_ms"` // of the daemon, a request
	TimesRaw  float64 `json:"times_raw"`     // CPU over that of the bare cryptography
	RSSBefore int64   `json:"rss_before_kib"`
	RSSAfter  int64   `json:"rss_after_kib"`
}

// measure runs work, of n requests, and tells what it cost the process pid.
func measure(pid, n int, work func() ([]time.Duration, error)) (Row, error) {
	before, err := usageOf(pid)
	if err != nil {
		return Row{}, err
	}
	begun := time.Now()
	took, err := work()
	if err != nil {
		return Row{}, err
	}
	wall := time.Since(begun)
	after, err := usageOf(pid)
	if err != nil {
		return Row{}, err
	}
	slices.Sort(took)
	return Row{
		Rate: float64(n) / wall.Seconds(), P50: ms(took[n/2]), P99: ms(took[n*99/100]),
		CPU: ms(after.cpu-before.cpu) / float64(n), RSSBefore: before.rss, RSSAfter: after.rss,
	}, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

type usage struct {
	cpu time.Duration // user and system
	rss int64         // KiB
}

// tick is the unit of times in /proc/PID/stat: USER_HZ, 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// usageOf reads proc_pid_stat(5): after the command's name in parentheses, utime and stime are the 12th and 13th field, rss
// the 22nd, in pages.
func usageOf(pid int) (usage, error) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	fields := bytes.Fields(body[bytes.LastIndexByte(body, ')')+1:])
	if len(fields) < 22 {
		return usage{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var numbers [3]int64
	for i, at := range []int{11, 12, 21} {
		if numbers[i], err = strconv.ParseInt(string(fields[at]), 10, 64); err != nil {
			return usage{}, err
		}
	}
	return usage{cpu: time.Duration(numbers[0]+numbers[1]) * tick, rss: numbers[2] * int64(os.Getpagesize()) >> 10}, nil
}

// measureRaw tells what verifying and signing cost by themselves, in this process.
func measureRaw(alg string) (Raw, error) {
	digest := sha256.Sum256([]byte("countersign bench"))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Raw{}, err
	}
	signature, err := ecdsa.SignASN1(rand.Reader, ec, digest[:])
	if err != nil {
		return Raw{}, err
	}
	var key crypto.Signer = ec
	rounds := 2000
	if alg == "RS256" {
		if key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return Raw{}, err
		}
		rounds = 400
	}
	verify, err := cpuOf(2000, func() error {
		if !ecdsa.VerifyASN1(&ec.PublicKey, digest[:], signature) {
			return fmt.Errorf("a good signature does not verify")
		}
		return nil
	})
	if err != nil {
		return Raw{}, err
	}
	sign, err := cpuOf(rounds, func() error { _, err := key.Sign(rand.Reader, digest[:], crypto.SHA256); return err })
	return Raw{Verify: verify, Sign: sign}, err
}

// cpuOf is the CPU time of one do in milliseconds, by getrusage over n.
func cpuOf(n int, do func() error) (float64, error) {
	runtime.GC()
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return 0, err
	}
	for range n {
		if err := do(); err != nil {
			return 0, err
		}
	}
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		return 0, err
	}
	spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	return ms(time.Duration(spent)) / float64(n), nil
}

// machine names what the figures were obtained on.
func machine() string {
	model := "unknown processor"
	if body, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(body)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d x %s, %s/%s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, runtime.Version())
}
