package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/policy"
)

const secretCause = "SECRET-CAUSE"

// written is what writeError answers.
func written(err error, oauth bool, header ...string) *http.Response {
	rq := httptest.NewRequest(http.MethodPost, "/x", nil)
	for i := 0; i+1 < len(header); i += 2 {
		rq.Header.Set(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	c := &tracked{Context: echo.New().NewContext(rq, recorder), id: "00112233445566778899aabbccddeeff"}
	s := &Server{Config: Config{Logger: slog.New(slog.DiscardHandler)}}
	s.writeError(c, err, oauth)
	return recorder.Result()
}

func dump(b *bytes.Buffer, response *http.Response) {
	fmt.Fprintln(b, response.StatusCode)
	for _, name := range []string{"Content-Type", "Cache-Control", "Pragma", "Retry-After", "WWW-Authenticate"} {
		if value := response.Header.Get(name); value != "" {
			fmt.Fprintf(b, "%s: %s\n", name, value)
		}
	}
	body, _ := io.ReadAll(response.Body) // of a recorder
	b.Write(body)
}

// TestErrorsGolden shows every code of the table in both protocols. Those that can't occur at /oauth2 are shown all the
// same: what can't happen must not be a 200.
func TestErrorsGolden(t *testing.T) {
	var problems, oauth bytes.Buffer
	for _, info := range countersign.Codes() {
		if ofRelay(info.Code) {
			continue
		}
		err := countersign.Errorf(info.Code, `what "and" why`).WithHint("what next").After(1500 * time.Millisecond).
			Because(errors.New(secretCause))
		fmt.Fprintf(&problems, "# %s\n", info.Code)
		dump(&problems, written(err, false))
		if info.OAuth != "" {
			fmt.Fprintf(&oauth, "# %s\n", info.Code)
			dump(&oauth, written(err, true))
		}
	}
	for _, b := range []*bytes.Buffer{&problems, &oauth} {
		if strings.Contains(b.String(), secretCause) {
			t.Error("the cause of an error left the daemon")
		}
	}
	golden(t, "problems.golden", problems.Bytes())
	golden(t, "oauth.golden", oauth.Bytes())
}

func TestErrorsFromElsewhere(t *testing.T) {
	faults := &policy.FaultsError{
		Err:    countersign.Errorf(countersign.CodePolicyFaults, "the policy has 1 fault"),
		Faults: []policy.Fault{{Line: 3, Column: 5, Path: "calls[0].to", Msg: "no such service", Hint: "did you mean orders?"}},
	}
	var b bytes.Buffer
	for _, tc := range []struct {
		name string
		err  error
	}{
		{"unknown", errors.New(secretCause)},
		{"wrapped", fmt.Errorf("doing: %w", countersign.Errorf(countersign.CodeNoService, "there is no service x"))},
		{"busy", fmt.Errorf("put: %w", storage.ErrBusy)},
		{"unknown outcome", storage.ErrUnknown},
		{"damaged", fmt.Errorf("%s: %w", secretCause, storage.ErrCorrupt)},
		{"closed", storage.ErrClosed},
		{"timeout", context.DeadlineExceeded},
		{"body", &http.MaxBytesError{Limit: 10}},
		{"no route", echo.ErrNotFound},
		{"no method", echo.ErrMethodNotAllowed},
		{"other of echo", echo.NewHTTPError(http.StatusTeapot, secretCause)},
		{"faults", faults},
	} {
		fmt.Fprintf(&b, "# %s\n", tc.name)
		dump(&b, written(tc.err, false))
	}
	if strings.Contains(b.String(), secretCause) {
		t.Error("the cause of an error left the daemon")
	}
	golden(t, "other.golden", b.Bytes())
}

func TestAnErrorAfterTheAnswerBegan(t *testing.T) {
	rq, recorder := httptest.NewRequest(http.MethodGet, "/x", nil), httptest.NewRecorder()
	c := echo.New().NewContext(rq, recorder)
	if err := c.String(http.StatusOK, "half"); err != nil {
		t.Fatal(err)
	}
	(&Server{Config: Config{Logger: slog.New(slog.DiscardHandler)}}).writeError(c, errors.New("late"), false)
	if recorder.Code != http.StatusOK || recorder.Body.String() != "half" {
		t.Errorf("an answer that had begun was written to: %d %q", recorder.Code, recorder.Body)
	}
}

func TestChallenge(t *testing.T) {
	err := countersign.Errorf(countersign.CodeWrongCredential, "no")
	for _, tc := range []struct{ sent, want string }{
		{"", ""},
		{"Basic eDp5", `Basic realm="countersign"`},
		{"bearer x", `Bearer realm="countersign"`},
		{"Weird\" x", `Bearer realm="countersign"`},
	} {
		header := []string{"Authorization", tc.sent}
		if tc.sent == "" {
			header = nil
		}
		if got := written(err, true, header...).Header.Get("WWW-Authenticate"); got != tc.want {
			t.Errorf("Authorization %q: WWW-Authenticate %q, want %q", tc.sent, got, tc.want)
		}
	}
}

func FuzzDescription(f *testing.F) {
	f.Add("a \"quoted\\thing\"", "hint\nmore")
	f.Add("\x00\x7fé", "")
	f.Fuzz(func(t *testing.T, msg, hint string) {
		for _, r := range description(msg, hint) {
			if r < 0x20 || r > 0x7e || r == '"' || r == '\\' {
				t.Fatalf("%q is no character of an error_description (RFC 6749 5.2)", r)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "1", time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", time.Minute: "60"} {
		if got := retryAfter(d); got != want {
			t.Errorf("retryAfter(%v) = %s, want %s", d, got, want)
		}
	}
}
