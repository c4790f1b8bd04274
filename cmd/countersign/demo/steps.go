package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/sts"
)

// claims are the claims that the demo looks at.
type claims struct {
	Iss, Sub, Aud, Scope, Txn string
	SubIss                    string `json:"sub_iss"`
	Email                     string
	Iat, Exp                  int64
	Act                       *actor
}

type actor struct {
	Sub string
	Act *actor
}

func (a *actor) chain() []string {
	var names []string
	for ; a != nil; a = a.Act {
		names = append(names, a.Sub[strings.LastIndexByte(a.Sub, '/')+1:])
	}
	return names
}

func (d *demo) request(ctx context.Context) error {
	token, err := d.login(ctx)
	if err != nil {
		return err
	}
	hop, err := d.call(ctx, token)
	if err != nil {
		return err
	}
	var seen []claims
	for h := hop; h != nil; h = h.Next {
		var c claims
		if err := json.Unmarshal(h.Claims, &c); err != nil {
			return err
		}
		seen = append(seen, c)
		d.line("at "+h.Service, "%s", describe(c))
	}
	if err := d.checkChain(seen); err != nil {
		return err
	}
	d.say("   The same user and transaction all the way; at each hop one audience, and less authority than before.")
	return nil
}

func describe(c claims) string {
	text := fmt.Sprintf("user %s, audience %s, scope %q, %ds left", c.Sub, c.Aud, c.Scope, c.Exp-time.Now().Unix())
	if c.Act != nil {
		text += ", via " + strings.Join(c.Act.chain(), " <- ")
	}
	return text
}

// checkChain holds what the demo claims of the three tokens.
func (d *demo) checkChain(seen []claims) error {
	want := []struct {
		aud, scope string
		chain      []string
	}{
		{"shop-web", "shop.read shop.write orders:read", nil},
		{"orders", "orders:read", []string{"gateway"}},
		{"inventory", "stock:read", []string{"orders", "gateway"}},
	}
	if len(seen) != len(want) {
		return fmt.Errorf("the request went through %d services instead of %d", len(seen), len(want))
	}
	for i, w := range want {
		c := seen[i]
		switch {
		case c.Aud != w.aud || c.Scope != w.scope || !slices.Equal(c.Act.chain(), w.chain):
			return fmt.Errorf("token %d has audience %q, scope %q, chain %v", i+1, c.Aud, c.Scope, c.Act.chain())
		case c.Sub != "ana" || c.Email != "ana@shop.example":
			return fmt.Errorf("token %d is for %q (%q)", i+1, c.Sub, c.Email)
		case i > 0 && (c.Iss != d.self || c.SubIss != d.issuer || c.Txn == "" || c.Txn != seen[1].Txn):
			return fmt.Errorf("token %d has issuer %q, original issuer %q, txn %q", i+1, c.Iss, c.SubIss, c.Txn)
		case i > 0 && c.Exp > seen[i-1].Exp:
			return fmt.Errorf("token %d outlives token %d", i+1, i)
		}
	}
	return nil
}

// load is what was seen of the requests that flow while the key rotates.
type load struct {
	sent, failed atomic.Int64
	first        sync.Once
	err          error
	mu           sync.Mutex
	kids         []string // of the tokens at inventory, in the order of their first appearance
}

const clients = 4

func (d *demo) rotate(ctx context.Context) error {
	token, err := d.login(ctx)
	if err != nil {
		return err
	}
	flowing, stop := context.WithCancel(ctx)
	defer stop()
	var l load
	var group sync.WaitGroup
	for range clients {
		group.Go(func() { d.flow(flowing, token, &l) })
	}
	time.Sleep(500 * time.Millisecond)
	var plan struct {
		Keys []struct {
			KID, Alg, State string
			New             bool
			SignsFrom       time.Time `json:"signs_from"`
		}
	}
	if err := d.host.Ask(ctx, &plan, "key", "rotate", "token"); err != nil {
		return err
	}
	var next string
	for _, k := range plan.Keys {
		if k.New && k.Alg == "ES256" {
			next = k.KID
			d.line("published", "%s, signs in %s", k.KID, time.Until(k.SignsFrom).Round(time.Second))
		}
	}
	select {
	case <-time.After(lead + 1500*time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	stop()
	group.Wait()
	d.line("signed by", "%s", strings.Join(l.kids, ", then "))
	d.line("requests", "%d through the chain, %d failed", l.sent.Load(), l.failed.Load())
	switch {
	case l.failed.Load() > 0:
		return fmt.Errorf("%d requests failed; the first: %w", l.failed.Load(), l.err)
	case len(l.kids) != 2 || l.kids[1] != next:
		return fmt.Errorf("the keys were %v; the last should be %s", l.kids, next)
	}
	return nil
}

func (d *demo) flow(ctx context.Context, token string, l *load) {
	for ctx.Err() == nil {
		hop, err := d.call(ctx, token)
		if ctx.Err() != nil {
			return
		}
		l.sent.Add(1)
		if err != nil {
			l.failed.Add(1)
			l.first.Do(func() { l.err = err })
			continue
		}
		for hop.Next != nil {
			hop = hop.Next
		}
		l.mu.Lock()
		if !slices.Contains(l.kids, hop.KID) {
			l.kids = append(l.kids, hop.KID)
		}
		l.mu.Unlock()
	}
}

const exitDenied = 3 // interfaces.md

// deny has the gateway ask for a token for inventory, which only orders may call.
func (d *demo) deny(ctx context.Context) error {
	token, err := d.login(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, "user.jwt")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		return err
	}
	d.line("asked", "gateway for inventory, with ana's token")
	body, err := d.host.Run(ctx, exitDenied, "-o", "json", "token", "exchange", "--identity", d.identity("gateway"),
		"--subject-token", path, "--audience", "inventory", "--scope", "stock:read")
	if err != nil {
		return err
	}
	if len(body) > 0 {
		return errors.New("something was printed where a token would be")
	}
	var found struct {
		Code      string
		RequestID string `json:"request_id"`
		Detail    struct {
			Steps []sts.Step `json:"steps"`
		}
	}
	if err := d.host.Ask(ctx, &found, "audit", "search", "--type", "token.denied", "--limit", "1"); err != nil {
		return err
	}
	if found.Code != "CS3021" {
		return fmt.Errorf("the denial has the code %q instead of CS3021", found.Code)
	}
	d.line("answer", "invalid_target, and a request id. With that the operator finds the whole decision (%s) in the audit log:", found.Code)
	for _, step := range found.Detail.Steps {
		verdict := "ok"
		if !step.OK {
			verdict = "NO"
		}
		d.say("     %s  %-14s %s %s", verdict, step.Name, step.Msg, step.Rule)
		if step.Hint != "" {
			d.say("         %-14s %s", "", step.Hint)
		}
		if step.Change != nil {
			d.say("         %-14s nearest rule: %s", "", step.Nearest)
			d.say("         %-14s smallest change: %s", "", step.Change)
		}
	}
	return nil
}

func (d *demo) audit(ctx context.Context) error {
	var report struct {
		OK                   bool
		Records, Checkpoints uint64
		Hash                 string
	}
	if err := d.host.Ask(ctx, &report, "audit", "verify"); err != nil {
		return err
	}
	if !report.OK || report.Records == 0 {
		return errors.New("the audit log does not verify")
	}
	d.line("verified", "%d records, %d signed checkpoints, head %s", report.Records, report.Checkpoints, report.Hash)
	return nil
}
