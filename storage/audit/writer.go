package audit

import (
	"context"
	"errors"
	"runtime"
	"time"

	countersign "github.com/countersign/countersign"
)

const (
	maxDrain     = 4 << 20 // bytes of one write
	maxBehind    = 1 << 15 // frames between a checkpoint and what it signs; Verify remembers as many hashes
	signEvery    = 4096    // events after which a checkpoint is due at once
	lookInterval = time.Second
	tickInterval = time.Second
	closeTimeout = 10 * time.Second
	maxGather    = 8
)

var errBehind = errors.New("audit: the checkpoint was signed too long ago")

// writer is the goroutine that owns the segment file. It ends when the queue is over and empty.
func (l *Log) writer() {
	defer close(l.writeDone)
	var batch []*request
	for range l.queue.wake {
		for {
			if l.probe.Swap(false) {
				l.resume()
			}
			l.gather()
			var next int
			batch, next = l.queue.take(batch[:0], min(maxDrain, l.seg.room()))
			if len(batch) == 0 && next == 0 {
				break
			}
			l.drain(batch, next)
		}
		if l.queue.ended() {
			return
		}
	}
}

// gather lets others run first as long as they add to what waits: who is at work has most likely something to say too, and
// with it the next write is worth more. No time is waited for: on an idle machine it returns at once.
func (l *Log) gather() {
	for have, tries := l.queue.depth(), 0; tries < maxGather; tries++ {
		runtime.Gosched()
		now := l.queue.depth()
		if now <= have {
			return
		}
		have = now
	}
}

// drain makes a batch durable and releases who waits for it. An empty one says that a request of next bytes waits which
// does not fit into the segment.
func (l *Log) drain(batch []*request, next int) {
	if t := l.trouble.Load(); t != nil {
		l.refuseWaiting(batch, t)
		return
	}
	begun := time.Now()
	err := l.look(begun)
	if err == nil && len(batch) == 0 {
		if int64(next) > l.seg.room() {
			err = l.roll(l.ahead())
		}
		if err == nil {
			return
		}
	}
	if err == nil {
		err = l.commit(batch, l.ahead())
	}
	if err != nil {
		l.failed(batch, err)
		return
	}
	l.metrics.drain.Observe(time.Since(begun).Seconds())
	for _, r := range batch {
		r.done <- nil
	}
}

func (l *Log) ahead() int64 { return min(step, l.cfg.Segment-headerSize) }

// commit writes the batch behind the head. Crash points: before fdatasync returns, nobody was told anything, and what
// is on the disk is cut off at the next start or becomes part of the log; both are true outcomes for a waiter that died
// with us. After it, the head in memory moves, then the waiters are released.
func (l *Log) commit(batch []*request, ahead int64) error {
	next, events := l.layOut(batch)
	if len(l.out) == 0 {
		return nil
	}
	if err := l.seg.grow(int64(len(l.out)), ahead); err != nil {
		return err
	}
	at := l.seg.off
	if err := l.seg.write(l.out); err != nil {
		return err
	}
	first := l.head.Load().seq + 1
	l.index.wrote(first, at, batch[0].wall)
	l.head.Store(&next)
	l.wakeLoop()
	l.metrics.records.Add(float64(events))
	for _, r := range batch {
		if r.kind == kindCheckpoint && len(r.sums) > 0 {
			l.marked.Store(r.signed)
		}
	}
	if events > 0 {
		l.queue.tellAppended()
		if l.unsigned.Add(int64(events)) >= signEvery {
			l.wantCheckpoint()
		}
	}
	return nil
}

// layOut gives the frames of the batch their places in the chain and puts them, one after the other, into l.out.
func (l *Log) layOut(batch []*request) (next tip, events int) {
	next = *l.head.Load()
	wall := l.cfg.Now().UnixNano()
	mono := time.Since(l.opened).Nanoseconds()
	l.out = l.out[:0]
	for _, r := range batch {
		r.wall, r.seqs, r.sums = wall, next.seq+1, r.sums[:0]
		if r.kind == kindCheckpoint && next.seq-r.signed > maxBehind {
			continue // the log's loop sees that it has no sum and signs again
		}
		begin := 0
		for _, end := range r.ends {
			f := frame{kind: r.kind, seq: next.seq + 1, wall: wall, mono: mono, prev: next.hash}
			next.seq, next.hash = f.seq, f.seal(r.buf[begin:end])
			r.sums = append(r.sums, next.hash)
			begin = end
		}
		l.out = append(l.out, r.buf...)
		if r.kind == kindEvent {
			events += len(r.ends)
			next.event = next.seq
		}
	}
	return next, events
}

// roll ends the segment and begins the next. Crash points: until the new file has its name it is removed at the next
// start; from then on it is the last segment, empty, and knows the hash that it continues.
func (l *Log) roll(ahead int64) error {
	t := l.head.Load()
	last := l.index.last()
	h := header{first: t.seq + 1, prevFirst: last.first, oldest: last.oldest, newest: last.newest, prev: t.hash}
	seg, err := createSegment(l.cfg.Dir, h, l.cfg.Segment, ahead)
	if err != nil {
		return err
	}
	if err := l.seg.finish(); err != nil {
		l.logger.Warn("a full audit segment keeps its zeros", "segment", l.seg.path, "err", err)
	}
	l.seg = seg
	l.index.add(segmentInfo{first: h.first})
	return nil
}

// look sees, at most once a second, that the file still has its name: a log that somebody removed would take records
// that nobody can ever read (vault #31718). Appends are refused from then on; a restart refuses too, since the records
// before the stored head are gone.
func (l *Log) look(now time.Time) error {
	if now.Sub(l.looked) < lookInterval {
		return nil
	}
	if err := l.seg.present(); err != nil {
		return err
	}
	l.looked = now
	return nil
}

// failed answers the batch and all that waits, and decides how to go on: never after a failed fsync, which says nothing
// about what is on the disk; otherwise as soon as resume finds that it works again.
func (l *Log) failed(batch []*request, err error) {
	t := &trouble{err: err, since: l.cfg.Now()}
	var failedSync *syncError
	t.fatal = errors.As(err, &failedSync)
	l.refused.Store(0)
	l.trouble.Store(t)
	l.wakeLoop()
	l.logger.Error("the audit log can't be written; everything that must be recorded is refused", "err", err)
	if t.fatal {
		l.cfg.Fatal(err)
		l.refuseWaiting(batch, t)
		return
	}
	if err := l.seg.mend(); err != nil {
		l.logger.Error("the torn end of the audit log can't be cut off yet", "err", err)
	} else if diskFull(t.err) {
		l.recordFull(t)
	}
	l.refuseWaiting(batch, t)
}

func (l *Log) refuseWaiting(batch []*request, t *trouble) {
	for _, r := range batch {
		l.refused.Add(uint64(len(r.ends)))
		r.done <- l.unavailable(t)
	}
	rest, _ := l.queue.take(nil, maxQueued*2)
	for _, r := range rest {
		l.refused.Add(uint64(len(r.ends)))
		r.done <- l.unavailable(t)
	}
}

// recordFull gives up the reserve so that one last event has room.
func (l *Log) recordFull(t *trouble) {
	if err := l.reserve.giveUp(); err != nil {
		l.logger.Error("the audit log's reserve can't be given up", "err", err)
	}
	err := l.writeOwn(smallStep, Event{
		Type: "audit.disk-full", Outcome: Failed, By: countersign.Daemon("audit log"),
		Detail: map[string]string{"cause": t.err.Error()},
	})
	if err == nil {
		return
	}
	l.logger.Error("not even the full disk can be recorded", "err", err)
	var failedSync *syncError
	if errors.As(err, &failedSync) {
		l.trouble.Store(&trouble{err: err, since: t.since, fatal: true})
		l.cfg.Fatal(err)
		return
	}
	if err := l.seg.mend(); err != nil {
		l.logger.Error("the torn end of the audit log can't be cut off yet", "err", err)
	}
}

// writeOwn appends an event from within the writer.
func (l *Log) writeOwn(ahead int64, e Event) error {
	r := l.newRequest(kindEvent)
	if err := r.addEvent(e); err != nil {
		return err
	}
	if int64(len(r.buf)) > l.seg.room() {
		if err := l.roll(ahead); err != nil {
			return err
		}
	}
	return l.commit([]*request{r}, ahead)
}

// resume sees whether the trouble is over: the file is there, its torn end can be cut off, there is space for the
// reserve and for new records. It then records how long nothing was taken.
func (l *Log) resume() {
	t := l.trouble.Load()
	if t == nil || t.fatal {
		return
	}
	err := l.seg.present()
	if err == nil {
		err = l.seg.mend()
	}
	if err == nil {
		err = l.reserve.hold()
	}
	if err == nil {
		err = l.reserve.roomBeside(l.ahead() + headerSize)
	}
	if err == nil {
		err = l.writeOwn(l.ahead(), Event{
			Type: "audit.resumed", Outcome: OK, By: countersign.Daemon("audit log"),
			Detail: map[string]any{"cause": t.err.Error(), "since": t.since.UTC(), "refused": l.refused.Load()},
		})
	}
	if err == nil {
		l.trouble.Store(nil)
		l.logger.Info("the audit log can be written again", "refused", l.refused.Load())
		return
	}
	l.stillIn(t, err)
}

// stillIn goes on refusing after a failed resume.
func (l *Log) stillIn(t *trouble, err error) {
	var failedSync *syncError
	if errors.As(err, &failedSync) {
		l.trouble.Store(&trouble{err: err, since: t.since, fatal: true})
		l.logger.Error("the audit log can't be written", "err", err)
		l.cfg.Fatal(err)
		return
	}
	if diskFull(err) {
		// What was held of the reserve must not be what stands in the way of the next attempt's event.
		err = errors.Join(err, l.reserve.giveUp())
	}
	l.logger.Debug("the audit log still can't be written", "err", err)
}

// checkpoint signs the head and appends the signature, unless nothing happened since the last one. It runs in the log's
// loop: a slow signer delays checkpoints and nothing else.
func (l *Log) checkpoint(ctx context.Context) error {
	t := l.head.Load()
	signer := l.signer.Load()
	if signer == nil || t.event <= l.marked.Load() {
		return nil
	}
	l.unsigned.Store(0)
	kid, sig, err := (*signer)(checkpointPayload(t.seq, t.hash))
	if err != nil {
		return err
	}
	r := l.newRequest(kindCheckpoint)
	r.signed = t.seq
	if err := r.add(checkpoint{Seq: t.seq, Hash: hexHash(t.hash), KID: kid, Sig: sig}); err != nil {
		return err
	}
	if err := l.submit(ctx, r, true); err != nil {
		return err
	}
	if len(r.sums) == 0 {
		return errBehind
	}
	l.metrics.checkpoint.Set(float64(r.wall) / float64(time.Second))
	return nil
}

func (l *Log) wantCheckpoint() {
	select {
	case l.sign <- struct{}{}:
	default:
	}
}
