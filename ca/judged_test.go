package ca

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// A kept connection is judged anew as soon as the change that concerns it is done, however often it was judged before.
func TestJudgedPeers(t *testing.T) {
	h := newHouse(t, nil)
	judge := func(c *Certificate) error {
		_, err := h.PeerCaller(t.Context(), c.Chain[0], countersign.Caller{})
		return err
	}
	for name, end := range map[string]struct {
		do   func(c *Certificate) error
		code countersign.Code
	}{
		"its certificate is revoked": {func(c *Certificate) error { return h.Revoke(t.Context(), admin(), c.Serial, "superseded") }, countersign.CodeRevokedPeer},
		"its key is compromised":     {func(c *Certificate) error { return h.Revoke(t.Context(), admin(), c.Serial, "keyCompromise") }, countersign.CodeRevokedPeer},
		"its record is gone": {func(c *Certificate) error {
			_, err := h.cfg.Store.Apply(t.Context(), certificatesTable().Delete(c.Serial, storage.Cond{}))
			return err
		}, countersign.CodeBadCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.join("orders", newKey(t, ""))
			for range 3 {
				if err := judge(c); err != nil {
					t.Fatal(err)
				}
			}
			if _, known := h.judged.recall(sha256.Sum256(c.Chain[0].Raw)); !known {
				t.Fatal("the judgement is not remembered: this shows nothing")
			}
			if err := end.do(c); err != nil {
				t.Fatal(err)
			}
			wantCode(t, judge(c), end.code)
			wantCode(t, judge(c), end.code)
		})
	}
}

func TestJudgedIsBounded(t *testing.T) {
	var j judged
	never, changed := make(chan struct{}), make(chan struct{})
	both := []<-chan struct{}{never, changed}
	for i := range maxJudged + 10 {
		j.remember(sha256.Sum256(fmt.Append(nil, i)), countersign.Caller{Serial: "01"}, both)
	}
	if len(j.peers) > maxJudged {
		t.Errorf("%d peers", len(j.peers))
	}
	last := sha256.Sum256(fmt.Append(nil, maxJudged+9))
	if _, ok := j.recall(last); !ok {
		t.Error("the last is not remembered")
	}
	close(changed)
	if _, ok := j.recall(last); ok {
		t.Error("remembered beyond a change")
	}
	j.remember(last, countersign.Caller{}, both)
	if _, ok := j.recall(last); ok {
		t.Error("what was read before a change is remembered after it")
	}
}
