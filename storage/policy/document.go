package policy

import (
	"fmt"
	"time"

	countersign "github.com/countersign/countersign"
)

// document is what the decoder read. Parts that could not be read are marked, so that the checks between the parts
// tell no fault that is only the consequence of another.
type document struct {
	trustDomain string
	issuers     []*issuer
	services    []*service
	calls       []*call
	maxHops     int
	whole       bool // issuers, services and calls are lists: the parts can be judged against each other
}

type issuer struct {
	at      *place
	name    told[string]
	url     told[string]
	subject told[string]
	scopes  told[[]told[string]]
	use     countersign.IssuerUse
	other   bool // its use could not be read, or is one that this version does not know
	out     countersign.Issuer
}

type service struct {
	at      *place
	name    told[string]
	dns     []told[string]
	accepts []accept
	enrol   []enrol
	keys    []clientKey
	out     countersign.Service
}

type accept struct {
	at        *place
	issuer    told[string]
	audiences []string
}

type call struct {
	at       *place
	from, to told[string]
	scopes   []*scope
	whole    bool // every scope could be read
	machine  []told[string]
	asked    *place // of `default: true`
	out      countersign.Call
}

type scope struct {
	at      *place
	name    told[string]
	needs   []string
	anyUser *place
	whole   bool // its name and every need could be read
}

const serviceDisableHint = "disabling is no part of the document: use `countersign service disable NAME`"

func (d *decoder) document(root *place) *document {
	doc := &document{}
	fields := d.fields(root, shape{
		what:  "the policy",
		known: []string{"trust_domain", "max_hops", "issuers", "services", "calls"},
	})
	if fields != nil {
		d.trustDomain(root, fields["trust_domain"], doc)
	}
	doc.maxHops = countersign.DefaultMaxHops
	if at := fields["max_hops"]; at != nil {
		doc.maxHops = d.number(at, 1, mostHops)
	}
	doc.whole = fields != nil
	each := func(key string, limit int, read func(*place)) {
		if at := fields[key]; at != nil {
			list, ok := d.items(at, limit)
			doc.whole = doc.whole && ok
			for _, item := range list {
				read(item)
			}
		}
	}
	each("issuers", MaxIssuers, func(at *place) { doc.issuers = append(doc.issuers, d.issuer(at)) })
	each("services", MaxServices, func(at *place) { doc.services = append(doc.services, d.service(at)) })
	each("calls", MaxCalls, func(at *place) { doc.calls = append(doc.calls, d.call(at)) })
	return doc
}

func (d *decoder) trustDomain(root, at *place, doc *document) {
	ours := fmt.Sprintf("write `trust_domain: %s`", d.env.TrustDomain)
	if at == nil {
		d.fault(root, ours, "`trust_domain` is missing")
		return
	}
	text := d.text(at)
	doc.trustDomain = text.v
	if text.ok && text.v != d.env.TrustDomain {
		d.fault(at, ours, "the trust domain of this daemon is %s, not %s: this policy was written for another one", d.env.TrustDomain, quoted(text.v))
	}
}

func (d *decoder) service(at *place) *service {
	s := &service{at: at, name: told[string]{at: at}}
	fields := d.fields(at, shape{
		what:  "a service",
		known: []string{"name", "dns", "accepts", "enrol", "client_keys", "certificate", "token"},
		later: map[string]string{
			"x5c":      "remove it: services enrol with join tokens (`countersign join-token create NAME`)",
			"wildcard": "remove it: no DNS name of a service may be a wildcard",
			"disabled": serviceDisableHint,
		},
	})
	if fields == nil {
		return s
	}
	s.name = d.name(at, fields["name"], "service")
	if at := fields["dns"]; at != nil {
		s.dns = d.texts(at, maxList, d.dnsName).v
	}
	if at := fields["accepts"]; at != nil {
		list, ok := d.items(at, MaxIssuers)
		if ok && len(list) == 0 {
			d.fault(at, "name an issuer, or leave `accepts` out: then it is no entry point", "`accepts` is empty")
		}
		for _, item := range list {
			s.accepts = append(s.accepts, d.accept(item))
		}
		if len(list) == 0 { // it was meant to be an entry point
			s.accepts = append(s.accepts, accept{at: at, issuer: told[string]{at: at}})
		}
	}
	d.clientProofs(fields, s)
	s.out.KeyTypes, s.out.Alg, s.out.Typ, s.out.Bind = keyTypes(), "ES256", "at+jwt", countersign.BindNone
	if at := fields["certificate"]; at != nil {
		d.certificate(at, s)
	}
	if at := fields["token"]; at != nil {
		d.token(at, s)
	}
	return s
}

// name reads a name that must be there.
func (d *decoder) name(of, at *place, what string) told[string] {
	if at == nil {
		d.fault(of, "add `name: …`", "the name of the %s is missing", what)
		return told[string]{at: of}
	}
	name := d.text(at)
	if !name.ok {
		return name
	}
	err := countersign.CheckName(name.v)
	switch {
	case err != nil:
		d.fault(at, "1 to 63 of a-z, 0-9 and inner hyphens", "%s", err)
		name.ok = false
	case name.v == "countersign" || name.v == "operator":
		d.fault(at, "choose another name", "the name %q is reserved for IDs of the authority itself", name.v)
		name.ok = false
	}
	return name
}

func keyTypes() []string {
	return []string{"P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072", "RSA-4096"}
}

func (d *decoder) certificate(at *place, s *service) {
	fields := d.fields(at, shape{what: "`certificate`", known: []string{"ttl", "keys"}})
	if at := fields["ttl"]; at != nil {
		s.out.TTL = countersign.Duration(d.duration(at, time.Minute, 90*24*time.Hour))
	}
	if at := fields["keys"]; at != nil {
		keys := d.texts(at, len(keyTypes()), isOneOf("a key type", keyTypes()))
		if keys.ok && len(keys.v) == 0 {
			d.fault(at, "leave `keys` out to allow every type", "`keys` is empty: no certificate could be issued")
		}
		s.out.KeyTypes = values(keys.v)
	}
}

func (d *decoder) token(at *place, s *service) {
	fields := d.fields(at, shape{
		what:  "`token`",
		known: []string{"alg", "typ", "bind"},
	})
	if at := fields["alg"]; at != nil {
		s.out.Alg = d.oneOf(at, "ES256", "RS256").v
	}
	if at := fields["typ"]; at != nil {
		s.out.Typ = d.oneOf(at, "at+jwt", "JWT").v
	}
	if at := fields["bind"]; at != nil {
		s.out.Bind = d.oneOf(at, countersign.BindNone, countersign.BindMTLS).v
	}
}

func (d *decoder) accept(at *place) accept {
	a := accept{at: at, issuer: told[string]{at: at}}
	fields := d.fields(at, shape{what: "an item of `accepts`", known: []string{"issuer", "audiences"}})
	if fields == nil {
		return a
	}
	if ref := fields["issuer"]; ref != nil {
		a.issuer = d.text(ref)
	} else {
		d.fault(at, "add `issuer: NAME`, a name of `issuers`", "the issuer is missing")
	}
	list := fields["audiences"]
	if list == nil {
		d.fault(at, "add `audiences: […]`: what stands in `aud` of tokens that are meant for this service", "the audiences are missing: without them tokens meant for others would be taken")
		return a
	}
	audiences := d.texts(list, maxList, checkAudience)
	if audiences.ok && len(audiences.v) == 0 {
		d.fault(list, "name at least one audience", "`audiences` is empty: no token could be taken")
	}
	a.audiences = values(audiences.v)
	return a
}

func checkAudience(s string) (string, error) {
	switch {
	case s == "":
		return "write what stands in `aud` of tokens that are meant for this service", fmt.Errorf("an audience is empty")
	case len(s) > maxAudience:
		return "ask the issuer for a shorter one", fmt.Errorf("the audience %s has %d bytes; at most %d are allowed", quoted(s), len(s), maxAudience)
	case !plain(s):
		return "write it as it stands in `aud`, in plain text", fmt.Errorf("the audience %s holds characters that do not print", quoted(s))
	}
	return "", nil
}

// values are the texts that could be read.
func values(list []told[string]) []string {
	out := make([]string, 0, len(list))
	for _, text := range list {
		if text.ok {
			out = append(out, text.v)
		}
	}
	return out
}
