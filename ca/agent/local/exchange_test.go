package local

import (
	"encoding/json"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/jwt"
)

// curl sends one request over the socket with the tool that people have. It gives the status and the body.
func (k *kit) curl(socket string, args ...string) (int, string) {
	k.Helper()
	cmd := exec.CommandContext(k.Context(), "curl", append([]string{"-sS", "--max-time", "20", "--unix-socket", socket, "-w", "\n%{http_code}"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		k.Fatalf("curl %q: %v\n%s", args, err, out)
	}
	text := strings.TrimSpace(string(out))
	at := strings.LastIndexByte(text, '\n')
	status, err := strconv.Atoi(text[at+1:])
	k.must(err)
	return status, text[:max(at, 0)]
}

// POST /exchange is the exchange of the caller's identity, over HTTP/1.1 and HTTP/2; what can't be right is refused, and the
// authority's word is passed on.
func TestExchange(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	socket, _ := k.serve([]Rule{me("orders")}, nil, src)
	machine, err := mtls.NewTokens(src["reports"]).Machine(t.Context(), "orders")
	k.must(err)
	bearer := "Authorization: Bearer " + machine.Value
	var relay string
	for name, extra := range map[string][]string{"HTTP/1.1": nil, "HTTP/2": {"--http2-prior-knowledge"}} {
		args := append(extra, "-X", "POST", "-H", bearer, "http://localhost/exchange?audience=inventory&scope=stock:read")
		code, body := k.curl(socket, args...)
		var got wire.Token
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 || got.TokenType != "Bearer" || got.ExpiresIn <= 0 || got.Scope != "stock:read" {
			t.Fatalf("%s: %d %s", name, code, body)
		}
		token, err := jwt.Parse(got.AccessToken)
		k.must(err)
		if aud, _, _ := token.Claims.String("aud"); aud != "inventory" {
			t.Errorf("%s: aud %q", name, aud)
		}
		if client, _, _ := token.Claims.String("client_id"); client != ordersID {
			t.Errorf("%s: client_id %q", name, client)
		}
		relay = got.AccessToken
	}
	svid := k.jwtSVID(src["reports"])
	for name, c := range map[string]struct {
		args   []string
		status int
		oauth  string
	}{
		"GET":                     {[]string{"-H", bearer, "http://localhost/exchange?audience=inventory"}, 405, "invalid_request"},
		"no token":                {[]string{"-X", "POST", "http://localhost/exchange?audience=inventory"}, 401, "invalid_token"},
		"Basic":                   {[]string{"-X", "POST", "-u", "a:b", "http://localhost/exchange?audience=inventory"}, 401, "invalid_token"},
		"two tokens":              {[]string{"-X", "POST", "-H", bearer, "-H", "Authorization: Bearer x", "http://localhost/exchange?audience=inventory"}, 401, "invalid_token"},
		"an empty token":          {[]string{"-X", "POST", "-H", "Authorization: Bearer ", "http://localhost/exchange?audience=inventory"}, 401, "invalid_token"},
		"no audience":             {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange"}, 400, "invalid_request"},
		"two audiences":           {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange?audience=inventory&audience=reports"}, 400, "invalid_request"},
		"two scopes":              {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange?audience=inventory&scope=a&scope=b"}, 400, "invalid_request"},
		"an unknown parameter":    {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange?audience=inventory&identity=reports"}, 400, "invalid_request"},
		"a token in the query":    {[]string{"-X", "POST", "http://localhost/exchange?audience=inventory&access_token=" + machine.Value}, 400, "invalid_request"},
		"a body":                  {[]string{"-H", bearer, "-d", "audience=inventory", "http://localhost/exchange?audience=inventory"}, 400, "invalid_request"},
		"a bad query":             {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange?audience=%zz"}, 400, "invalid_request"},
		"another path":            {[]string{"-X", "POST", "-H", bearer, "http://localhost/token?audience=inventory"}, 404, "invalid_request"},
		"the path with a slash":   {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange/?audience=inventory"}, 404, "invalid_request"},
		"no edge":                 {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange?audience=reports"}, 400, "invalid_target"},
		"a scope that it has not": {[]string{"-X", "POST", "-H", bearer, "http://localhost/exchange?audience=inventory&scope=all"}, 400, "invalid_"},
		"a token of another hop":  {[]string{"-X", "POST", "-H", "Authorization: Bearer " + relay, "http://localhost/exchange?audience=inventory"}, 400, "invalid_request"},
		"a JWT-SVID":              {[]string{"-X", "POST", "-H", "Authorization: Bearer " + svid, "http://localhost/exchange?audience=inventory"}, 400, "invalid_request"},
		"garbage":                 {[]string{"-X", "POST", "-H", "Authorization: Bearer x", "http://localhost/exchange?audience=inventory"}, 400, "invalid_request"},
	} {
		code, body := k.curl(socket, c.args...)
		var got wire.OAuthError
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != c.status || !strings.HasPrefix(got.Error, c.oauth) {
			t.Errorf("%s: %d %s, want %d %s", name, code, body, c.status, c.oauth)
		}
		if strings.Contains(body, machine.Value) || strings.Contains(body, "access_token\":") {
			t.Errorf("%s: the answer holds a token", name)
		}
	}
	code, headers := k.curl(socket, "-D", "-", "-o", "/dev/null", "-X", "POST", "-H", bearer, "http://localhost/exchange?audience=inventory")
	if code != 200 || !strings.Contains(headers, "Cache-Control: no-store") {
		t.Errorf("%d %s", code, headers)
	}
	k.noSecrets(machine.Value, relay, svid)
}

func (k *kit) jwtSVID(src *mtls.Source) string {
	k.Helper()
	c, err := src.Client()
	k.must(err)
	got, err := c.JWTSVID(k.Context(), []string{"orders"})
	k.must(err)
	return got.SVID
}

// Who no rule names gets nothing, also where his credential is good.
func TestExchangeDenied(t *testing.T) {
	k := newKit(t)
	src := map[string]*mtls.Source{"reports": k.source("reports"), "orders": k.source("orders")}
	machine, err := mtls.NewTokens(src["reports"]).Machine(t.Context(), "orders")
	k.must(err)
	socket, _ := k.serve([]Rule{{UID: uid(2001), Identity: "orders"}}, nil, src)
	code, body := k.curl(socket, "-X", "POST", "-H", "Authorization: Bearer "+machine.Value, "http://localhost/exchange?audience=inventory")
	if code != http.StatusForbidden || !strings.Contains(body, "access_denied") {
		t.Errorf("%d %s", code, body)
	}
	k.noSecrets(machine.Value)
}
