package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// The tables. A document stands apart from its version: as JSON it could exceed the largest value.
const (
	documents  = "policy_documents" // versionKey: the document, as it was applied
	currentKey = "current"
	keepNewest = 1000 // versions
)

func versions() storage.Table[Version]    { return storage.Table[Version]{Name: "policy_versions"} }
func currents() storage.Table[pointer]    { return storage.Table[pointer]{Name: "policy_current"} }
func serviceStates() storage.Table[state] { return storage.Table[state]{Name: "service_state"} }

// Version is one version of the document.
type Version struct {
	Version int       `json:"version"` // from 1
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	SHA256  string    `json:"sha256"` // of the document, lower-case hex
	Comment string    `json:"comment,omitempty"`
}

// pointer says which version is the current one.
type pointer struct {
	Version int    `json:"version"`
	SHA256  string `json:"sha256"`
	// Recorded: the audit record that tells of it is durable. Until then it is in force nowhere.
	Recorded bool `json:"recorded"`
}

// state of a service that was disabled at least once.
type state struct {
	Disabled   bool      `json:"disabled"`
	Reason     string    `json:"reason,omitempty"`
	By         string    `json:"by"`
	At         time.Time `json:"at"`
	VoidBefore time.Time `json:"void_before"` // when it was last disabled or enabled
	Recorded   bool      `json:"recorded"`    // as in pointer

	rev storage.Rev
}

// versionKey sorts as the numbers do.
func versionKey(version int) string { return fmt.Sprintf("%010d", version) }

func sumOf(doc []byte) string {
	sum := sha256.Sum256(doc)
	return hex.EncodeToString(sum[:])
}

// History gives the newest versions, at most limit (1 to 1000; else 1000), newest first.
func (b *Book) History(ctx context.Context, limit int) ([]Version, error) {
	if limit < 1 || limit > keepNewest {
		limit = keepNewest
	}
	newest := b.Current().Version
	after := ""
	if newest > limit {
		after = versionKey(newest - limit)
	}
	entries, _, err := versions().Page(ctx, b.store, storage.ListOptions{After: after, Limit: limit})
	if err != nil {
		return nil, storeError(err)
	}
	list := make([]Version, 0, len(entries))
	for i := len(entries) - 1; i >= 0; i-- {
		if v := entries[i].Value; v.Version <= newest { // a newer one is not in force here yet
			list = append(list, v)
		}
	}
	return list, nil
}

// Document gives a version and its document; version 0 is the one in force. Unknown, or no longer kept:
// CodePolicyVersion; before the first apply: CodeNoPolicy.
func (b *Book) Document(ctx context.Context, version int) (Version, []byte, error) {
	if version == 0 {
		if version = b.Current().Version; version == 0 {
			return Version{}, nil, countersign.Errorf(countersign.CodeNoPolicy, "no policy is in force yet").
				WithHint("apply one: countersign policy apply FILE")
		}
	}
	return b.read(ctx, version)
}

// read gives a stored version, whole: its document is the one that the version's sum is of.
func (b *Book) read(ctx context.Context, version int) (Version, []byte, error) {
	unknown := countersign.Errorf(countersign.CodePolicyVersion, "there is no version %d of the policy", version).
		WithHint("countersign policy history lists them; the newest %d are kept", keepNewest)
	if version < 1 {
		return Version{}, nil, unknown
	}
	entry, err := versions().Get(ctx, b.store, versionKey(version))
	if errors.Is(err, storage.ErrNotFound) {
		return Version{}, nil, unknown
	}
	if err != nil {
		return Version{}, nil, storeError(err)
	}
	item, err := b.store.Get(ctx, documents, versionKey(version))
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return Version{}, nil, storeError(fmt.Errorf("%w: the document of version %d is missing", storage.ErrCorrupt, version))
	case err != nil:
		return Version{}, nil, storeError(err)
	case entry.Value.Version != version || sumOf(item.Value) != entry.Value.SHA256:
		return Version{}, nil, storeError(fmt.Errorf("%w: the document of version %d is not the one that was applied", storage.ErrCorrupt, version))
	}
	return entry.Value, item.Value, nil
}
