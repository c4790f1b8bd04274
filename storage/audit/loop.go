package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	countersign "github.com/countersign/countersign"
)

// loop is the log's own goroutine: a second after something happened, and each second while something is left to do, it
// sees whether trouble is over, signs and stores the head; once a minute it records the strangers and lets old segments
// go. An idle log wakes nobody in between. A failure is logged when it begins and when it ends.
func (l *Log) loop() {
	defer close(l.loopDone)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	minute := time.Now().Add(time.Minute)
	timer := time.NewTimer(tickInterval)
	defer timer.Stop()
	said := make(map[string]bool)
	for ticking := true; ; {
		select {
		case <-l.stop:
			l.do(said, "record the refusals of strangers", l.flushStrangers(ctx))
			l.do(said, "sign the head", l.checkpoint(ctx))
			return
		case <-l.sign:
			l.do(said, "sign the head", l.checkpoint(ctx))
			continue
		case <-l.moved:
			if !ticking {
				ticking = true
				timer.Reset(tickInterval)
			}
			continue
		case <-timer.C:
		}
		if l.trouble.Load() != nil {
			l.probe.Store(true)
			l.queue.wakeUp()
		}
		l.do(said, "sign the head", l.checkpoint(ctx))
		l.do(said, "store the head", l.storeHead(ctx))
		l.do(said, "fill the reserve", l.reserve.fill())
		if !time.Now().Before(minute) {
			l.do(said, "record the refusals of strangers", l.flushStrangers(ctx))
			l.do(said, "remove old segments", l.prune(ctx))
			minute = time.Now().Add(time.Minute)
		}
		// What moves after this look is told by l.moved: it is said after the state has changed.
		wait := time.Until(minute)
		if ticking = l.unsettled(); ticking {
			wait = min(wait, tickInterval)
		}
		timer.Reset(wait)
	}
}

// unsettled tells whether the loop has something left to do that can't wait for the minute.
func (l *Log) unsettled() bool {
	head := l.head.Load()
	return l.trouble.Load() != nil || head.seq != l.storedHead || !l.reserve.full() ||
		l.signer.Load() != nil && head.event > l.marked.Load()
}

// wakeLoop tells the loop that something happened: the head, the trouble or the signer is another one.
func (l *Log) wakeLoop() {
	select {
	case l.moved <- struct{}{}:
	default:
	}
}

func (l *Log) do(said map[string]bool, what string, err error) {
	switch {
	case err != nil && !said[what]:
		l.logger.Warn("the audit log can't "+what+"; it is tried again", "err", err)
	case err == nil && said[what]:
		l.logger.Info("the audit log can " + what + " again")
	}
	said[what] = err != nil
}

// storeHead puts the head into the store if it moved since the last time.
func (l *Log) storeHead(ctx context.Context) error {
	head := l.Head()
	if head.Seq == l.storedHead {
		return nil
	}
	if err := putHead(ctx, l.cfg.Store, head); err != nil {
		return fmt.Errorf("store the head of the audit log: %w", err)
	}
	l.storedHead = head.Seq
	return nil
}

// pruned is the Detail of an "audit.pruned" event: the records from First to Last are gone, and Hash is what the record
// after them continues. Verify needs it to begin there.
type pruned struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Hash  string `json:"hash"`
}

// prune lets the oldest segments go whose newest record is older than Config.Keep, but no more than a hundredth of
// them, or one, at a time: a clock that jumps ahead by years must not take the history with it before somebody notices.
//
// Crash points: the event is durable, then the store knows the new beginning, then files go, oldest first, so that
// what is left is always the end of the log. After a crash in between, the next round does the same again.
func (l *Log) prune(ctx context.Context) error {
	if l.cfg.Keep < 0 || l.trouble.Load() != nil || !l.pruning.TryLock() {
		return nil
	}
	defer l.pruning.Unlock()
	segs := l.index.all()
	limit := l.cfg.Now().Add(-l.cfg.Keep).UnixNano()
	n := 0
	for n < len(segs)-1 && n < max(1, len(segs)/100) && segs[n].newest < limit {
		n++
	}
	if n == 0 {
		return nil
	}
	next, err := readHeader(l.cfg.Dir, segs[n].first)
	if err != nil {
		return err
	}
	gone := pruned{First: segs[0].first, Last: next.first - 1, Hash: hexHash(next.prev)}
	err = l.appendOwn(ctx, Event{
		Type: "audit.pruned", Outcome: OK, By: countersign.Daemon("audit log"),
		Subject: fmt.Sprintf("%d-%d", gone.First, gone.Last), Detail: gone,
	})
	if err != nil {
		return err
	}
	if err := putBase(ctx, l.cfg.Store, base{First: next.first}); err != nil {
		return err
	}
	l.index.dropFirst(n)
	return l.remove(segs[:n])
}

func (l *Log) remove(segs []segmentInfo) error {
	for _, s := range segs {
		err := os.Remove(filepath.Join(l.cfg.Dir, segmentName(s.first)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(l.cfg.Dir)
}
