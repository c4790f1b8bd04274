package bolt

import (
	"errors"
	"fmt"

	"github.com/countersign/countersign/storage"
)

const maxTable = 32

func checkTable(table string) error {
	ok := len(table) >= 1 && len(table) <= maxTable
	for i := 0; ok && i < len(table); i++ {
		ok = table[i] == '_' || table[i] >= 'a' && table[i] <= 'z'
	}
	if !ok {
		return fmt.Errorf("storage/bolt: table %.40q is not [a-z_]{1,32}", table)
	}
	return nil
}

func checkName(table, key string) error {
	if err := checkTable(table); err != nil {
		return err
	}
	if len(key) < 1 || len(key) > storage.MaxKey {
		return fmt.Errorf("storage/bolt: key of %d bytes is not 1 to %d", len(key), storage.MaxKey)
	}
	return nil
}

func checkList(table string, o storage.ListOptions) error {
	if err := checkTable(table); err != nil {
		return err
	}
	if o.Limit < 1 || o.Limit > storage.MaxPage {
		return fmt.Errorf("storage/bolt: limit %d is not 1 to %d", o.Limit, storage.MaxPage)
	}
	return nil
}

// checkOps refuses what the contract does not allow and says how many bytes the batch has.
func checkOps(ops []storage.Op) (size int, err error) {
	if len(ops) < 1 || len(ops) > storage.MaxOps {
		return 0, fmt.Errorf("storage/bolt: %d operations are not 1 to %d", len(ops), storage.MaxOps)
	}
	written := make(map[[2]string]bool, len(ops))
	for i, op := range ops {
		if err := checkOp(op); err != nil {
			return 0, fmt.Errorf("operation %d: %w", i, err)
		}
		size += len(op.Key) + len(op.Value)
		if op.Kind == storage.Check {
			continue
		}
		name := [2]string{op.Table, op.Key}
		if written[name] {
			return 0, fmt.Errorf("operation %d: storage/bolt: %s %q is written twice", i, op.Table, op.Key)
		}
		written[name] = true
	}
	if size > storage.MaxBatch {
		return 0, fmt.Errorf("storage/bolt: batch of %d bytes exceeds %d", size, storage.MaxBatch)
	}
	return size, nil
}

func checkOp(op storage.Op) error {
	if err := checkName(op.Table, op.Key); err != nil {
		return err
	}
	if op.If.Absent && op.If.Rev != 0 {
		return errors.New("storage/bolt: a condition can't demand both absence and a revision")
	}
	switch op.Kind {
	case storage.Put:
		if len(op.Value) > storage.MaxValue {
			return fmt.Errorf("storage/bolt: value of %d bytes exceeds %d", len(op.Value), storage.MaxValue)
		}
		_, err := encodeExpiry(op.Expires)
		return err
	case storage.Delete, storage.Check:
		if len(op.Value) != 0 || !op.Expires.IsZero() {
			return errors.New("storage/bolt: only a put has a value and an expiry")
		}
		return nil
	default:
		return fmt.Errorf("storage/bolt: unknown kind %d", op.Kind)
	}
}
