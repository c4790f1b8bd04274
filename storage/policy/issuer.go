package policy

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	countersign "github.com/countersign/countersign"
)

func algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

func (d *decoder) issuer(at *place) *issuer {
	i := &issuer{at: at, name: told[string]{at: at}, url: told[string]{at: at}, subject: told[string]{at: at}}
	fields := d.fields(at, shape{
		what:  "an issuer",
		known: []string{"name", "use", "issuer", "algorithms", "jwks_uri", "jwks_file", "ca_file", "tokens", "scopes", "scope_claim", "subject", "carry"},
		later: map[string]string{
			"x5c": "name the keys by `jwks_uri` or `jwks_file`, or leave both out: then they are found by discovery",
		},
	})
	if fields == nil {
		i.other = true
		return i
	}
	i.name = d.name(at, fields["name"], "issuer")
	if i.name.ok && i.name.v == "spiffe" {
		// Under `subject: prefix` its tokens would have subs that begin with "spiffe:", as the IDs of services do.
		d.fault(i.name.at, "choose another name", "an issuer can't be called spiffe: `spiffe:` begins the IDs of services")
	}
	d.use(at, fields["use"], i)
	d.origin(at, fields, i)
	d.keys(fields, i)
	i.scopes = told[[]told[string]]{at: at, ok: true}
	if i.use == countersign.UseWorkloads {
		d.onlyOfUsers(fields)
		return i
	}
	d.tokens(fields, i)
	i.out.Subject = countersign.SubjectKeep
	if at := fields["subject"]; at != nil {
		i.subject = d.oneOf(at, string(countersign.SubjectKeep), string(countersign.SubjectPrefix))
		i.out.Subject = countersign.SubjectMode(i.subject.v)
	}
	if at := fields["carry"]; at != nil {
		i.out.Carry = values(d.texts(at, maxList, checkCarry).v)
	}
	return i
}

func (d *decoder) use(of, at *place, i *issuer) {
	i.other = true
	if at == nil {
		d.fault(of, "add `use: users` or `use: workloads`", "`use` is missing: it says whose tokens the issuer's are")
		return
	}
	use := d.text(at)
	switch {
	case !use.ok:
	case use.v == string(countersign.UseUsers) || use.v == string(countersign.UseWorkloads):
		i.use, i.other = countersign.IssuerUse(use.v), false
	case use.v == "operators":
		d.fault(at, "remove the issuer: only `use: users` and `use: workloads` are known", "`use: %s` is not supported by this version of Countersign", use.v)
	default:
		hint, err := isOneOf("`use`", []string{"users", "workloads"})(use.v)
		d.fault(at, hint, "%s", err)
	}
}

// onlyOfUsers refuses what says how users' tokens become relay tokens: a workload's token proves its sender and nothing
// of it is ever passed on.
func (d *decoder) onlyOfUsers(fields map[string]*place) {
	for _, key := range []string{"tokens", "scopes", "scope_claim", "subject", "carry"} {
		if at := fields[key]; at != nil {
			d.fault(at, "remove it, or write `use: users`", "`%s` has no meaning for an issuer of workloads: its tokens are no subject tokens", key)
		}
	}
}

// origin reads where the issuer is and how its keys are found.
func (d *decoder) origin(of *place, fields map[string]*place, i *issuer) {
	if at := fields["issuer"]; at == nil {
		d.fault(of, "add `issuer: https://…`, exactly as in the `iss` of its tokens", "the issuer's URL is missing")
	} else if i.url = d.text(at); i.url.ok {
		i.url.ok = d.url(at, i.url.v)
	}
	if at := fields["jwks_uri"]; at != nil {
		uri := d.text(at)
		if uri.ok && d.url(at, uri.v) {
			i.out.JWKSURI = uri.v
		}
	}
	i.out.Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	if at := fields["algorithms"]; at != nil {
		algs := d.texts(at, len(algorithms()), checkAlgorithm)
		if algs.ok && len(algs.v) == 0 {
			d.fault(at, "leave `algorithms` out for the defaults", "`algorithms` is empty: no token could be verified")
		}
		i.out.Algorithms = values(algs.v)
	}
}

// keys reads the issuer's keys, or what vouches for the place where they are.
func (d *decoder) keys(fields map[string]*place, i *issuer) {
	if at := fields["ca_file"]; at != nil {
		if text := d.text(at); text.ok {
			roots, hint, err := parseRoots(text.v)
			if err != nil {
				d.fault(at, hint, "%s", err)
			}
			i.out.CAPEM = roots
		}
	}
	at := fields["jwks_file"]
	if at == nil {
		return
	}
	for _, key := range []string{"jwks_uri", "ca_file"} {
		if other := fields[key]; other != nil {
			d.fault(other, "keep one of them", "`%s` stands beside `jwks_file`, and with that no keys are fetched", key)
		}
	}
	if text := d.text(at); text.ok {
		set, hint, err := parseKeys(text.v)
		if err != nil {
			d.fault(at, hint, "%s", err)
			return
		}
		i.out.JWKS = string(set.JSON())
	}
}

// tokens reads what the issuer's tokens may say.
func (d *decoder) tokens(fields map[string]*place, i *issuer) {
	i.out.Tokens = []string{"access"}
	if at := fields["tokens"]; at != nil {
		kinds := d.texts(at, 2, checkTokenKind)
		if kinds.ok && len(kinds.v) == 0 {
			d.fault(at, "leave `tokens` out: then it is [access]", "`tokens` is empty: no token could be taken")
		}
		i.out.Tokens = values(kinds.v)
	}
	if at := fields["scopes"]; at != nil {
		i.scopes = d.texts(at, maxList, checkScope)
	}
	i.out.ScopeClaim = "scope"
	if at := fields["scope_claim"]; at != nil {
		i.out.ScopeClaim = d.oneOf(at, "scope", "scp").v
	}
}

func checkTokenKind(s string) (string, error) {
	return isOneOf("a kind of token", []string{"access", "id"})(s)
}

func checkAlgorithm(s string) (string, error) {
	switch {
	case strings.EqualFold(s, "none"):
		return "use one of " + strings.Join(algorithms(), ", "), fmt.Errorf("the algorithm none is never allowed: such tokens are not signed")
	case len(s) > 1 && strings.EqualFold(s[:2], "HS"):
		return "use one of " + strings.Join(algorithms(), ", "), fmt.Errorf("the algorithm %s is never allowed: whoever can verify such a token can make one", quoted(s))
	}
	return isOneOf("an algorithm", algorithms())(s)
}

func checkCarry(s string) (string, error) {
	switch {
	case s == "":
		return "name a claim, or remove the item", fmt.Errorf("a claim's name is empty")
	case len(s) > maxClaim:
		return "let the issuer assert it under a shorter name", fmt.Errorf("the claim %s has %d bytes; at most %d are allowed", quoted(s), len(s), maxClaim)
	case !plain(s):
		return "let the issuer assert it under a name in plain text", fmt.Errorf("the claim %s holds characters that do not print", quoted(s))
	case countersign.ReservedClaim(s):
		return "let the issuer assert it under another name", fmt.Errorf("the claim %s can't be carried: it has a meaning of its own in every token", quoted(s))
	}
	return "", nil
}

// plain text has no control characters and no marks that do not print.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}

// url holds s to what an issuer identifier (RFC 8414 2) may be; tokens are compared with it byte by byte.
func (d *decoder) url(at *place, s string) bool {
	u, err := url.Parse(s)
	what, hint := "", ""
	switch {
	case len(s) > maxURL:
		what, hint = fmt.Sprintf("has %d bytes; at most %d are allowed", len(s), maxURL), "an issuer needs a shorter URL"
	case err != nil || !plain(s) || strings.ContainsAny(s, " \\") || u.Host == "" || u.Opaque != "" || u.Hostname() == "":
		what, hint = "is no absolute URL", "write it as https://host/path"
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		what, hint = "is not https", "http is for issuers on loopback only"
	case u.User != nil:
		what, hint = "holds a user name", "remove it: the daemon sends no credentials"
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		what, hint = "has a query or a fragment", "write the URL without it"
	case d.ours(s):
		what, hint = "is this daemon itself", "its own tokens need no issuer here: every service takes those that are addressed to it"
	default:
		return true
	}
	d.fault(at, hint, "%s: %s %s", at.name(), quoted(s), what)
	return false
}

// ours also sees through another spelling of our own issuer, and through the place of our keys.
func (d *decoder) ours(s string) bool {
	s, own := strings.ToLower(s), strings.TrimRight(strings.ToLower(d.env.Issuer), "/")
	return own != "" && (strings.TrimRight(s, "/") == own || strings.HasPrefix(s, own+"/.well-known/"))
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

// parseRoots gives the certificates of s in one spelling of PEM. Nothing else may stand in it: a private key would
// otherwise be kept in every version of the policy.
func parseRoots(s string) (roots string, hint string, err error) {
	const how = "`countersign policy apply` puts the file's contents in its place"
	const onlyCerts = "leave in the file only the certificates of the CAs that this issuer's own one comes from"
	if !strings.Contains(s, "-----BEGIN ") {
		return "", how, errors.New("`ca_file` must hold certificates (PEM): the daemon opens no path that a policy names")
	}
	rest, count := []byte(s), 0
	var out strings.Builder
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return "", onlyCerts, fmt.Errorf("`ca_file` holds a %s; only certificates may stand there", cut(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", onlyCerts, fmt.Errorf("certificate %d of `ca_file` can't be read", count+1)
		}
		if count++; count > maxRoots {
			return "", onlyCerts, fmt.Errorf("`ca_file` holds more than %d certificates", maxRoots)
		}
		out.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	if count == 0 || strings.Contains(string(rest), "-----BEGIN ") {
		return "", how, errors.New("`ca_file` holds PEM that can't be read")
	}
	return out.String(), "", nil
}

// dnsName judges a name that certificates of a service will hold.
func (d *decoder) dnsName(s string) (string, error) {
	lower := strings.ToLower(strings.TrimSuffix(s, "."))
	_, addrErr := netip.ParseAddr(strings.Trim(s, "[]"))
	last := lower[strings.LastIndexByte(lower, '.')+1:]
	reserved := slices.ContainsFunc(d.env.ReservedDNS, func(own string) bool {
		return strings.TrimSuffix(strings.ToLower(own), ".") == lower
	})
	switch {
	case strings.Contains(s, "*"):
		return "name each host", fmt.Errorf("the DNS name %s is a wildcard, which is not supported by this version of Countersign", quoted(s))
	case addrErr == nil || last != "" && strings.Trim(last, "0123456789") == "":
		return "certificates of services name hosts, not addresses", fmt.Errorf("%s is an IP address, not a DNS name", quoted(s))
	case lower == "localhost":
		return "choose another name", errors.New("the DNS name localhost is reserved: every host is called so")
	case reserved:
		return "choose another name", fmt.Errorf("the DNS name %s is reserved: it is the daemon's own", quoted(s))
	case s != lower:
		return "write " + cut(lower), fmt.Errorf("the DNS name %s must be in lower case and without a final dot", quoted(s))
	case countersign.CheckTrustDomain(s) != nil:
		return "write it as orders.shop.internal", fmt.Errorf("%s is no DNS name: labels of a-z, 0-9 and inner hyphens, with single dots between them, at most 253 bytes", quoted(s))
	case !d.permits(s):
		return "use a name under " + cut(strings.Join(d.env.PermitDNS, ", ")),
			fmt.Errorf("the DNS name %s is outside the authority's name constraints (`ca.permit`): nobody would take a certificate with it", quoted(s))
	}
	return "", nil
}

// permits tells whether a name is one of the permitted suffixes or has labels before one.
func (d *decoder) permits(name string) bool {
	return len(d.env.PermitDNS) == 0 || slices.ContainsFunc(d.env.PermitDNS, func(suffix string) bool {
		return strings.HasSuffix("."+name, "."+suffix)
	})
}
