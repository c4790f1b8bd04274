package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	countersign "github.com/countersign/countersign"
)

// Log is an open audit log. Its methods are safe for concurrent use.
//
// One goroutine writes: it takes whatever waits in the queue, writes it with one pwrite and one fdatasync, and only
// then releases those who wait. Another one, the log's loop, signs, stores the head, flushes the strangers and removes
// old segments; it appends through the same queue.
type Log struct {
	cfg     Config
	logger  *slog.Logger
	opened  time.Time
	lock    *os.File
	reserve *reserve
	index   index
	metrics *metrics
	pool    sync.Pool // of *request
	signer  atomic.Pointer[Signer]

	head    atomic.Pointer[tip]     // durable
	trouble atomic.Pointer[trouble] // nil: appends are accepted
	refused atomic.Uint64           // appends refused since trouble began
	probe   atomic.Bool             // the writer shall see whether the trouble is over

	queue  queue
	seg    *segment  // of the writer
	out    []byte    // of the writer: the frames of one drain
	looked time.Time // of the writer: when it last saw that the file is still there

	strangers  strangers
	pruning    sync.RWMutex  // held by Verify; retention passes a round
	storedHead uint64        // of the loop, then of Close: the sequence that the store knows
	marked     atomic.Uint64 // the newest sequence that a durable checkpoint signs
	unsigned   atomic.Int64  // events since a checkpoint was last begun
	sign       chan struct{} // cap 1: enough events for a checkpoint
	moved      chan struct{} // cap 1: the loop has something to do
	stop       chan struct{}
	loopDone   chan struct{}
	writeDone  chan struct{}
	closeOnce  sync.Once
	closeErr   error
}

// tip is the newest end of the chain.
type tip struct {
	seq   uint64
	hash  hash
	event uint64 // the newest sequence that is an event's
}

// trouble is why appends are refused at the moment.
type trouble struct {
	err   error
	since time.Time
	fatal bool // an fsync failed; this log never writes again
}

// Open opens the log in cfg.Dir or begins one. It reads the last segment only and cuts off what a crash left behind its
// last whole record, which it logs and records as "audit.torn-tail". A log that does not reach the head that the store
// remembers, or differs from it, is a [*TamperedError]. ctx bounds the opening only.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the audit directory: %w", err)
	}
	if err := syncDir(filepath.Dir(cfg.Dir)); err != nil {
		return nil, fmt.Errorf("make the audit directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg: cfg, logger: cfg.Logger, opened: time.Now(), lock: lock,
		reserve: newReserve(filepath.Join(cfg.Dir, "reserve"), cfg.Reserve),
		sign:    make(chan struct{}, 1), moved: make(chan struct{}, 1), stop: make(chan struct{}),
		loopDone: make(chan struct{}), writeDone: make(chan struct{}),
	}
	l.pool.New = func() any { return &request{done: make(chan error, 1)} }
	l.queue.init(cfg.Queue)
	l.strangers.init()
	l.SetSigner(cfg.Sign)
	torn, err := l.start(ctx)
	if err != nil {
		return nil, errors.Join(err, l.release())
	}
	go l.writer()
	go l.loop()
	if torn != nil {
		l.reportTorn(ctx, torn)
	}
	return l, nil
}

// start does what must be done before anything is written.
func (l *Log) start(ctx context.Context) (*tornTail, error) {
	var err error
	if l.metrics, err = newMetrics(l); err != nil {
		return nil, err
	}
	torn, err := l.recover(ctx)
	if err != nil {
		l.metrics.unregister()
		return nil, err
	}
	if err := l.reserve.hold(); err != nil {
		l.logger.Warn("the space to record a full disk can't be held", "err", err)
	}
	return torn, nil
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Dir == "" || cfg.Store == nil {
		return cfg, errors.New("audit: Dir and Store are required")
	}
	setDefault(&cfg.Segment, defaultSegment)
	setDefault(&cfg.Reserve, defaultReserve)
	setDefault(&cfg.Keep, defaultKeep)
	setDefault(&cfg.Queue, defaultQueue)
	if cfg.Segment < minSegment || cfg.Segment > maxSegment {
		return cfg, fmt.Errorf("audit: a segment has %d to %d bytes, not %d", minSegment, maxSegment, cfg.Segment)
	}
	if cfg.Queue < 1 {
		return cfg, fmt.Errorf("audit: a queue of %d events", cfg.Queue)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { panic(err) }
	}
	return cfg, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// lockDir keeps a second process from writing into the same files.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the audit log: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("the audit log in %s is in use by another process: %w", dir, err), f.Close())
	}
	return f, nil
}

// Head is the newest durable end of the chain.
func (l *Log) Head() Head {
	t := l.head.Load()
	return Head{Seq: t.seq, Hash: hexHash(t.hash)}
}

// Err tells why appends are refused at the moment; nil: they are accepted. It is for readiness checks.
func (l *Log) Err() error {
	if t := l.trouble.Load(); t != nil {
		return l.unavailable(t)
	}
	return nil
}

// SetSigner sets who signs checkpoints from now on; nil: nobody. The keyring is opened after the log, and appends to it.
func (l *Log) SetSigner(sign Signer) {
	if sign == nil {
		l.signer.Store(nil)
		return
	}
	l.signer.Store(&sign)
	l.wakeLoop()
}

// Appended is closed when the next event is durable. Call it, then read, then wait.
func (l *Log) Appended() <-chan struct{} { return l.queue.waitAppended() }

// Close refuses new events, waits for those taken, records the strangers, signs a last checkpoint and stores the head.
// A second Close returns what the first did.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		l.queue.refuse()
		close(l.stop)
		<-l.loopDone
		l.queue.finish()
		<-l.writeDone
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		l.closeErr = errors.Join(l.storeHead(ctx), l.release())
		l.metrics.unregister()
	})
	return l.closeErr
}

// release closes what start or Open opened.
func (l *Log) release() error {
	var err error
	if l.seg != nil {
		err = l.seg.file.Close()
	}
	return errors.Join(err, l.reserve.close(), l.lock.Close())
}

func (l *Log) unavailable(t *trouble) error {
	e := countersign.Errorf(countersign.CodeAudit, "the audit log can't be written").Because(t.err)
	if t.fatal {
		return e.WithHint("the daemon must be restarted; its log has the cause")
	}
	return e.After(retryAfter).WithHint("the daemon's log has the cause; it tries again each second")
}
