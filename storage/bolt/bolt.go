// Package bolt is the embedded engine of [storage.Store]: one bbolt file, one writer that commits for many callers.
//
// It never answers a write before its fdatasync, nor a read whose commit isn't durable yet. It never retries a failed
// fsync, never hands out a record whose checksum does not fit, and never repairs a damaged file: it refuses.
//
// What it can promise of a file that lost bits: no value that was not written under its key, by its table; and, when it is
// opened, that no record is missing and, unless others are damaged, none is older than the last commit: by the seal that
// each commit writes. A file that loses bits while it is open may lack records; absence must not mean yes.
//
// Read transactions are short, because bbolt frees no page that an open one might see, and waits for them when it maps a
// larger file. Only [Store.Backup] holds one for long, as long as copying the file takes.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/countersign/countersign/storage"
)

const (
	defaultLockTimeout = 2 * time.Second
	mapSize            = 1 << 30 // bytes of address space, not of memory; up to it a reader never delays a writer
)

// Config is what [Open] needs.
type Config struct {
	Path        string           // of the database file, which is made (mode 0600) if it does not exist
	LockTimeout time.Duration    // how long to wait for another process to let go of the file; 0: 2 s
	Now         func() time.Time // decides expiry; nil: time.Now
	// Fatal is called once, after a failed fsync or any other commit error that isn't a full disk: what is on the disk
	// is unknown from then on. It must not return in production; nil panics. If it returns, callers in that commit get
	// storage.ErrUnknown and the store is closed to all others.
	Fatal  func(error)
	Logger *slog.Logger // nil: none
}

// Store is a [storage.Store]; make one with [Open].
type Store struct {
	now     func() time.Time
	onFatal func(error)
	log     *slog.Logger
	db      *bbolt.DB
	dir     string
	watch   watch
	queue   queue
	gate    gate
	changes changes
	rev     uint64        // the last revision given out; the writer's own
	sums    sums          // of the seal; the writer's own
	full    atomic.Bool   // the last commit met a full disk; only to log the change
	fatal   sync.Once     // guards onFatal
	stopped chan struct{} // closed when the writer has ended
	closing sync.Once
	closed  error // of closing
}

var _ storage.Store = (*Store)(nil)

// Open opens or makes the store at cfg.Path and starts its writer. A file in use is a [*LockedError]; a damaged one is
// storage.ErrCorrupt, and nothing has been written to it. It reads all pages once, so the time grows with the file.
func Open(cfg Config) (*Store, error) {
	if cfg.Path == "" {
		return nil, errors.New("storage/bolt: Config.Path is empty")
	}
	s := &Store{now: cfg.Now, onFatal: cfg.Fatal, log: cfg.Logger, stopped: make(chan struct{})}
	if s.now == nil {
		s.now = time.Now
	}
	if s.onFatal == nil {
		s.onFatal = func(err error) { panic(err) }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.LockTimeout <= 0 {
		cfg.LockTimeout = defaultLockTimeout
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.dir = filepath.Dir(path)
	if err := create(path); err != nil {
		return nil, fmt.Errorf("create store %s: %w", path, err)
	}
	if s.db, s.sums, err = open(path, cfg.LockTimeout); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.load(path); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), s.db.Close())
	}
	s.queue.init()
	s.gate.init(s.gate.durable)
	go s.write()
	return s, nil
}

// create makes a complete empty store at path unless something is there. The file appears under its name only when
// it is durable, so a crash leaves either nothing or a store, and two processes that create don't meet.
func create(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".store-*.new") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) //nolint:errcheck // a left-over is harmless
	if err := file.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(file.Name(), 0o600, options(0))
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error { return newTxn(tx, time.Time{}, 0, sums{}).saveRev() })
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// options without freelist on disk: bbolt would write the whole list in each commit.
func options(timeout time.Duration) *bbolt.Options {
	return &bbolt.Options{
		Timeout:         timeout,
		NoFreelistSync:  true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapSize,
		NoStatistics:    true,
	}
}

// open locks and checks the file before bbolt reads it, because bbolt walks it in a goroutine of its own, where a
// damaged page ends the process.
func open(path string, timeout time.Duration) (db *bbolt.DB, found sums, err error) {
	var file *os.File
	defer func() {
		if err != nil && file != nil {
			file.Close() //nolint:errcheck,gosec // the error to tell is err
		}
	}()
	defer protect(&err)()
	o := options(timeout)
	o.OpenFile = func(name string, flag int, _ os.FileMode) (*os.File, error) {
		f, err := openLocked(name, flag&^os.O_CREATE, timeout, &file)
		if err != nil {
			return nil, err
		}
		if found, err = checkStructure(f); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return f, nil
	}
	db, err = bbolt.Open(path, 0o600, o)
	return db, found, err
}

// openLocked opens the file and locks it. While it waited for the lock, [Compact] may have put another file in its place: then
// the lock is that of a file without a name, to which nothing may be written. opened is closed by the caller after an error.
func openLocked(name string, flag int, timeout time.Duration, opened **os.File) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, flag, 0)
		if err != nil {
			return nil, err
		}
		*opened = f
		if err := lock(f, timeout); err != nil {
			return nil, err
		}
		have, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if now, err := os.Stat(name); err != nil || os.SameFile(have, now) {
			return f, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		*opened = nil
	}
}

// load reads the counter of revisions and the last transaction.
func (s *Store) load(path string) (err error) {
	defer protect(&err)()
	if err := s.watch.open(path, s.db.Info().PageSize); err != nil {
		return err
	}
	tx, err := s.begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // of a read transaction
	s.gate.durable = tx.ID()
	s.rev, err = loadRev(tx)
	return err
}

// begin is called under protect.
func (s *Store) begin(writable bool) (*bbolt.Tx, error) {
	if err := s.watch.check(); err != nil {
		return nil, err
	}
	tx, err := s.db.Begin(writable)
	if errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
		return nil, storage.ErrClosed
	}
	return tx, err
}

// Now is the time of the store's clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	return s.now(), nil
}

// Changed is closed at the next change of table; see [storage.Store].
func (s *Store) Changed(table string) <-chan struct{} { return s.changes.next(table) }

// Close refuses new batches and those that wait, ends when the ones taken up are answered, and lets go of the file.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.queue.close(storage.ErrClosed)
		<-s.stopped
		s.closed = errors.Join(s.db.Close(), s.watch.close())
		s.changes.close()
	})
	return s.closed
}
