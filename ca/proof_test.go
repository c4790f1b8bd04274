package ca

import (
	"context"
	"time"

	"github.com/countersign/countersign/storage"
)

// usedProof is a workload's token that is remembered in a table of its own, as the token service remembers it.
type usedProof struct {
	store storage.Store
}

type proofUse struct{ SPKI, Serial string }

func proofTable() storage.Table[proofUse] { return storage.Table[proofUse]{Name: "proof_of_test"} }

func (p *usedProof) Used(ctx context.Context) (spki, serial string, rev storage.Rev, err error) {
	entry, err := proofTable().Get(ctx, p.store, "jti")
	if err != nil {
		return "", "", 0, nil
	}
	return entry.Value.SPKI, entry.Value.Serial, entry.Rev, nil
}

func (p *usedProof) Mark(spki, serial string, rev storage.Rev) (storage.Op, error) {
	cond := storage.Cond{Rev: rev, Absent: rev == 0}
	return proofTable().Put("jti", proofUse{spki, serial}, time.Time{}, cond)
}
