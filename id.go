package countersign

import (
	"fmt"
	"strings"
)

// IDKind tells what an [ID] names. It is decided by the ID's shape alone, so no policy can turn one kind into another.
type IDKind uint8

// The kinds of ID. The zero ID has kind NoID.
const (
	NoID        IDKind = iota
	ServiceID          // spiffe://<trust domain>/<name>
	OperatorID         // spiffe://<trust domain>/operator/<name>
	AuthorityID        // spiffe://<trust domain>/countersign
)

// String names the kind as error messages do.
func (k IDKind) String() string {
	switch k {
	case ServiceID:
		return "service"
	case OperatorID:
		return "operator"
	case AuthorityID:
		return "authority"
	}
	return "nobody"
}

const (
	idScheme     = "spiffe://"
	authorityRef = "countersign"
	operatorRef  = "operator"
	maxName      = 63  // one DNS label (RFC 1035 2.3.4), so that a name can be a host name too
	maxDomain    = 253 // a DNS name; SPIFFE-ID 2.1 allows 255
)

// ID is a SPIFFE ID of one of the three shapes that Countersign issues. Only the constructors make one, so a non-zero
// ID is always well formed; equality is ==.
type ID struct{ s string }

// NewServiceID is the ID of the service with the given name. The names "countersign" and "operator" are reserved.
func NewServiceID(trustDomain, name string) (ID, error) {
	if name == authorityRef || name == operatorRef {
		return ID{}, fmt.Errorf("the name %q is reserved", name)
	}
	return newID(trustDomain, name, name)
}

// NewOperatorID is the ID of the operator with the given name.
func NewOperatorID(trustDomain, name string) (ID, error) {
	return newID(trustDomain, operatorRef+"/"+name, name)
}

// NewAuthorityID is the ID of the daemon itself.
func NewAuthorityID(trustDomain string) (ID, error) {
	return newID(trustDomain, authorityRef, authorityRef)
}

func newID(trustDomain, path, name string) (ID, error) {
	if err := CheckTrustDomain(trustDomain); err != nil {
		return ID{}, err
	}
	if err := CheckName(name); err != nil {
		return ID{}, err
	}
	return ID{idScheme + trustDomain + "/" + path}, nil
}

// ParseID reads an ID in its one spelling: scheme and trust domain in lower case, no port, query, fragment,
// percent-encoding or empty segment (SPIFFE-ID 2). What it accepts, [ID.String] returns unchanged.
func ParseID(s string) (ID, error) {
	if len(s) > len(idScheme)+maxDomain+len("/operator/")+maxName {
		return ID{}, fmt.Errorf("an ID has at most %d bytes", len(idScheme)+maxDomain+len("/operator/")+maxName)
	}
	rest, ok := strings.CutPrefix(s, idScheme)
	if !ok {
		return ID{}, fmt.Errorf("%q is no ID: it does not begin with %s", s, idScheme)
	}
	domain, path, ok := strings.Cut(rest, "/")
	if !ok {
		return ID{}, fmt.Errorf("%q is no ID: it names a trust domain only", s)
	}
	if path == authorityRef {
		return NewAuthorityID(domain)
	}
	if name, ok := strings.CutPrefix(path, operatorRef+"/"); ok {
		return NewOperatorID(domain, name)
	}
	return NewServiceID(domain, path)
}

// String is the ID's only spelling, "" for the zero ID.
func (id ID) String() string { return id.s }

// IsZero tells whether id names nobody.
func (id ID) IsZero() bool { return id.s == "" }

// Kind tells what id names.
func (id ID) Kind() IDKind {
	_, path := id.split()
	switch {
	case id.s == "":
		return NoID
	case path == authorityRef:
		return AuthorityID
	case strings.HasPrefix(path, operatorRef+"/"):
		return OperatorID
	}
	return ServiceID
}

// TrustDomain is the part of id between the scheme and the first slash.
func (id ID) TrustDomain() string { d, _ := id.split(); return d }

// Name is the last part of id: the name of the service or operator.
func (id ID) Name() string {
	_, path := id.split()
	return path[strings.LastIndexByte(path, '/')+1:]
}

func (id ID) split() (domain, path string) {
	domain, path, _ = strings.Cut(strings.TrimPrefix(id.s, idScheme), "/")
	return domain, path
}

// MarshalText makes an ID a JSON string.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.s), nil }

// UnmarshalText reads what MarshalText wrote; the empty text is the zero ID.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// CheckName tells why s can't be the name of a service, operator or issuer: 1 to 63 of [a-z0-9-], not beginning or
// ending with a hyphen. No other characters: a name stands in IDs, paths, tokens and exported rules, and must never
// be able to widen one of them.
func CheckName(s string) error {
	if s == "" {
		return fmt.Errorf("a name is missing")
	}
	if len(s) > maxName {
		return fmt.Errorf("the name %.20q... has %d characters; at most %d are allowed", s, len(s), maxName)
	}
	if !label(s) {
		return fmt.Errorf("the name %q may hold only a-z, 0-9 and inner hyphens", s)
	}
	return nil
}

// CheckTrustDomain tells why s can't be a trust domain: a lower-case DNS name without a final dot, at most 253 bytes.
func CheckTrustDomain(s string) error {
	if s == "" {
		return fmt.Errorf("a trust domain is missing")
	}
	if len(s) > maxDomain {
		return fmt.Errorf("a trust domain has at most %d bytes, this one has %d", maxDomain, len(s))
	}
	for part := range strings.SplitSeq(s, ".") {
		if len(part) > maxName || !label(part) {
			return fmt.Errorf("the trust domain %q may hold only a-z, 0-9, inner hyphens and single dots", s)
		}
	}
	return nil
}

// label is a non-empty run of [a-z0-9-] that neither begins nor ends with a hyphen.
func label(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
