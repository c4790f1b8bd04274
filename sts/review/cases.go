package review

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts"
)

// Bounds of a file of cases.
const (
	MaxCases     = 1 << 20 // bytes
	maxCaseCount = 10_000
	maxCaseList  = 100 // items of any list in a case
	maxCaseFault = 100 // told at once
)

// Case is one exchange and how it must end.
type Case struct {
	Name    string   `yaml:"name"`    // shown; default: from -> to and the scopes
	From    string   `yaml:"from"`    // the client: a service's name
	To      string   `yaml:"to"`      // the audience: a name or an ID; "": found from the scopes
	Scopes  []string `yaml:"scopes"`  // as asked; none: all that are allowed
	Machine bool     `yaml:"machine"` // client_credentials, without a subject token
	Holds   *Holds   `yaml:"holds"`   // the subject token
	Expect  string   `yaml:"expect"`  // allow or deny
	Granted []string `yaml:"granted"` // of an allowed one: exactly these scopes, in any order
	Code    string   `yaml:"code"`    // of a denied one
	Step    string   `yaml:"step"`    // of a denied one: the step that fails

	Line int `yaml:"-"`
}

// Holds is what a verified subject token would hold.
type Holds struct {
	Issuer   string         `yaml:"issuer"`   // of a user's token: the issuer's name in the policy. Without: a relay token of ours
	Audience string         `yaml:"audience"` // of a user's token; default: one by which the client takes it
	Scopes   []string       `yaml:"scopes"`   // that it asserts
	Claims   map[string]any `yaml:"claims"`   // further ones, as conditions and `carry` see them
	Chain    []string       `yaml:"chain"`    // of a relay token: the services that it passed through, the first one first
}

// CaseFault is one thing that is wrong with a file of cases.
type CaseFault struct {
	Line int
	Msg  string
}

// String is the fault as compilers print it, without the name of the file.
func (f CaseFault) String() string {
	if f.Line == 0 {
		return f.Msg
	}
	return strconv.Itoa(f.Line) + ": " + f.Msg
}

// ParseCases reads a file of cases: one YAML document, `cases:` and a list, no key that is not known. It gives either the
// cases or all faults.
func ParseCases(doc []byte) ([]Case, []CaseFault) {
	if len(doc) > MaxCases {
		return nil, []CaseFault{{Msg: fmt.Sprintf("the file has %d bytes; at most %d are read", len(doc), MaxCases)}}
	}
	var file struct {
		Cases []Case `yaml:"cases"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(doc))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return nil, yamlFaults(err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, []CaseFault{{Msg: "more than one document stands in the file"}}
	}
	var tree struct {
		Cases []yaml.Node `yaml:"cases"`
	}
	if err := yaml.Unmarshal(doc, &tree); err != nil || len(tree.Cases) != len(file.Cases) {
		return nil, []CaseFault{{Msg: "`cases` can't be read"}}
	}
	var faults []CaseFault
	switch {
	case len(file.Cases) == 0:
		faults = append(faults, CaseFault{Msg: "there are no cases: write `cases:` and a list"})
	case len(file.Cases) > maxCaseCount:
		faults = append(faults, CaseFault{Msg: fmt.Sprintf("there are %d cases; at most %d are taken", len(file.Cases), maxCaseCount)})
	}
	for i := range file.Cases {
		c := &file.Cases[i]
		c.Line = tree.Cases[i].Line
		for _, msg := range c.faults() {
			if len(faults) < maxCaseFault {
				faults = append(faults, CaseFault{Line: c.Line, Msg: msg})
			}
		}
		if c.Name == "" {
			c.Name = strings.TrimSpace(c.From + " -> " + c.To + " " + strings.Join(c.Scopes, " "))
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return file.Cases, nil
}

// yamlFaults takes the library's messages apart, which hold their lines.
func yamlFaults(err error) []CaseFault {
	if errors.Is(err, io.EOF) {
		return []CaseFault{{Msg: "the file is empty: write `cases:` and a list"}}
	}
	messages := []string{strings.TrimPrefix(err.Error(), "yaml: ")}
	var kinds *yaml.TypeError
	if errors.As(err, &kinds) {
		messages = kinds.Errors
	}
	var faults []CaseFault
	for _, msg := range messages[:min(len(messages), maxCaseFault)] {
		f := CaseFault{Msg: strings.ReplaceAll(msg, "in type review.", "in a ")}
		if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(msg); m != nil {
			f.Line, _ = strconv.Atoi(m[1])
			f.Msg = strings.TrimPrefix(f.Msg, m[0])
		}
		faults = append(faults, f)
	}
	return faults
}

func (c *Case) faults() []string {
	var faults []string
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	fault(c.From == "", "`from` is missing: the service that would exchange")
	fault(c.Expect != "allow" && c.Expect != "deny", "`expect` must be allow or deny, not %.40q", c.Expect)
	fault(c.Machine && c.Holds != nil, "a case with `machine: true` has no subject token: leave out `holds`")
	fault(!c.Machine && c.Holds == nil, "`holds` is missing: what the subject token holds; or write `machine: true`")
	fault(c.Expect == "allow" && (c.Code != "" || c.Step != ""), "`code` and `step` go with `expect: deny`")
	fault(c.Expect == "deny" && c.Granted != nil, "`granted` goes with `expect: allow`")
	fault(len(c.Scopes) > maxCaseList || len(c.Granted) > maxCaseList, "a list has more than %d items", maxCaseList)
	if c.Code != "" && countersign.Code(c.Code).Info().Code != countersign.Code(c.Code) {
		fault(true, "there is no code %.40q: see docs/errors.md", c.Code)
	}
	steps := []string{sts.StepClient, sts.StepSubject, sts.StepCall, sts.StepScope, sts.StepConditions, sts.StepLifetime}
	fault(c.Step != "" && !slices.Contains(steps, c.Step), "there is no step %.40q: they are %s", c.Step, strings.Join(steps, ", "))
	if h := c.Holds; h != nil {
		fault(h.Issuer != "" && h.Chain != nil, "`chain` is of relay tokens: leave out `issuer`")
		fault(h.Issuer == "" && h.Audience != "", "`audience` is of a user's token: a relay token is always addressed to `from`")
		fault(len(h.Scopes) > maxCaseList || len(h.Chain) > maxCaseList || len(h.Claims) > maxCaseList, "a list has more than %d items", maxCaseList)
	}
	return faults
}
