package sts

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

func values(t testing.TB, c feedClaims) []string {
	t.Helper()
	var all []string
	for _, raw := range c.Revocations {
		var e feedEntry
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Value)
	}
	return all
}

// The feed is one page from memory until something happens, and then has it at once.
func TestFeed(t *testing.T) {
	h := openHouse(t)
	empty := h.page(0)
	if empty.Issuer != us || empty.Expires-empty.IssuedAt != 300 || empty.IssuedAt != h.now().Unix() || empty.Cursor != 0 || empty.More || empty.Revocations == nil {
		t.Errorf("%+v", empty)
	}
	one, err := h.Feed(0)
	two, _ := h.Feed(0)
	if err != nil || one.ETag != two.ETag || string(one.Body) != string(two.Body) || !strings.HasPrefix(one.ETag, `"`) {
		t.Errorf("the page is made anew: %v", err)
	}
	h.pass(time.Second)
	made := h.revoke(RevokeRequest{Subject: "alice@shop.example"})
	page := h.page(0)
	if strings.Contains(string(page.Revocations[0]), "alice") || page.Cursor != made.Made.UnixMicro() {
		t.Errorf("%s, %d", page.Revocations, page.Cursor)
	}
	var e feedEntry
	if err := json.Unmarshal(page.Revocations[0], &e); err != nil || e.Value != countersign.RevokedSubject("alice@shop.example") ||
		e.Before != h.now().Unix() || e.Until != h.now().Unix()+3600+120 {
		t.Errorf("%+v, %v", e, err)
	}
	// Behind its cursor everything of the last 5 s comes again, and nothing older.
	h.pass(time.Second)
	h.revoke(RevokeRequest{JTI: "x"})
	if got := values(t, h.page(page.Cursor)); len(got) != 2 || got[1] != "x" {
		t.Errorf("%v", got)
	}
	h.pass(5 * time.Second)
	last := h.revoke(RevokeRequest{Transaction: "y"})
	if got := values(t, h.page(last.Made.UnixMicro())); !slices.Equal(got, []string{"y"}) {
		t.Errorf("%v", got)
	}
	if got := values(t, h.page(1<<60)); len(got) != 3 {
		t.Errorf("with a cursor from the future: %v", got)
	}
	// The time of the last change but one is over: names go when all tokens with them are, subjects after an hour.
	h.pass(time.Hour + time.Minute)
	if got := values(t, h.page(0)); len(got) != 3 {
		t.Errorf("%v", got)
	}
	h.pass(2 * time.Minute)
	if got := values(t, h.page(0)); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if list, _, _ := h.Revocations(t.Context(), time.Time{}, 10); len(list) != 1 {
		t.Errorf("the subject is not revoked for subject tokens any more: %+v", list)
	}
}

// A page is not kept when its key leaves, nor for long.
func TestFeedIsSignedAnew(t *testing.T) {
	h := openHouse(t)
	one, err := h.Feed(0)
	if err != nil {
		t.Fatal(err)
	}
	h.pass(9 * time.Second)
	if two, _ := h.Feed(0); two.ETag != one.ETag {
		t.Error("signed anew without need")
	}
	h.pass(time.Second)
	two, err := h.Feed(0)
	if err != nil || two.ETag == one.ETag {
		t.Errorf("the same after 10 s: %v", err)
	}
	token, err := jwt.Parse(string(two.Body))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ring.Retire(t.Context(), countersign.Daemon("test"), token.KID, keyring.RetireOptions{Compromised: true}); err != nil {
		t.Fatal(err)
	}
	h.page(0) // verifies by the keys that are served
}

// A page is no access token, and an access token no page; introspection and revocation take neither for the other.
func TestFeedIsNoToken(t *testing.T) {
	h := openHouse(t)
	page, err := h.Feed(0)
	if err != nil {
		t.Fatal(err)
	}
	h.refuses("as a subject token", as("orders"), exchangeOf(string(page.Body), "inventory"), countersign.CodeSubjectKind)
	if got := h.introspect(operator(), string(page.Body)); len(got) != 1 || got["active"] != false {
		t.Errorf("%v", got)
	}
	if err := h.RevokeToken(t.Context(), as("gateway"), TokenForm{Token: string(page.Body)}); codeOf(err) != countersign.CodeTokenKind {
		t.Errorf("%v", err)
	}
}

// What is being stored does not get passed by a cursor.
func TestFeedWaitsForWhatIsPending(t *testing.T) {
	h := openHouse(t)
	slow, err := h.revocations.begin(revocation{Revocation: countersign.Revocation{Kind: countersign.RevokeJTI, Value: "slow"}}, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	h.pass(time.Minute)
	h.revoke(RevokeRequest{JTI: "fast"})
	page := h.page(0)
	if got := values(t, page); !slices.Equal(got, []string{"fast"}) || page.Cursor >= slow.Made {
		t.Errorf("%v, the cursor is %d", got, page.Cursor)
	}
	h.pass(time.Second)
	h.revocations.end(slow, slow.revocation)
	if got := values(t, h.page(page.Cursor)); !slices.Equal(got, []string{"slow", "fast"}) {
		t.Errorf("%v", got)
	}
}

// Who follows the cursors gets everything, in pages under 512 KiB, however many revocations there are and whenever they come.
func TestFeedPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := noon
		var list []kept
		add := func(n int) {
			step := rapid.SampledFrom([]time.Duration{time.Microsecond, time.Millisecond, 200 * time.Millisecond}).Draw(t, "step")
			for range n {
				now = now.Add(step)
				value := fmt.Sprint(len(list), "-", strings.Repeat("v", rapid.SampledFrom([]int{0, maxName}).Draw(t, "size")))
				list = append(list, kept{made: now.UnixMicro() + int64(len(list)), Revocation: countersign.Revocation{
					Kind: countersign.RevokeJTI, Value: value, Until: noon.Add(24 * time.Hour),
				}})
			}
		}
		got, since := map[string]bool{}, int64(0)
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			add(rapid.IntRange(0, 1200).Draw(t, "n"))
			for pages := 0; ; pages++ {
				whole := int64(0)
				if len(list) > 0 {
					whole = list[len(list)-1].made
				}
				claims, err := feedClaimsOf(list, whole, since, now)
				if err != nil || pages > 50 {
					t.Fatalf("%d pages, %v", pages, err)
				}
				raw, err := json.Marshal(claims)
				if err != nil || len(raw)*4/3+500 > jwt.MaxDocument {
					t.Fatalf("a page of %d bytes, %v", len(raw), err)
				}
				for _, r := range claims.Revocations {
					var e feedEntry
					if err := json.Unmarshal(r, &e); err != nil {
						t.Fatal(err)
					}
					got[e.Value] = true
				}
				if since = claims.Cursor; !claims.More {
					break
				}
			}
			if len(got) != len(list) {
				t.Fatalf("%d of %d", len(got), len(list))
			}
		}
	})
}

// A page that is cut beyond what is known to be whole begins there again: what is still missing before its end is not passed over.
func TestFeedPageCutBeyondTheWhole(t *testing.T) {
	var list []kept
	for i := range 2000 {
		list = append(list, kept{made: noon.UnixMicro() + int64(i), Revocation: countersign.Revocation{
			Kind: countersign.RevokeJTI, Value: strings.Repeat("v", maxName), Until: noon.Add(24 * time.Hour),
		}})
	}
	whole := noon.UnixMicro() + 5
	claims, err := feedClaimsOf(list, whole, 0, noon.Add(time.Minute))
	if err != nil || len(claims.Revocations) == len(list) {
		t.Fatalf("%d revocations, %v: the page is not cut", len(claims.Revocations), err)
	}
	if claims.Cursor != whole || claims.More {
		t.Errorf("the cursor is %d beyond what is whole, more: %t", claims.Cursor-whole, claims.More)
	}
}

// Who asks with numbers that are no cursors holds up himself: those who follow the feed are answered meanwhile, from pages that
// stay.
func TestFeedInAFlood(t *testing.T) {
	h := openHouse(t)
	h.revoke(RevokeRequest{JTI: "x"})
	begin := h.page(0)
	first, err := h.Feed(0)
	if err != nil {
		t.Fatal(err)
	}
	poll, err := h.Feed(begin.Cursor)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		if got := h.page(noon.UnixMicro() + int64(i)); got.Cursor != begin.Cursor {
			t.Fatalf("%d: the cursor is %d", i, got.Cursor)
		}
	}
	if len(h.feed.pages) > maxPages || len(h.feed.granted) > maxGranted {
		t.Errorf("%d pages, %d cursors", len(h.feed.pages), len(h.feed.granted))
	}
	for since, want := range map[int64]FeedPage{0: first, begin.Cursor: poll} {
		if got, err := h.Feed(since); err != nil || got.ETag != want.ETag {
			t.Errorf("the page since %d was made anew: %v", since, err)
		}
	}

	h.feed.odd.Lock() // a page for a stranger takes for ever
	answers := make(chan error)
	for i := range maxOdd + 10 {
		go func() {
			_, err := h.Feed(1 + int64(i))
			answers <- err
		}()
	}
	for range 10 {
		if err := <-answers; codeOf(err) != countersign.CodeBusy {
			t.Errorf("beyond the bound: %v", err)
		}
	}
	for _, since := range []int64{0, begin.Cursor} {
		if _, err := h.Feed(since); err != nil {
			t.Error(err)
		}
	}
	h.feed.odd.Unlock()
	for range maxOdd {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

// After a restart a poller comes with a cursor that this process did not give; it is answered, and is one of many from then on.
func TestFeedAfterARestart(t *testing.T) {
	h := openHouse(t)
	h.revoke(RevokeRequest{JTI: "x"})
	cursor := h.page(0).Cursor
	h.again(h.store)
	if h.feed.knows(cursor) {
		t.Fatal("this shows nothing")
	}
	if got := values(t, h.page(cursor)); !slices.Equal(got, []string{"x"}) || !h.feed.knows(cursor) {
		t.Errorf("%v, granted %v", got, h.feed.granted)
	}
}

// Memory is bounded also for who follows the cursors: each revocation gives another one.
func TestFeedPagesAreBounded(t *testing.T) {
	h := openHouse(t)
	since := int64(0)
	for i := range maxGranted + maxPages {
		h.revoke(RevokeRequest{JTI: fmt.Sprint(i)})
		h.pass(time.Second)
		since = h.page(since).Cursor
	}
	if len(h.feed.pages) > maxPages || len(h.feed.granted) > maxGranted || !h.feed.knows(since) {
		t.Errorf("%d pages, %d cursors", len(h.feed.pages), len(h.feed.granted))
	}
}

// What surfaces at a restart is shown to pollers whose cursor is long past its making.
func TestFeedShowsWhatSurfaced(t *testing.T) {
	for name, lose := range map[string]func(h *house){
		"a crash between intent and record": func(h *house) {
			h.hook(func() error { return storage.ErrUnknown }, nil)
			if _, err := h.Revoke(t.Context(), operator(), RevokeRequest{JTI: "lost"}); codeOf(err) != countersign.CodeUnknownOutcome {
				t.Fatal(err)
			}
			h.cfg.Store = h.store
		},
		"a store from an older backup": func(h *house) {
			h.revoke(RevokeRequest{JTI: "lost"})
			if _, err := h.store.Apply(t.Context(), revocationsTable().Delete("jti/lost", storage.Cond{})); err != nil {
				t.Fatal(err)
			}
		},
	} {
		h := openHouse(t)
		lose(h)
		h.pass(10 * time.Minute)
		h.revoke(RevokeRequest{JTI: "later"})
		cursor := h.page(0).Cursor
		h.pass(time.Minute)
		for range 2 {
			h.again(h.store)
			if got := values(t, h.page(cursor)); !slices.Equal(got, []string{"later", "lost"}) {
				t.Errorf("%s: since %d there is %v", name, cursor, got)
			}
		}
		if n := len(h.outcomes()); n != 4 && n != 5 { // two intents with an outcome each, and "recovered" where the outcome was there
			t.Errorf("%s: %v", name, h.outcomes())
		}
	}
}
