package limit_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/sts/relay/limit"
	"github.com/countersign/countersign/sts/relay/observe"
)

// ask sends one request of who through a limiter.
func ask(l *limit.Limiter, who observe.Identity) *httptest.ResponseRecorder {
	request := &observe.Request{}
	request.SetIdentity(who)
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r = r.WithContext(observe.NewContext(r.Context(), request))
	w := httptest.NewRecorder()
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })).ServeHTTP(w, r)
	return w
}

func newLimiter(t *testing.T, cfg limit.Config) *limit.Limiter {
	t.Helper()
	l, err := limit.New(cfg, limit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The headers and answers of Spring Cloud Gateway, over the time of a bubble.
func TestHeadersAndAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, limit.Config{Key: limit.User, ReplenishRate: 1, Burst: 6, RequestedTokens: 3})
		ada := observe.Identity{User: "https://idp.example ada"}
		for i, want := range []struct {
			wait      time.Duration
			status    int
			remaining string
			retry     string
		}{
			{0, 204, "3", ""},
			{0, 204, "0", ""},
			{0, 429, "0", "3"},
			{1500 * time.Millisecond, 429, "1", "2"},
			{1500 * time.Millisecond, 204, "0", ""},
			{time.Hour, 204, "3", ""}, // never above the burst
		} {
			time.Sleep(want.wait)
			w := ask(l, ada)
			if w.Code != want.status || w.Header().Get(limit.HeaderRemaining) != want.remaining || w.Header().Get("Retry-After") != want.retry {
				t.Errorf("request %d: %d, %v", i, w.Code, w.Header())
			}
			if h := w.Header(); h.Get(limit.HeaderRate) != "1" || h.Get(limit.HeaderBurst) != "6" || h.Get(limit.HeaderRequested) != "3" {
				t.Errorf("request %d: %v", i, h)
			}
		}
		if w := ask(l, observe.Identity{User: "https://idp.example bob"}); w.Code != 204 {
			t.Errorf("another user: %d", w.Code)
		}
	})
}

func TestRefusalIsAProblem(t *testing.T) {
	l := newLimiter(t, limit.Config{Key: limit.Client, ReplenishRate: 1})
	who := observe.Identity{Client: "spiffe://shop.example/gateway"}
	ask(l, who)
	w := ask(l, who)
	var problem struct {
		Code, Title, Hint string
		Status            int
	}
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || problem.Code != "CS7040" || problem.Status != 429 {
		t.Errorf("%s: %v", w.Body, err)
	}
	if w.Header().Get("Content-Type") != "application/problem+json" || strings.Contains(w.Body.String(), "gateway") {
		t.Errorf("%v %s", w.Header(), w.Body)
	}
}

// Without the key that the limit counts by there is no bucket, and no way through.
func TestNoKeyIsRefused(t *testing.T) {
	all := observe.Identity{User: "u", Client: "c", Address: netip.MustParseAddr("192.0.2.1")}
	for key, without := range map[string]observe.Identity{
		limit.User:    {Client: all.Client, Address: all.Address},
		limit.Client:  {User: all.User, Address: all.Address},
		limit.Address: {User: all.User, Client: all.Client},
	} {
		l := newLimiter(t, limit.Config{Key: key, ReplenishRate: 100})
		if w := ask(l, without); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "CS7041") {
			t.Errorf("%s: %d %s", key, w.Code, w.Body)
		}
		if w := ask(l, all); w.Code != http.StatusNoContent {
			t.Errorf("%s: %d %s", key, w.Code, w.Body)
		}
	}
	// Nor where nobody noted who asks: the middleware around it is missing.
	w := httptest.NewRecorder()
	newLimiter(t, limit.Config{Key: limit.Address, ReplenishRate: 1}).Middleware(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusForbidden {
		t.Errorf("without an identity: %d", w.Code)
	}
}

// One IPv6 host has 2^64 addresses, and one bucket.
func TestIPv6IsCountedByNetwork(t *testing.T) {
	l := newLimiter(t, limit.Config{Key: limit.Address, ReplenishRate: 1})
	for _, step := range []struct {
		address string
		want    int
	}{
		{"2001:db8:1:2::1", 204}, {"2001:db8:1:2:ffff::9", 429}, {"2001:db8:1:3::1", 204},
		{"192.0.2.1", 204}, {"::ffff:192.0.2.1", 429}, {"192.0.2.2", 204}, {"fe80::1%eth0", 204}, {"fe80::2%eth1", 429},
	} {
		if w := ask(l, observe.Identity{Address: netip.MustParseAddr(step.address)}); w.Code != step.want {
			t.Errorf("%s: %d, want %d", step.address, w.Code, step.want)
		}
	}
}

// Through a real server, with all requests at once: the burst passes and not one more. Headers that claim another address,
// user or client change nothing.
func TestManyAtOnceOverHTTP(t *testing.T) {
	l := newLimiter(t, limit.Config{Key: limit.Address, ReplenishRate: 1, Burst: 20})
	around, err := observe.New(observe.Config{Listener: "public", Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(around(l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))))
	defer server.Close()
	begun := time.Now()
	var passed, limited atomic.Int64
	var group sync.WaitGroup
	for i := range 100 {
		group.Go(func() {
			r, err := http.NewRequest(http.MethodGet, server.URL, nil)
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("X-Forwarded-For", netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String())
			r.Header.Set("Forwarded", "for=10.1.1.1")
			response, err := server.Client().Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			_, _ = io.Copy(io.Discard, response.Body)
			switch response.StatusCode {
			case http.StatusOK:
				passed.Add(1)
			case http.StatusTooManyRequests:
				limited.Add(1)
			}
		})
	}
	group.Wait()
	// On a slow machine the bucket grows meanwhile.
	if most := 20 + int64(time.Since(begun).Seconds()) + 1; passed.Load() < 20 || passed.Load() > most || passed.Load()+limited.Load() != 100 {
		t.Errorf("%d passed and %d were limited, 20 to %d may pass", passed.Load(), limited.Load(), most)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for text, want := range map[string]string{
		"key: header\nreplenish_rate: 1":                              "key",
		"replenish_rate: 1":                                           "key",
		"key: user":                                                   "replenish_rate",
		"key: user\nreplenish_rate: -1":                               "replenish_rate",
		"key: user\nreplenish_rate: 1000001":                          "replenish_rate",
		"key: user\nreplenish_rate: 10\nburst: 9":                     "burst",
		"key: user\nreplenish_rate: 10\nburst: -1":                    "burst",
		"key: user\nreplenish_rate: 1\nburst: 5\nrequested_tokens: 6": "burst",
		"key: user\nreplenish_rate: 1\nrequested_tokens: -6":          "requested_tokens",
		"key: user\nreplenish_rate: 1\nburst: 1000001":                "burst",
		"key: user\nreplenish_rate: 1\nburstCapacity: 7":              "burstCapacity",
	} {
		var cfg limit.Config
		decoder := yaml.NewDecoder(strings.NewReader(text))
		decoder.KnownFields(true)
		err := decoder.Decode(&cfg)
		if err == nil {
			err = cfg.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want a word of %s", text, err, want)
		}
	}
	if err := (limit.Config{Key: limit.User, ReplenishRate: 1, RequestedTokens: 60}).Validate(); err != nil {
		t.Errorf("one request a minute: %v", err)
	}
}
