package ca

import (
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Certificate revocation lists (RFC 5280 5). Each issuer has one of everything it revoked, and, if certificates point
// somewhere, shards: a certificate's serial is random, its first two digits are its shard, and the certificate names that one
// in its distribution point. So a shard holds a 256th part, 40 KB of 200,000 revocations, and reaches 1 MiB at five million;
// and all shards of an issuer are signed in less time than one of its certificates takes a client to fetch.

const (
	crlTTL      = day     // from thisUpdate to nextUpdate
	crlEvery    = day / 4 // how often a list is signed without cause: a daemon that is back within 18 h is missed by nobody
	rootCRLTTL  = 366 * day
	rootCRLSign = 7 * day
)

// CRL is a signed list. It is read only.
type CRL struct {
	DER        []byte
	Number     int64 // grows with each list of the same name, also across restarts and restored stores: microseconds since 1970
	ThisUpdate time.Time
	NextUpdate time.Time
}

// lists are those that are served. The zero value is ready.
type lists struct {
	mu   sync.RWMutex
	made map[listName]*CRL
}

// listName is the issuer's subject key identifier in lower-case hex, and the shard; "" is the list of everything.
type listName struct{ issuer, shard string }

func (l *lists) get(n listName) *CRL {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.made[n]
}

func (l *lists) put(n listName, c *CRL) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made == nil {
		l.made = map[listName]*CRL{}
	}
	l.made[n] = c
}

func (l *lists) drop(issuer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.made {
		if n.issuer == issuer {
			delete(l.made, n)
		}
	}
}

// CRL is the present list of an issuer, by its subject key identifier in lower-case hex, for a shard ("00" to "ff") or ""
// for everything. ok is false if there is no such list, as of a root that is offline; it is nil while it has not been made yet: [Authority.PublishCRLs]
// makes it. The answer comes from memory.
func (a *Authority) CRL(issuer, shard string) (list *CRL, ok bool) {
	for _, role := range []Profile{ProfileIntermediate, ProfileRoot} {
		for _, i := range a.issuers.Load().published(role) {
			if hex.EncodeToString(i.cert.SubjectKeyId) != issuer {
				continue
			}
			for _, has := range a.shards(i) {
				if has == shard {
					list = a.lists.get(listName{issuer, shard})
					return list, list != nil || a.online(i)
				}
			}
			return nil, false
		}
	}
	return nil, false
}

// shards are the names of the lists of an issuer, that of everything last. Roots have few entries, and nothing points to theirs.
func (a *Authority) shards(i issuer) []string {
	var names []string
	if i.Role == ProfileIntermediate && a.cfg.PKI != "" {
		for n := range 256 {
			names = append(names, fmt.Sprintf("%02x", n))
		}
	}
	return append(names, "")
}

// shardOf is the shard of a serial: its first two hex digits.
func shardOf(serial *big.Int) string { return serialText(serial)[:2] }

// crlURL is where a shard is served.
func crlURL(base, issuer, shard string) string { return base + "/crl/" + issuer + "/" + shard + ".crl" }

// reasonCode is the number of one of [Reasons] (RFC 5280 5.3.1).
func reasonCode(reason string) int {
	switch reason {
	case reasonKeyCompromise:
		return 1
	case "affiliationChanged":
		return 3
	case reasonSuperseded:
		return 4
	case "cessationOfOperation":
		return 5
	case "privilegeWithdrawn":
		return 9
	}
	return 0
}

// CheckPKI tells why s can't stand in certificates as the address of lists and issuers: http (RFC 5280 8), a host, no
// query, no slash at the end, spelt as URLs are spelt, and short enough for a certificate.
func CheckPKI(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" || u.Host == "":
		return fmt.Errorf("%q must be an http:// URL with a host: who follows it has no trust yet (RFC 5280 8)", s)
	case u.User != nil || strings.ContainsAny(s, "?#%"):
		return fmt.Errorf("%q must have no query, fragment, user or escape", s)
	case strings.HasSuffix(s, "/"):
		return fmt.Errorf("%q must not end with a slash", s)
	case u.String() != s || strings.ToLower(u.Host) != u.Host:
		return fmt.Errorf("%q must be spelt as %q", s, strings.ToLower(u.String()))
	case len(s) > 200:
		return fmt.Errorf("%q is longer than 200 bytes", s[:40]+"...")
	}
	for _, r := range s {
		if r < 0x21 || r > 0x7e {
			return fmt.Errorf("%q must be plain ASCII", s)
		}
	}
	return nil
}
