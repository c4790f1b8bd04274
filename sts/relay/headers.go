package relay

import (
	"net"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
	"github.com/countersign/countersign/sts/verify"
)

// The headers by which the relay tells the application who asks. A header that says nothing is absent. Bytes of a value that are
// no visible ASCII, and %, are percent-encoded (RFC 3986 2.1).
const (
	UserHeader          = "X-Countersign-User"           // the user, unique under SubjectIssuerHeader; absent: no user stands behind the request
	SubjectIssuerHeader = "X-Countersign-Subject-Issuer" // the issuer at which the user logged in
	ClientHeader        = "X-Countersign-Client"         // the ID of the service that asks; from outside: the user's client application
	ChainHeader         = "X-Countersign-Chain"          // the IDs of the services that the request passed, the last one first, with commas: for audit, never a reason to allow anything
	ScopesHeader        = "X-Countersign-Scopes"         // with single spaces
	TransactionHeader   = "X-Countersign-Txn"            // constant along the chain; absent at the public listener, where it begins with the first exchange
	HandleHeader        = "X-Countersign-Handle"         // stands for the request's token at the outbound listeners
	IDHeader            = "X-Countersign-Request-Id"     // of this request, in the relay's log too
	SecretHeader        = "X-Countersign-Secret"         // proves the relay to an application on a loopback port
	ErrorHeader         = observe.CodeHeader             // on answers that the relay gave itself, to callers and to the application: the code
)

const ours = "x-countersign-"

// foreignHeaders are believed by frameworks and say who asked, from where and by which certificate. They would be a stranger's
// word; the relay sets those of them anew that it can vouch for. (Those that say what is really asked are refused by package filter.)
func foreignHeaders() []string {
	return []string{
		"Forwarded", "X-Forwarded-", "X-Real-", "X-Client-Cert", "X-Client-Ip", "X-Client-Dn", "X-Client-Verify", "Client-Cert", "X-Ssl-", "Ssl-",
		"X-Cluster-Client-", "True-Client-", "Cf-Connecting-", "X-Original-For", "X-Original-Host", "X-Original-Proto", "X-Remote-", "Remote-",
		"X-Authenticated-", "X-Envoy-", "Proxy-Authorization", "Proxy-Authenticate",
	}
}

// clean takes out of a request's header what only the relay may say, what only a proxy in front would say, and every name that
// is not of letters, digits and dashes: many servers hand X_Countersign_User and X.Countersign.User to an application as the
// same variable as the real one (RFC 3875 4.1.18).
func clean(h http.Header, foreign []string) {
	for name := range h {
		if !plainName(name) || hasPrefixFold(name, ours) {
			delete(h, name)
			continue
		}
		for _, prefix := range foreign {
			if hasPrefixFold(name, prefix) {
				delete(h, name)
				break
			}
		}
	}
}

func plainName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return name != ""
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// cleanAnswer takes out of an upstream's answer what the relay alone says. Trailers come after it; see cleanTrailer.
func cleanAnswer(h http.Header) {
	for name := range h {
		if hasPrefixFold(name, ours) {
			delete(h, name)
		}
	}
	h.Del(observe.RequestID) // the relay's own stands there
	trailers := h["Trailer"]
	delete(h, "Trailer")
	for _, line := range trailers {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" && !hasPrefixFold(name, ours) {
				h.Add("Trailer", name)
			}
		}
	}
}

// identity is who asks, as the application gets to know it.
type identity struct {
	claims *verify.Claims // nil: a route without a token
	client countersign.ID // that the connection proved; zero: at the public listener
	handle string
}

// write says it. h has been cleaned.
func (i identity) write(h http.Header) {
	set := func(name, value string) {
		if value != "" {
			h.Set(name, encode(value))
		}
	}
	set(ClientHeader, i.client.String())
	set(HandleHeader, i.handle)
	c := i.claims
	if c == nil {
		return
	}
	if i.client == (countersign.ID{}) {
		set(ClientHeader, c.ClientID)
	}
	user, issuer := userOf(c)
	set(UserHeader, user)
	set(SubjectIssuerHeader, issuer)
	set(TransactionHeader, c.Transaction)
	if chain := c.Chain(); len(chain) > 0 {
		h.Set(ChainHeader, encode(strings.Join(chain, ",")))
	}
	if len(c.Scopes) > 0 {
		h.Set(ScopesHeader, strings.Join(c.Scopes, " ")) // scope-tokens are visible ASCII
	}
}

// userOf is the user behind a token and where he logged in: an external token has no sub_iss, its issuer is that.
func userOf(c *verify.Claims) (user, issuer string) {
	user, issuer = c.User(), c.SubjectIssuer
	if user != "" && issuer == "" {
		issuer = c.Issuer
	}
	if user == "" {
		issuer = ""
	}
	return user, issuer
}

// encode keeps a value one that every server reads alike.
func encode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '%' {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// forwardedFor sets the headers of proxies anew, by what this connection shows.
func forwardedFor(in *http.Request, h http.Header) {
	if host, _, err := net.SplitHostPort(in.RemoteAddr); err == nil {
		h.Set("X-Forwarded-For", host)
	}
	h.Set("X-Forwarded-Host", in.Host)
	h.Set("X-Forwarded-Proto", "https")
}
