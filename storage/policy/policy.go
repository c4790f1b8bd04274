// Package policy is the policy document: it parses and checks one, keeps its versions in the store, and says which
// call graph is in force.
//
// A document is wholly right or it is refused with all its faults; nothing of it is guessed, dropped or read from
// elsewhere. The package never opens a file or a connection that a document names, never expands an alias, never
// matches by pattern, and never puts a version in force before its audit record is durable.
package policy

import (
	"cmp"
	"fmt"
	"slices"

	countersign "github.com/countersign/countersign"
)

// Env is what a document is checked against: facts of the daemon that no document may contradict.
type Env struct {
	TrustDomain string   // the document's trust_domain must be this one
	Issuer      string   // our own issuer identifier: never an external issuer
	ReservedDNS []string // the daemon's own names, which no service may have; any case
	PermitDNS   []string // the suffixes that the authority's name constraints permit (RFC 5280 4.2.1.10), in lower case; none: all
}

// Bounds of a document. What exceeds one is a fault.
const (
	MaxDocument = 900 << 10 // bytes, so that a version fits one value of the store
	MaxIssuers  = 64
	MaxServices = 10_000
	MaxCalls    = 50_000

	maxFaults     = 1000 // told at once
	maxDepth      = 12   // of nested mappings and lists; the deepest right document has 6
	maxList       = 1024 // items of any list but services and calls
	maxScope      = 128  // bytes
	maxAudience   = 255
	maxClaim      = 128
	maxURL        = 512
	maxSubject    = 255  // bytes of a sub that proves a service
	maxEnrol      = 64   // items of one `enrol`
	mostHops      = 16   // of max_hops
	maxConditions = 1000 // different ones of one document: each is compiled when it is read
	maxRoots      = 64   // certificates of one ca_file
	maxQuotedText = 60   // bytes of a value that a fault repeats
	maxGuesses    = 20   // names that are compared with all others for a "did you mean"
)

// Fault is one thing that is wrong with a document.
type Fault struct {
	Line   int    `json:"line"`   // from 1
	Column int    `json:"column"` // from 1, in characters
	Path   string `json:"path"`   // as "calls[2].scopes[0].needs[1]"; "" is the document
	Msg    string `json:"msg"`    // what is wrong and why
	Hint   string `json:"hint"`   // what to do about it
}

// String is the fault as compilers print them, without the name of the file.
func (f Fault) String() string {
	return fmt.Sprintf("%d:%d: %s (%s)", f.Line, f.Column, f.Msg, f.Hint)
}

// Parse reads and checks a document. It is pure and deterministic, and its time and memory are bounded by MaxDocument.
// It gives either a policy, of version 0, or all faults in the order of their positions, never both.
func Parse(doc []byte, env Env) (*countersign.Policy, []Fault) {
	var found faults
	root, ok := readYAML(doc, &found)
	if !ok {
		return nil, found.sorted()
	}
	d := decoder{env: env, faults: &found, doc: doc}
	parsed := d.document(&place{node: root})
	if parsed.whole {
		d.check(parsed)
	}
	if !found.none() {
		return nil, found.sorted()
	}
	return parsed.policy(), nil
}

// faults collects, so that all are told at once. It keeps no more than can be shown.
type faults struct {
	list []Fault
	more bool
}

func (f *faults) add(fault Fault) {
	if len(f.list) == maxFaults {
		f.more = true
		return
	}
	f.list = append(f.list, fault)
}

func (f *faults) none() bool { return len(f.list) == 0 }

func (f *faults) sorted() []Fault {
	slices.SortStableFunc(f.list, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Msg, b.Msg))
	})
	if f.more {
		last := f.list[len(f.list)-1]
		f.list = append(f.list, Fault{
			Line: last.Line, Column: last.Column,
			Msg:  fmt.Sprintf("there are more than %d faults; the others are not shown", maxFaults),
			Hint: "mend these and apply again",
		})
		f.more = false
	}
	return f.list
}
