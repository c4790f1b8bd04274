package client

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
)

// JoinString is what `join-token create` printed: https://host:port#<token>.<SHA-256 of the root>.
type JoinString struct {
	URL         string // https://host:port
	Host        string // without the port: what the daemon's certificate must be for
	Token       string // secret
	Fingerprint [sha256.Size]byte
}

// MaxJoinString is the longest join string, in bytes.
const MaxJoinString = 1024

// ParseJoin reads a join string. Its errors never repeat the token.
func ParseJoin(s string) (JoinString, error) {
	bad := func(why string) (JoinString, error) {
		return JoinString{}, errors.New("a join string is https://HOST:PORT#<token>.<fingerprint>; " + why)
	}
	if len(s) > MaxJoinString {
		return bad("this one is too long")
	}
	address, fragment, ok := strings.Cut(s, "#")
	if !ok {
		return bad("this one has no # (a shell cuts it off unless it stands in quotes)")
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return bad("the part before # must be https://HOST:PORT alone")
	}
	token, fingerprint, ok := strings.Cut(fragment, ".")
	if !ok || token == "" {
		return bad("the part after # must be <token>.<fingerprint>")
	}
	sum, err := hex.DecodeString(fingerprint)
	if err != nil || len(sum) != sha256.Size || strings.ToLower(fingerprint) != fingerprint {
		return bad("the fingerprint must be 64 lower-case hex digits; is the end of the string missing?")
	}
	for _, c := range token {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return bad("the token may hold only a-z and 0-9")
		}
	}
	return JoinString{URL: "https://" + u.Host, Host: u.Hostname(), Token: token, Fingerprint: [sha256.Size]byte(sum)}, nil
}
