package api

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

const errorsDocument = "../docs/errors.md"

// ofRelay tells the codes of the services' side, which never come from the daemon.
func ofRelay(c countersign.Code) bool { return strings.HasPrefix(string(c), "CS7") }

// docs/errors.md is made of the table of codes and of the one place where they become statuses: `go test ./api -run
// TestErrorsDocument -update` writes it.
func TestErrorsDocument(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("# Errors\n\nMade from the table in `codes.go` by `go test ./api -run TestErrorsDocument -update`. Codes are stable: they are never reused.\n\n" +
		"Under `/v1` an error is `application/problem+json` (RFC 9457) with `code`, `hint` and `request_id`. At `/oauth2/*` it is JSON as RFC 6749 5.2 says; `code` and\n" +
		"`request_id` stand beside. The command line shows both, and exits with 3 (denied), 4 (not in this state), 5 (not found) or 2 (all other answers).\n\n" +
		"| code | status | at `/oauth2/*` | what it means | what to do |\n|---|---|---|---|---|\n")
	for _, info := range countersign.Codes() {
		oauth := "-"
		if info.OAuth != "" {
			oauth = fmt.Sprintf("%d `%s`", oauthStatus(info.Kind, info.Code), info.OAuth)
		}
		status := statusOf(info.Kind, info.Code)
		if ofRelay(info.Code) {
			status = observe.StatusOf(&countersign.Error{Kind: info.Kind, Code: info.Code})
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |\n", info.Code, status, oauth, info.Title, info.Next)
	}
	if *update {
		if err := os.WriteFile(errorsDocument, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(errorsDocument)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s is not what the table of codes says: run this test with -update", errorsDocument)
	}
}

// Every row says what to do.
func TestCodesSayWhatToDo(t *testing.T) {
	for _, info := range countersign.Codes() {
		if info.Next == "" {
			t.Errorf("%s does not say what to do", info.Code)
		}
	}
}
