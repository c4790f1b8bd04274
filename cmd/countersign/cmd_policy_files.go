package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/policy"
)

// brokenFiles is the failure of a policy of which a file can't be used. What else is wrong with it the daemon can say.
type brokenFiles struct {
	*failure
	path  string
	files []policy.Fault
}

func newBrokenFiles(path string, e *policy.FilesError) *brokenFiles {
	b := &brokenFiles{path: path, files: e.Faults}
	b.failure = &failure{Exit: exitLocal, What: path + " can't be used", Why: "a file that " + path + " names can't be put into it, and the daemon opens no path", err: e,
		Next: "mend them; of a ca_file it takes PEM certificates alone, of a jwks_file public keys"}
	b.tell(e.Faults)
	return b
}

// Unwrap gives the failure to whoever shows it.
func (b *brokenFiles) Unwrap() error { return b.failure }

func (b *brokenFiles) tell(faults []policy.Fault) {
	b.Details = nil
	for _, fault := range faults {
		b.Details = append(b.Details, faultText(b.path, wire.Fault(fault)))
	}
	b.What = fmt.Sprintf("%s has %d fault%s; the policy in force stays", b.path, len(faults), plural(len(faults)))
}

// tellAll asks the daemon what else is wrong with the document. Where a file is missing, its own word about that is better.
func (b *brokenFiles) tellAll(ctx context.Context, daemon *client.Client, document []byte) {
	_, err := daemon.ApplyPolicy(ctx, document, client.ApplyOptions{DryRun: true})
	var refused *client.APIError
	if !errors.As(err, &refused) {
		return
	}
	all := slices.Clone(b.files)
	for _, fault := range refused.Problem.Faults {
		if !slices.ContainsFunc(b.files, func(f policy.Fault) bool { return f.Path == fault.Path }) {
			all = append(all, policy.Fault(fault))
		}
	}
	slices.SortStableFunc(all, func(x, y policy.Fault) int {
		return cmp.Or(cmp.Compare(x.Line, y.Line), cmp.Compare(x.Column, y.Column))
	})
	b.tell(all)
}
