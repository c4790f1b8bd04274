package sts

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/storage/audit"
)

// draft is the JSON of a token's claims with places left open for what differs between two tokens of one grant: the times,
// the jti and, where a transaction begins, the txn. It is never changed, so requests may share one.
type draft struct{ head, middle, tail []byte }

// draft writes the claims that we set, which are the list of "The minted token" in policy.md and nothing else, and after them
// those that are carried, as they stand in the subject token. None of those can replace one of ours: what [decision.carry]
// should have refused would stand twice, and is not signed.
func (g *Grant) draft(issuer string) *draft {
	b := make([]byte, 0, 1<<10)
	b = audit.AppendString(append(b, `{"iss":`...), issuer)
	b = audit.AppendString(append(b, `,"sub":`...), g.Sub)
	b = audit.AppendString(append(b, `,"sub_iss":`...), g.SubIssuer)
	b = audit.AppendString(append(b, `,"aud":`...), g.Audience.Name)
	head := len(b)
	b = audit.AppendString(append(b, `,"client_id":`...), g.Client.ID.String())
	b = audit.AppendString(append(b, `,"scope":`...), strings.Join(g.Scopes, " "))
	middle := len(b)
	if g.Act != nil {
		b = g.Act.appendJSON(append(b, `,"act":`...))
	}
	if g.SessionID != "" {
		b = audit.AppendString(append(b, `,"sid":`...), g.SessionID)
	}
	if g.Thumbprint != nil { // RFC 8705 3.1
		b = append(b, `,"cnf":{"x5t#S256":"`...)
		b = base64.RawURLEncoding.AppendEncode(b, g.Thumbprint[:])
		b = append(b, `"}`...)
	}
	for _, name := range slices.Sorted(maps.Keys(g.Carry)) {
		b = audit.AppendString(append(b, ','), name)
		b = append(append(b, ':'), g.Carry[name]...)
	}
	b = append(b, '}')
	return &draft{head: b[:head:head], middle: b[head:middle:middle], tail: b[middle:]}
}

// payload fills the open places. Times are seconds (RFC 7519 2).
func (d *draft) payload(b []byte, expires, issued time.Time, id, transaction string) []byte {
	b = append(b, d.head...)
	b = strconv.AppendInt(append(b, `,"exp":`...), expires.Unix(), 10)
	b = strconv.AppendInt(append(b, `,"nbf":`...), issued.Unix(), 10)
	b = strconv.AppendInt(append(b, `,"iat":`...), issued.Unix(), 10)
	b = audit.AppendString(append(b, `,"jti":`...), id)
	b = append(b, d.middle...)
	b = audit.AppendString(append(b, `,"txn":`...), transaction)
	return append(b, d.tail...)
}

func (d *draft) size() int { return len(d.head) + len(d.middle) + len(d.tail) }

// appendJSON writes the chain as encoding/json would.
func (a *Actor) appendJSON(b []byte) []byte {
	b = audit.AppendString(append(b, `{"sub":`...), a.Sub)
	if a.Act != nil {
		b = a.Act.appendJSON(append(b, `,"act":`...))
	}
	return append(b, '}')
}

// recordDraft is the JSON of an issuedDetail with places left open for what differs between two tokens of one grant. It is
// never changed.
type recordDraft struct{ head, tail []byte }

// draft writes d without Txn, JTI, Expires and KID.
func (d *issuedDetail) draft() (*recordDraft, error) {
	b := make([]byte, 0, 1<<10)
	b = audit.AppendString(append(b, `{"grant":`...), d.Grant)
	b = audit.AppendString(append(b, `,"client":`...), d.Client)
	b = audit.AppendString(append(b, `,"audience":`...), d.Audience)
	b = audit.AppendString(append(b, `,"scope":`...), d.Scope)
	b = audit.AppendString(append(b, `,"rule":`...), d.Rule)
	b = strconv.AppendInt(append(b, `,"policy":`...), int64(d.Policy), 10)
	head := len(b)
	b = appendWords(b, `,"chain":`, d.Chain)
	if d.Bound {
		b = append(b, `,"bound":true`...)
	}
	b, err := d.subjectDetail.append(b)
	if err != nil {
		return nil, err
	}
	b = d.Asked.append(b)
	b = audit.AppendString(append(b, `,"sub":`...), d.Sub)
	b = audit.AppendString(append(b, `,"sub_iss":`...), d.SubIssuer)
	b = append(b, '}')
	return &recordDraft{head: b[:head:head], tail: b[head:]}, nil
}

// append writes d's members, each after a comma.
func (d *subjectDetail) append(b []byte) ([]byte, error) {
	b = appendWord(b, `,"subject_sha256":`, d.SHA256)
	b = appendWord(b, `,"parent":`, d.Parent)
	b = appendWord(b, `,"sid":`, d.Session)
	if len(d.Dropped) > 0 {
		dropped, err := appendClaims(append(b, `,"dropped":`...), d.Dropped)
		if err != nil {
			return nil, err
		}
		b = dropped
	}
	b = appendWords(b, `,"held":`, d.Held)
	b = appendWords(b, `,"cut":`, d.Cut)
	b = appendWord(b, `,"kind":`, string(d.Kind))
	b = appendWords(b, `,"subject_aud":`, d.Aud)
	b = appendWords(b, `,"passed":`, d.Passed)
	if !d.Ends.IsZero() {
		b = appendTime(append(b, `,"subject_exp":`...), d.Ends)
	}
	b = appendWord(b, `,"may_act":`, d.MayAct)
	return appendWord(b, `,"actor":`, d.ActedBy), nil
}

// appendClaims is marshal for claims, of which nearly all are a plain jti alone.
func appendClaims(b []byte, claims map[string]json.RawMessage) ([]byte, error) {
	if raw, ok := claims["jti"]; ok && len(claims) == 1 && plainString(raw) {
		return append(append(append(b, `{"jti":`...), raw...), '}'), nil
	}
	all, err := marshal(claims)
	return append(b, all...), err
}

// plainString tells whether raw is a JSON string that is written in one way only: of printable ASCII without escapes.
func plainString(raw json.RawMessage) bool {
	if len(raw) < 2 || raw[0] != '"' || raw[len(raw)-1] != '"' {
		return false
	}
	for _, c := range raw[1 : len(raw)-1] {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func (a *asked) append(b []byte) []byte {
	if len(a.Audience)+len(a.Resource)+len(a.Scope)+len(a.ClientID) == 0 {
		return b
	}
	b = append(b, `,"asked":{`...)
	begin := len(b)
	b = appendWords(b, `,"audience":`, a.Audience)
	b = appendWords(b, `,"resource":`, a.Resource)
	b = appendWord(b, `,"scope":`, a.Scope)
	b = appendWord(b, `,"client_id":`, a.ClientID)
	return append(slices.Delete(b, begin, begin+1), '}') // without the first comma
}

func appendWord(b []byte, name, word string) []byte {
	if word == "" {
		return b
	}
	return audit.AppendString(append(b, name...), word)
}

func appendWords(b []byte, name string, words []string) []byte {
	for i, word := range words {
		if i == 0 {
			b = append(append(b, name...), '[')
		} else {
			b = append(b, ',')
		}
		b = audit.AppendString(b, word)
	}
	if len(words) > 0 {
		b = append(b, ']')
	}
	return b
}

func appendTime(b []byte, t time.Time) []byte {
	b = append(b, '"')
	b = t.AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

func (d *recordDraft) size() int { return len(d.head) + len(d.tail) }

// issuedRecord is a filled recordDraft.
type issuedRecord struct {
	*recordDraft
	txn, jti, kid string
	expires       time.Time
}

// AppendJSON implements [audit.Appender].
func (r issuedRecord) AppendJSON(b []byte) ([]byte, error) {
	b = append(b, r.head...)
	b = audit.AppendString(append(b, `,"txn":`...), r.txn)
	b = audit.AppendString(append(b, `,"jti":`...), r.jti)
	b = appendTime(append(b, `,"expires":`...), r.expires)
	b = audit.AppendString(append(b, `,"kid":`...), r.kid)
	return append(b, r.tail...), nil
}
