package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
)

const (
	crowd     = 100      // connections of one attack
	maxGrowth = 16 << 10 // KiB that an attack may cost
	perSlow   = 64       // KiB more for each connection of slow clients
	sampling  = time.Millisecond
)

// rss is the memory of the daemon that nothing but its end gives back, in KiB. Pages of the files that it maps are not in
// it: they are the kernel's cache.
func (d *door) rss() int {
	d.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	d.must(err)
	match := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		d.Fatalf("no RssAnon in %s", status)
	}
	kib, err := strconv.Atoi(string(match[1]))
	d.must(err)
	return kib
}

// peak is the most memory that the daemon had while attack ran.
func (d *door) peak(attack func()) int {
	d.Helper()
	path := fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid)
	var most atomic.Int64
	done, sampled := make(chan struct{}), make(chan struct{})
	pattern := regexp.MustCompile(`RssAnon:\s+(\d+) kB`)
	go func() {
		defer close(sampled)
		for {
			status, _ := os.ReadFile(path) // a daemon that died has none; the test sees that elsewhere
			if match := pattern.FindSubmatch(status); match != nil {
				kib, _ := strconv.ParseInt(string(match[1]), 10, 64)
				most.Store(max(most.Load(), kib))
			}
			select {
			case <-done:
				return
			case <-time.After(sampling):
			}
		}
	}()
	attack()
	close(done)
	<-sampled
	return int(most.Load())
}

// atOnce runs f for each connection of a crowd, all at the same time.
func atOnce(n int, f func(int)) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { f(i) })
	}
	group.Wait()
}

// dial opens a connection for an attack by hand; nil if the daemon would not have it.
func (d *door) dial(who string) net.Conn {
	conn, err := tls.Dial("tcp", "127.0.0.1:"+d.port(), d.tls(who, "http/1.1"))
	if err != nil {
		return nil
	}
	return conn
}

// pour sends head and then body until the daemon answers or has had enough, and gives the answer's first line.
func (d *door) pour(who, head string, body io.Reader) string {
	conn := d.dial(who)
	if conn == nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	go func() {
		_, _ = io.WriteString(conn, head)
		_, _ = io.Copy(conn, body)
	}()
	answer := make([]byte, 64)
	n, _ := io.ReadFull(conn, answer)
	line, _, _ := strings.Cut(string(answer[:n]), "\r\n")
	return line
}

// repeated is text again and again until no bytes are left; it costs no memory.
type repeated struct {
	text string
	left int
	at   int // in text
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && n < r.left {
		some := copy(p[n:min(len(p), r.left)], r.text[r.at:])
		n, r.at = n+some, (r.at+some)%len(r.text)
	}
	r.left -= n
	return n, nil
}

// chunked is text without end in the chunked coding of HTTP/1.1, in about size bytes. It is made once, so that it costs no
// time; the chunk is made of whole texts.
func chunked(text string, size int) io.Reader {
	body := strings.Repeat(text, 1+(32<<10)/len(text))
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
	return io.MultiReader(&repeated{text: chunk, left: size / len(chunk) * len(chunk)}, strings.NewReader("0\r\n\r\n"))
}

func requestHead(method, path, media string, header ...string) string {
	return method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + media + "\r\n" + strings.Join(header, "\r\n") + "\r\n\r\n"
}

// attack is one kind of bad input, as one connection of many sends it, and the status that it gets.
type attack struct {
	name string
	want string // begin of the status line; "" is also the end of the connection
	run  func(d *door) string
}

// bodyAttack sends 3 MiB and 300 MiB without saying how much will come, and 300 MiB that are announced.
func bodyAttack(name, who, method, path, media, text string) []attack {
	const small, large = 3 << 20, 300 << 20
	streamed := func(size int) func(d *door) string {
		return func(d *door) string {
			return d.pour(who, requestHead(method, path, media, "Transfer-Encoding: chunked"), chunked(text, size))
		}
	}
	return []attack{
		{"3 MiB " + name + ", chunked", "HTTP/1.1 413", streamed(small)},
		{"300 MiB " + name + ", chunked", "HTTP/1.1 413", streamed(large)},
		{"300 MiB " + name, "HTTP/1.1 413", func(d *door) string {
			return d.pour(who, requestHead(method, path, media, fmt.Sprintf("Content-Length: %d", large)), &repeated{text: text, left: large})
		}},
	}
}

func attacks() []attack {
	var all []attack
	all = append(all, bodyAttack("form", "gateway", http.MethodPost, "/oauth2/token", wire.Form, "grant_type=x&")...)
	all = append(all, bodyAttack("certificate request", "gateway", http.MethodPost, "/v1/certificates", wire.JSON, `{"csr":"`)...)
	all = append(all, bodyAttack("policy", "admin", http.MethodPut, "/v1/policy", wire.YAML, "services: [{name: a}]\n")...)
	return append(all, smallAttacks()...)
}

func smallAttacks() []attack {
	nested := strings.Repeat(`{"a":[`, 5000)
	deep := `{"csr":` + nested
	dots := "grant_type=" + url.QueryEscape(grantExchange) + "&subject_token="
	many := strings.Repeat("p=1&", 10000)
	whole := func(who, method, path, media, body string, header ...string) func(*door) string {
		return func(d *door) string {
			header := append(header, fmt.Sprintf("Content-Length: %d", len(body)))
			return d.pour(who, requestHead(method, path, media, header...), strings.NewReader(body))
		}
	}
	return []attack{
		{"JSON nested 10,000 deep", "HTTP/1.1 400", whole("gateway", http.MethodPost, "/v1/certificates", wire.JSON, deep)},
		{"policy nested 10,000 deep", "HTTP/1.1 400", whole("admin", http.MethodPut, "/v1/policy", wire.YAML, strings.Repeat("[", 10000))},
		{"10,000 parameters", "HTTP/1.1 400", whole("gateway", http.MethodPost, "/oauth2/token", wire.Form, many)},
		{"token of 1 MB of dots", "HTTP/1.1 413", func(d *door) string {
			return d.pour("gateway", requestHead(http.MethodPost, "/oauth2/token", wire.Form, fmt.Sprintf("Content-Length: %d", len(dots)+1<<20)),
				io.MultiReader(strings.NewReader(dots), &repeated{text: ".", left: 1 << 20}))
		}},
		{"token of dots as long as forms may be", "HTTP/1.1 400", whole("gateway", http.MethodPost, "/oauth2/token", wire.Form, dots+strings.Repeat(".", 60<<10))},
		{"many headers", "HTTP/1.1 431", func(d *door) string {
			return d.pour("", "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\n", &repeated{text: "X-Flood: 1\r\n", left: 1 << 20})
		}},
		{"one huge header", "HTTP/1.1 431", func(d *door) string {
			return d.pour("", "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\nX-Flood: ", &repeated{text: "a", left: 16 << 20})
		}},
		{"one huge request line", "HTTP/1.1 431", func(d *door) string {
			return d.pour("", "GET /", &repeated{text: "a", left: 16 << 20})
		}},
	}
}

// TestMemoryUnderAttack sends each kind of bad input over a hundred connections at once, each to a daemon that was just
// started and had as many good requests before. None may cost it 16 MiB more than those did.
func TestMemoryUnderAttack(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	before := d.state()
	for _, a := range attacks() {
		d.stop(t, syscall.SIGTERM)
		d.start(t)
		d.warm()
		base := d.rss()
		var mu sync.Mutex
		answers := map[string]int{}
		most := d.peak(func() {
			atOnce(crowd, func(int) {
				line := a.run(d)
				mu.Lock()
				defer mu.Unlock()
				answers[line]++
			})
		})
		t.Logf("%-45s %d KiB %+d KiB %v", a.name, base, most-base, answers)
		if most-base >= maxGrowth {
			t.Errorf("%s over %d connections: RSS grew by %d KiB", a.name, crowd, most-base)
		}
		for line := range answers {
			if line != "" && !strings.HasPrefix(line, a.want) {
				t.Errorf("%s: answered %q, want %q", a.name, line, a.want)
			}
		}
	}
	d.unchanged(before, attackDenials())
	d.stillGood()
}

// attackDenials are the types of records that attacks may add, in any number.
func attackDenials() map[string]int {
	return map[string]int{
		"token.issued": -1, "token.denied": -1, "certificate.denied": -1, "request.denied": -1, "policy.refused": -1,
		"daemon.started": -1, "daemon.stopped": -1,
	}
}

// warm sends as many good requests as an attack has connections, so that what any crowd costs is not taken for the
// attack's.
func (d *door) warm() {
	d.Helper()
	good := d.idp.good()
	atOnce(crowd, func(int) {
		c := d.as("gateway")
		if got := d.exchange(c, good, "orders"); got.status != http.StatusOK {
			d.Errorf("a good request: %d %s", got.status, got.body)
		}
		c.CloseIdleConnections()
	})
}
