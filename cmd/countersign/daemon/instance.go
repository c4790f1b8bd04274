package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign/storage"
)

// instance is what an authority was made as. It stands in certificates and tokens, so it never changes.
type instance struct {
	Domain string `json:"domain"`
	Issuer string `json:"issuer"`
}

const instanceKey = "authority"

// checkInstance records domain and issuer when the store is new, and later refuses a configuration that says otherwise:
// with another issuer every verifier would refuse our tokens, and a relay token of ours would pass for an external one.
func (p *parts) checkInstance(ctx context.Context) error {
	table := storage.Table[instance]{Name: "instance"}
	configured := instance{Domain: p.cfg.Domain, Issuer: p.cfg.Issuer}
	entry, err := table.Get(ctx, p.store, instanceKey)
	if errors.Is(err, storage.ErrNotFound) {
		op, err := table.Put(instanceKey, configured, time.Time{}, storage.Cond{Absent: true})
		if err != nil {
			return err
		}
		_, err = p.store.Apply(ctx, op)
		return err
	}
	if err != nil {
		return err
	}
	var problems []Problem
	for _, v := range []struct{ key, made, now string }{
		{"domain", entry.Value.Domain, configured.Domain}, {"issuer", entry.Value.Issuer, configured.Issuer},
	} {
		if v.made != v.now {
			problems = append(problems, Problem{Key: v.key, Msg: fmt.Sprintf("this authority was made with %s; it can't become %s", v.made, v.now)})
		}
	}
	if len(problems) > 0 {
		return &ConfigError{problems}
	}
	return nil
}
