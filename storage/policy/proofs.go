package policy

import (
	"fmt"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// enrol is an item of `enrol`.
type enrol struct {
	at              *place
	issuer, subject told[string]
}

// clientKey is a key of `client_keys`, by its thumbprint.
type clientKey struct {
	at              *place
	kid, thumbprint string
}

// clientProofs reads how a service proves itself besides its certificate.
func (d *decoder) clientProofs(fields map[string]*place, s *service) {
	if at := fields["enrol"]; at != nil {
		list, ok := d.items(at, maxEnrol)
		if ok && len(list) == 0 {
			d.fault(at, "leave `enrol` out: join tokens are always possible", "`enrol` is empty")
		}
		for _, item := range list {
			s.enrol = append(s.enrol, d.enrol(item))
		}
	}
	if at := fields["client_keys"]; at != nil {
		d.clientKeys(at, s)
	}
}

func (d *decoder) enrol(at *place) enrol {
	e := enrol{at: at, issuer: told[string]{at: at}, subject: told[string]{at: at}}
	faults := len(d.faults.list)
	fields := d.fields(at, shape{
		what:  "an item of `enrol`",
		known: []string{"issuer", "subject"},
		later: map[string]string{"acme": "remove it: services enrol with join tokens (`countersign join-token create NAME`) or tokens of a workloads issuer"},
	})
	if fields == nil || fields["acme"] != nil && len(d.faults.list) > faults && len(fields) == 1 {
		return e // that the others are missing is no fault of its own
	}
	if ref := fields["issuer"]; ref != nil {
		e.issuer = d.text(ref)
	} else {
		d.fault(at, "add `issuer: NAME`, an issuer with `use: workloads`", "the issuer is missing")
	}
	if sub := fields["subject"]; sub != nil {
		if e.subject = d.text(sub); e.subject.ok {
			if hint, err := checkSubject(e.subject.v); err != nil {
				d.fault(sub, hint, "%s", err)
				e.subject.ok = false
			}
		}
	} else {
		d.fault(at, "add `subject: …`, exactly as in `sub` of the workload's tokens", "the subject is missing: without it every workload of the issuer would be this service")
	}
	return e
}

func checkSubject(s string) (string, error) {
	switch {
	case s == "":
		return "write what stands in `sub` of the workload's tokens", fmt.Errorf("the subject is empty")
	case len(s) > maxSubject:
		return "ask the issuer for a shorter one", fmt.Errorf("the subject %s has %d bytes; at most %d are allowed", quoted(s), len(s), maxSubject)
	case !plain(s):
		return "write it as it stands in `sub`, in plain text", fmt.Errorf("the subject %s holds characters that do not print", quoted(s))
	}
	return "", nil
}

func (d *decoder) clientKeys(at *place, s *service) {
	fields := d.fields(at, shape{what: "`client_keys`", known: []string{"jwks_file"}})
	if fields == nil {
		return
	}
	file := fields["jwks_file"]
	if file == nil {
		if len(fields) > 0 {
			return // its keys are faults of their own
		}
		d.fault(at, "add `jwks_file: FILE`, a JWK Set of public keys", "`client_keys` names no keys")
		return
	}
	text := d.text(file)
	if !text.ok {
		return
	}
	set, hint, err := parseClientKeys(text.v)
	if err != nil {
		d.fault(file, hint, "%s", err)
		return
	}
	s.out.ClientKeys = string(set.JSON())
	for _, key := range set.Keys() {
		s.keys = append(s.keys, clientKey{at: file, kid: key.KID, thumbprint: key.Thumbprint()})
	}
}

// parseKeys reads a JWK Set by the rules for what issuers publish (standards.md): public keys only. What is kept is the
// set as [jwt.Set.JSON] writes it, so that nothing that was not looked at is stored.
func parseKeys(s string) (set *jwt.Set, hint string, err error) {
	if !isJSON(s) {
		return nil, "`countersign policy apply` puts the file's contents in its place",
			fmt.Errorf("`jwks_file` must hold a JWK Set (JSON): the daemon opens no path that a policy names")
	}
	set, err = jwt.ParseSet([]byte(s))
	switch {
	case err != nil:
		return nil, `write {"keys": […]} with public keys only (RFC 7517 5)`, fmt.Errorf("`jwks_file` can't be taken: %w", err)
	case set.Len() == 0:
		return nil, "keys are RSA, EC on P-256, P-384 or P-521, or Ed25519, with no `use` but sig", fmt.Errorf("`jwks_file` holds no key that can verify tokens")
	}
	for _, key := range set.Keys() {
		if key.KID == "" && set.Len()+set.Skipped() > 1 {
			return nil, "give each key a `kid`", fmt.Errorf("`jwks_file` has several keys, and one of them has no kid")
		}
	}
	return set, "", nil
}

// parseClientKeys is stricter: the author of the set is the author of the policy or his neighbour, so nothing in it is
// passed over, and each key says what it is for (RFC 8725 3.1).
func parseClientKeys(s string) (set *jwt.Set, hint string, err error) {
	set, hint, err = parseKeys(s)
	if err != nil {
		return nil, hint, err
	}
	if n := set.Skipped(); n > 0 {
		return nil, "remove it: each must be RSA, EC on P-256, P-384 or P-521, or Ed25519, with no `use` but sig", fmt.Errorf("`jwks_file` holds a key that can't verify assertions")
	}
	seen := make(map[string]bool)
	for _, key := range set.Keys() {
		switch {
		case key.KID == "":
			return nil, "give each key a `kid`", fmt.Errorf("a key of `jwks_file` has no kid")
		case key.Alg == "":
			return nil, "give each key its `alg`, as ES256", fmt.Errorf("the key %s of `jwks_file` has no alg", quoted(key.KID))
		case seen[key.Thumbprint()]:
			return nil, "keep one of them", fmt.Errorf("the key %s stands twice in `jwks_file`", quoted(key.KID))
		}
		seen[key.Thumbprint()] = true
	}
	return set, "", nil
}

// isJSON tells a set that stands in the document from the path of one.
func isJSON(s string) bool {
	for i := range len(s) {
		switch s[i] {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return s[i] == '{'
	}
	return false
}

// checkProofs: what proves a service proves no other one, or each could act as the other.
func (d *decoder) checkProofs(services []*service, issuers map[string]*issuer) {
	type workload struct{ issuer, subject string }
	subjects := make(map[workload]*enrol)
	keys := make(map[string]clientKey)
	for _, s := range services {
		for i := range s.enrol {
			e := &s.enrol[i]
			d.checkEnrolIssuer(e, issuers)
			if !e.issuer.ok || !e.subject.ok {
				continue
			}
			who := workload{e.issuer.v, e.subject.v}
			if first, twice := subjects[who]; twice {
				d.fault(e.subject.at, "a workload is one service: give each an account of its own",
					"the subject %s of the issuer %q proves a service already; first in line %d", quoted(who.subject), who.issuer, first.subject.at.node.Line)
				continue
			}
			subjects[who] = e
		}
		for _, k := range s.keys {
			if first, twice := keys[k.thumbprint]; twice {
				d.fault(k.at, "give each service a key of its own", "the key %s proves another service already; first in line %d", quoted(k.kid), first.at.node.Line)
				continue
			}
			keys[k.thumbprint] = k
		}
	}
}

func (d *decoder) checkEnrolIssuer(e *enrol, issuers map[string]*issuer) {
	if !e.issuer.ok {
		return
	}
	switch i, ok := issuers[e.issuer.v]; {
	case !ok:
		dangling(d, e.issuer.at, "issuer", e.issuer.v, issuers)
	case !i.other && i.use != countersign.UseWorkloads:
		d.fault(e.issuer.at, "name an issuer with `use: workloads`; tokens of users are taken by `accepts`",
			"the issuer %q is for %s: its tokens prove no service", e.issuer.v, i.use)
	}
}
