package countersign

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestCodesAreInOrder(t *testing.T) {
	if !slices.IsSortedFunc(Codes(), func(a, b CodeInfo) int { return strings.Compare(string(a.Code), string(b.Code)) }) {
		t.Error("the table is not in the order of the codes")
	}
	if info := Code("CS9999").Info(); info.Code != CodeInternal || info.Kind != Internal {
		t.Errorf("an unknown code is %+v", info)
	}
}

// Only what RFC 6749 5.2, RFC 8693 2.2.2 and RFC 7009 2.2.1 name, or 503 and 500 need, stands on the wire of /oauth2.
func TestOAuthErrors(t *testing.T) {
	known := []string{"", "invalid_request", "invalid_client", "invalid_target", "invalid_scope", "unauthorized_client", "unsupported_grant_type", "invalid_grant", "unsupported_token_type", "server_error", "temporarily_unavailable"}
	for _, info := range Codes() {
		if !slices.Contains(known, info.OAuth) {
			t.Errorf("%s: %q", info.Code, info.OAuth)
		}
		if (info.Kind == Unauthenticated) && info.OAuth != "" && info.OAuth != "invalid_client" {
			t.Errorf("%s is 401 with %q", info.Code, info.OAuth)
		}
	}
}

func TestErrorsShowNoCause(t *testing.T) {
	secret := errors.New("open /secret/path")
	err := error(Errorf(CodeBusy, "the store is %s", "busy").WithHint("try %s", "again").Because(secret))
	e := AsError(fmt.Errorf("apply: %w", err))
	if e.Kind != Unavailable || e.Msg != "the store is busy" || e.Hint != "try again" || !errors.Is(e, secret) {
		t.Errorf("%+v", e)
	}
	if !strings.Contains(e.Error(), "/secret/path") {
		t.Error("the log lacks the cause")
	}
	if e := AsError(secret); e.Kind != Internal || strings.Contains(e.Msg+e.Hint, "secret") {
		t.Errorf("%+v", e)
	}
}
