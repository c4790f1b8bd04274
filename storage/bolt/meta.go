package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
	"sync"
	"syscall"

	"github.com/countersign/countersign/storage"
)

// The first two pages of a bbolt file, version 2 (bbolt, internal/common); integers are in the machine's byte order.
const (
	pageHeader  = 16 // id u64, flags u16, count u16, overflow u32
	metaSize    = 64
	metaSummed  = 56
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	noFreelist  = ^uint64(0)
)

var order = binary.NativeEndian

type meta struct {
	pageSize uint64
	root     uint64
	freelist uint64
	hwm      uint64 // the first page that isn't in use
	txid     uint64
}

// readMetas gives the newer of the two meta pages.
func readMetas(data []byte) (meta, error) {
	first, err := readMeta(data)
	if err != nil {
		return meta{}, fmt.Errorf("first meta page: %w", err)
	}
	if first.pageSize < 1024 || first.pageSize > 64<<10 || first.pageSize*2 > uint64(len(data)) {
		return meta{}, fmt.Errorf("%w: page size %d", storage.ErrCorrupt, first.pageSize)
	}
	second, err := readMeta(data[first.pageSize:])
	if err != nil {
		return meta{}, fmt.Errorf("second meta page: %w", err)
	}
	last := first
	if second.txid > first.txid {
		last = second
	}
	if first.pageSize != second.pageSize || last.freelist != noFreelist {
		return meta{}, fmt.Errorf("%w: written by something else", storage.ErrCorrupt)
	}
	return last, nil
}

func readMeta(page []byte) (meta, error) {
	b := page[pageHeader : pageHeader+metaSize]
	h := fnv.New64a()
	h.Write(b[:metaSummed])
	if order.Uint32(b) != metaMagic || order.Uint32(b[4:]) != metaVersion || order.Uint64(b[metaSummed:]) != h.Sum64() {
		return meta{}, fmt.Errorf("%w: does not fit its checksum", storage.ErrCorrupt)
	}
	return meta{
		pageSize: uint64(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		hwm:      order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}, nil
}

// watch looks at the meta pages before each transaction begins. With both lost bbolt panics while it holds its locks, and
// each later call would wait for ever (v1.5.0, beginTx).
type watch struct {
	mu       sync.RWMutex
	data     []byte // nil: closed
	pageSize int
}

func (w *watch) open(path string, pageSize int) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read; the map outlives it
	w.pageSize = pageSize
	w.data, err = syscall.Mmap(int(file.Fd()), 0, 2*pageSize, syscall.PROT_READ, syscall.MAP_SHARED)
	return err
}

// check is called under protect: the pages of a file that was cut off fault. A commit changes one page at a time, so a
// half-written one is no alarm.
func (w *watch) check() error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.data == nil {
		return storage.ErrClosed
	}
	if _, err := readMeta(w.data); err == nil {
		return nil
	}
	if _, err := readMeta(w.data[w.pageSize:]); err != nil {
		return fmt.Errorf("both meta pages: %w", err)
	}
	return nil
}

func (w *watch) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	data := w.data
	w.data = nil
	return syscall.Munmap(data)
}
