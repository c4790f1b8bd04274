package sts

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"github.com/countersign/countersign"
)

// when judges the call's own condition. One that was not compiled or can't be judged denies.
func (d *decision) when() Step {
	call := d.grant.Call
	if call.When == "" && call.Condition == nil {
		return Step{OK: true}
	}
	rule := ruleOf(call)
	if call.Condition == nil {
		return denied(countersign.CodeConditionError, rule, "the condition of %s can't be judged", rule).
			hint("`%s` was not compiled: this is a fault of the daemon, not of the request", short(call.When))
	}
	in := countersign.ConditionInput{
		Caller: *d.grant.Client, Audience: d.grant.Audience.Name, Scopes: d.grant.Scopes, Machine: d.in.Machine, Now: d.in.Now,
	}
	var err error
	if d.in.Subject != nil {
		in.Subject, err = plainClaims(d.in.Subject.Payload)
	}
	holds := false
	if err == nil {
		holds, err = call.Condition.Holds(in)
	}
	switch {
	case err != nil:
		next := "a claim that may be missing is asked for by has(subject.NAME)"
		if d.in.Subject != nil && len(d.in.Subject.Payload) == 0 {
			next = "the question came without a token, so there are no claims"
		}
		return denied(countersign.CodeConditionError, rule, "the condition of %s can't be judged", rule).
			hint("`%s`: %s; %s", short(call.When), err, next)
	case !holds:
		return denied(countersign.CodeCondition, rule, "the condition of %s does not hold", rule).
			hint("`%s` is false for this token and this request", short(call.When))
	}
	return Step{OK: true}
}

// plainClaims reads the claims of a verified token as plain values: string, bool, int64 for whole numbers that fit, float64 for
// others, nil, []any and map[string]any. It costs what no other step needs, so it is done for conditions only.
func plainClaims(payload json.RawMessage) (map[string]any, error) {
	if len(payload) == 0 {
		return nil, nil // a question without a token
	}
	reader := json.NewDecoder(bytes.NewReader(payload))
	reader.UseNumber()
	var claims map[string]any
	if err := reader.Decode(&claims); err != nil {
		return nil, errors.New("the claims can't be read")
	}
	for name, value := range claims {
		claims[name] = plainValue(value)
	}
	return claims, nil
}

func plainValue(value any) any {
	switch v := value.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // finite: jwt.Parse saw to that
		return f
	case []any:
		for i := range v {
			v[i] = plainValue(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = plainValue(v[name])
		}
	}
	return value
}

// short shows an expression of the policy on one line.
func short(when string) string {
	const most = 200
	when = strings.Join(strings.Fields(when), " ")
	if len(when) > most {
		when = strings.ToValidUTF8(when[:most], "") + "..."
	}
	return when
}
