package condition

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign/countersign"
)

func compiler(t testing.TB) *Compiler {
	t.Helper()
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t testing.TB, source string) *Condition {
	t.Helper()
	condition, problems := compiler(t).Compile(source)
	if condition == nil {
		t.Fatalf("%s: %+v", source, problems)
	}
	return condition
}

// input is what the tests judge: a token of a user, exchanged by orders on a Tuesday.
func input(t testing.TB) countersign.ConditionInput {
	t.Helper()
	id, err := countersign.NewServiceID("shop.internal", "orders")
	if err != nil {
		t.Fatal(err)
	}
	return countersign.ConditionInput{
		Subject: map[string]any{
			"sub": "alice", "tenant": "acme", "groups": []any{"staff", "admin"}, "level": int64(3), "ratio": 0.5, "vip": true, "nothing": nil,
			"auth_time": int64(1_795_498_200) /* 05:30 */, "address": map[string]any{"country": "DE"}, "x-y": "z", "secret": "hunter2",
		},
		Caller:   countersign.Service{ID: id, Name: "orders"},
		Audience: "inventory", Scopes: []string{"stock:read"},
		Now: time.Date(2026, 11, 24, 12, 30, 0, 0, time.FixedZone("x", 3600)),
	}
}

func TestHolds(t *testing.T) {
	for source, want := range map[string]bool{
		`subject.tenant != "trial"`:                                             true,
		`subject.tenant == "trial"`:                                             false,
		`subject.tenant in ["acme", "globex"]`:                                  true,
		`"admin" in subject.groups`:                                             true,
		`subject.groups.exists(g, g.startsWith("adm"))`:                         true,
		`subject.groups.all(g, g.matches("^[a-z]+$"))`:                          true,
		`subject.level >= 3`:                                                    true,
		`subject.level > 2.5`:                                                   true,
		`subject.level == 3 && subject.ratio < 1`:                               true,
		`subject.vip == true`:                                                   true,
		`has(subject.plan) && subject.plan == "free"`:                           false,
		`!has(subject.plan) || subject.plan != "free"`:                          true,
		`subject.address.country == "DE"`:                                       true,
		`subject["x-y"] == "z"`:                                                 true,
		`subject.nothing == null`:                                               true,
		`caller.name == "orders"`:                                               true,
		`caller.id == "spiffe://shop.internal/orders"`:                          true,
		`request.audience == "inventory"`:                                       true,
		`request.scopes.all(s, s.endsWith(":read"))`:                            true,
		`size(request.scopes) == 1 && request.scopes[0] == "stock:read"`:        true,
		`!request.machine`:                                                      true,
		`request.time < timestamp("2026-12-01T00:00:00Z")`:                      true,
		`request.time.getHours() == 11`:                                         true, // in UTC
		`request.time.getHours("+02:00") == 13`:                                 true,
		`request.time.getHours("UTC") == 11`:                                    true,
		`request.time.getDayOfWeek() == 2`:                                      true,
		`request.time - timestamp(subject.auth_time) < duration("1h")`:          false,
		`request.time - timestamp(subject.auth_time) < duration("12h")`:         true,
		"subject.tenant == \"acme\"\n  && // who pays\n  subject.vip == true\n": true,
		`false && subject.missing == 1`:                                         false,
		`subject.missing == 1 || true`:                                          true, // CEL: one side suffices
		`type(subject.level) == int`:                                            true,
	} {
		if got, err := must(t, source).Holds(input(t)); err != nil || got != want {
			t.Errorf("%s: %v, %v", source, got, err)
		}
	}
}

// Without a verdict there is an error, and it shows nothing of the token.
func TestErrorsDeny(t *testing.T) {
	in := input(t)
	in.Subject["long"] = strings.Repeat("hunter2", 2000)
	many := make([]any, 8000)
	for i := range many {
		many[i] = fmt.Sprint("hunter2-", i)
	}
	in.Subject["many"] = many
	for source, want := range map[string]string{
		`subject.missing == 1`:                              `there is no "missing"`,
		`subject["missing"] == 1`:                           `there is no "missing"`,
		`subject.address.town == "x"`:                       `there is no "town"`,
		`subject.tenant.x == 1`:                             `there is no "x"`,
		`subject[subject.secret] == 1`:                      "a key that it looks up is not there",
		`subject.address[subject.secret] == 1`:              "a key that it looks up is not there",
		`subject.level < "3"`:                               "a kind that an operator does not take",
		`subject.secret + 1 == 2`:                           "a kind that an operator does not take",
		`int(subject.secret) == 1`:                          "a value can't be used as it is written",
		`timestamp(subject.secret) < request.time`:          "a value can't be used as it is written",
		`duration(subject.secret) < duration("1s")`:         "a value can't be used as it is written",
		`subject.secret.exists(x, x == "h")`:                "no list and no object",
		`subject.groups[7] == "a"`:                          "a list is shorter than its index",
		`1 / (subject.level - 3) == 1`:                      "divides by zero",
		`1 % (subject.level - 3) == 1`:                      "divides by zero",
		`subject.level + 9223372036854775807 > 0`:           "too large",
		`subject.missing == 1 && true`:                      `there is no "missing"`,
		`subject.missing == 1 || false`:                     `there is no "missing"`,
		`subject.many.map(m, m + subject.long).size() == 1`: "more than 100000 steps",
		`subject.many.exists(m, m + m + m + m + m == "x")`:  "more than 100000 steps",
	} {
		got, err := must(t, source).Holds(in)
		if got || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %s", source, got, err, want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows a claim: %v", source, err)
		}
	}
	in.Subject = nil // client_credentials
	if got, err := must(t, `subject.tenant == "acme"`).Holds(in); got || err == nil {
		t.Errorf("without a token: %v, %v", got, err)
	}
	if got, err := must(t, `request.machine || has(subject.tenant)`).Holds(in); got || err != nil {
		t.Errorf("without a token: %v, %v", got, err)
	}
}

func TestProblems(t *testing.T) {
	for _, c := range []struct {
		source       string
		line, column int
		msg, hint    string
	}{
		{`subjct.tenant == "a"`, 1, 1, "there is nothing called `subjct", "did you mean `subject"},
		{"true &&\n  caller.nme == \"x\"", 2, 9, "there is nothing called `caller.nme`", "did you mean `caller.name`?"},
		{`calle.name == "x"`, 1, 6, "there is nothing called `calle.name`", "did you mean `caller.name`?"},
		{`caller == "x"`, 1, 1, "`caller` alone has no value", "caller.name"},
		{`request["time"] == "x"`, 1, 1, "`request` alone has no value", "request.time"},
		{`claims.tenant == "x"`, 1, 1, "there is nothing called `claims`", "the names are subject, caller.name"},
		{`now() > request.time`, 1, 4, "there is nothing called `now`", "standard library"},
		{`subject.sub.startWith("a")`, 1, 22, "there is nothing called `startWith`", "did you mean `startsWith`?"},
		{`request.scopes.exist(s, true)`, 1, 21, "there is nothing called `exist`", "did you mean `exists`?"},
		{`subject.tenant ==`, 1, 18, "this is not CEL", "before this place"},
		{`subject.tenant = "a"`, 1, 16, "this is not CEL", ""},
		{`"a" "b"`, 1, 5, "this is not CEL", ""},
		{`1 + "a" == 2`, 1, 3, "found no matching overload", "converted"},
		{`caller.name == 1`, 1, 13, "found no matching overload", ""},
		{`subject.tenant`, 1, 1, "need not be true or false", "compare it"},
		{`caller.name`, 1, 1, "it gives a text, not true or false", "compare it"},
		{`size(request.scopes)`, 1, 1, "it gives a number", "compare it"},
		{`request.scopes`, 1, 1, "it gives a list", "compare it"},
		{`subject`, 1, 1, "it gives an object", "compare it"},
		{`request.time`, 1, 1, "google.protobuf.Timestamp", "compare it"},
		{`subject.a.matches("(")`, 1, 19, "no regular expression", ""},
		{`subject.a.matches("(a{100}){100}")`, 1, 19, "", ""},
		{`subject.a.matches(subject.b)`, 1, 26, "must be a text that stands here", "no token may bring"},
		{`matches(subject.a, subject.b + "x")`, 1, 30, "must be a text that stands here", ""},
		{`request.time.getHours("Europe/Berlin") == 1`, 1, 23, "must be an offset", "+01:00"},
		{`request.time.getHours(subject.zone) == 1`, 1, 30, "must be an offset", "+01:00"},
		{`request.time.getHours("../../etc/passwd") == 1`, 1, 23, "must be an offset", ""},
		{`request.time < timestamp("yesterday")`, 1, 26, "invalid timestamp", ""},
		{`request.time - request.time < duration("1 day")`, 1, 40, "invalid duration", ""},
		{`subject.a.exists(a, subject.b.exists(b, a == b))`, 1, 1, "steps for one token; at most 100000", "each item"},
		{`subject.a.exists(a, subject.b.exists(b, subject.c.exists(c, a == c)))`, 1, 57, "more than 2 deep", "simpler"},
		{`subject.a.map(a, subject.a.map(b, subject.a)).size() > 1`, 1, 1, "steps for one token", ""},
		{strings.Repeat("(", 40) + "true" + strings.Repeat(")", 40), 1, 1, "", ""},
		{strings.Repeat("-", 1) + strings.Repeat("{1:", 40) + "true" + strings.Repeat("}", 40), 1, 1, "", ""},
		{"[" + strings.Repeat("1,", 800) + "1].size() > " + strings.Repeat("1 + ", 50) + "1", 1, 1, "", ""},
		{`"` + strings.Repeat("x", MaxSource) + `" == ""`, 1, 1, "at most 2048 are allowed", ""},
		{"\x00", 1, 1, "", ""},
		{"", 1, 1, "", ""},
	} {
		condition, problems := compiler(t).Compile(c.source)
		if condition != nil || len(problems) == 0 || len(problems) > maxProblems {
			t.Errorf("%.60s: %v, %+v", c.source, condition, problems)
			continue
		}
		p := problems[0]
		if c.msg != "" && (p.Line != c.line || p.Column != c.column) || !strings.Contains(p.Msg, c.msg) || !strings.Contains(p.Hint, c.hint) || p.Msg == "" {
			t.Errorf("%.60s: %+v", c.source, p)
		}
	}
}

// The cost of a usual condition stays far under the limit, whatever a token of 16 KiB holds.
func TestUsualConditionsAreCheap(t *testing.T) {
	in := input(t)
	var groups []any
	for i := range 1000 {
		groups = append(groups, fmt.Sprintf("group-%06d", i))
	}
	in.Subject["groups"] = groups
	for _, source := range []string{
		`"admin" in subject.groups`, `subject.groups.exists(g, g == "admin")`, `subject.groups.exists(g, g.matches("^admin-[a-z]+$"))`,
		`subject.groups.filter(g, g.startsWith("shop-")).size() > 0`, `request.scopes.all(s, s in subject.groups)`,
	} {
		if holds, err := must(t, source).Holds(in); holds || err != nil {
			t.Errorf("%s: %v, %v", source, holds, err)
		}
	}
}

func TestCompilerKeeps(t *testing.T) {
	c := compiler(t)
	a, _ := c.Compile("true")
	b, _ := c.Compile("true")
	if a == nil || a != b || c.Distinct() != 1 || !c.Has("true") || c.Has("false") || a.String() != "true" {
		t.Errorf("%v %v, %d", a, b, c.Distinct())
	}
	if _, problems := c.Compile("nope"); len(problems) != 1 {
		t.Error(problems)
	}
	if again, problems := c.Compile("nope"); again != nil || len(problems) != 1 {
		t.Error(again, problems)
	}
}

// Conditions are evaluated by many requests at once (under -race).
func TestConcurrent(t *testing.T) {
	condition := must(t, `subject.groups.exists(g, g == caller.name) || subject.n == request.audience`)
	var all sync.WaitGroup
	for i := range 8 {
		in := input(t)
		in.Subject["n"], in.Audience = fmt.Sprint(i), fmt.Sprint(i%4)
		all.Go(func() {
			for range 100 {
				if got, err := condition.Holds(in); err != nil || got != (i < 4) {
					t.Errorf("%d: %v, %v", i, got, err)
				}
			}
		})
	}
	all.Wait()
}

// Neither an expression nor claims make it panic, take long or tell what stands in a claim.
func FuzzCondition(f *testing.F) {
	const marker = "qZ7#marker"
	for _, source := range []string{
		`subject.tenant != "trial"`, `has(subject.a) && subject.a.exists(x, x == "b")`, `subject.a.map(x, x + x).size() > 2`,
		`request.time - timestamp(subject.a) < duration("5m")`, `subject.a.matches("^(a|b)*$")`, `subject[subject.a] == 1`,
		`int(subject.a) % 2 == 1 ? caller.id.contains("x") : request.scopes.all(s, s in subject.a)`, `[[1]][0].exists_one(x, x == 1u)`, `b"a" == bytes(subject.a)`,
		`{"a": 1}.a == 1 || type(subject) == map`, `request.time.getHours("+01:00") < 9`, `"\u00e9" in subject`,
	} {
		for _, claims := range []string{`{}`, `{"a": "x"}`, `{"a": ["x", 1, null, {"b": []}], "tenant": 1e300}`, `{"a": -1}`} {
			f.Add(source, claims)
		}
	}
	c := compiler(f)
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, source, claims string) {
		if len(claims) > 16<<10 {
			return // a token has no more
		}
		clear(c.done)
		condition, problems := c.Compile(source)
		if (condition == nil) == (len(problems) == 0) || len(problems) > maxProblems {
			t.Fatalf("%v and %+v", condition, problems)
		}
		for _, p := range problems {
			if p.Line < 1 || p.Column < 1 || p.Msg == "" || p.Line > 1+strings.Count(source, "\n")+strings.Count(source, "\r") {
				t.Fatalf("%+v", p)
			}
		}
		if condition == nil {
			return
		}
		var subject map[string]any
		if json.Unmarshal([]byte(claims), &subject) != nil {
			return
		}
		for name, value := range subject {
			if s, ok := value.(string); ok {
				subject[name] = s + marker
			}
		}
		in := countersign.ConditionInput{Subject: subject, Audience: "b", Scopes: []string{"r"}, Now: now}
		holds, err := condition.Holds(in)
		if again, errAgain := condition.Holds(in); holds != again || (err == nil) != (errAgain == nil) {
			t.Fatalf("%v, then %v (%v, %v)", holds, again, err, errAgain)
		}
		if err != nil && (holds || strings.Contains(err.Error(), marker) || len(err.Error()) > 3000) {
			t.Fatalf("%v, %v", holds, err)
		}
	})
}

func BenchmarkHolds(b *testing.B) {
	for name, source := range map[string]string{"compare": `subject.tenant != "trial"`, "exists": `subject.groups.exists(g, g == "admin")`} {
		condition, in := must(b, source), input(b)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if ok, err := condition.Holds(in); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

// The most that one evaluation can cost: a token of 16 KiB with as many items as it can hold.
func BenchmarkLimit(b *testing.B) {
	in := input(b)
	many := make([]any, 8000)
	for i := range many {
		many[i] = "x"
	}
	in.Subject["many"] = many
	condition := must(b, `subject.many.map(m, m + m).exists(x, x == "a")`)
	for b.Loop() {
		if _, err := condition.Holds(in); err == nil {
			b.Fatal("it is not bounded")
		}
	}
}
