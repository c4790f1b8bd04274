package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/countersign/countersign/storage"
)

// The format of the other pages; see meta.go.
const (
	elementSize   = 16 // branch: pos u32, ksize u32, page u64; leaf: flags u32, pos u32, ksize u32, vsize u32
	bucketHeader  = 16 // root page u64, sequence u64; root 0: the page follows
	branchPage    = 1
	leafPage      = 2
	bucketElement = 1
	maxDepth      = 64
)

// structure walks the pages of one file.
type structure struct {
	data    []byte
	meta    meta
	visited []uint64 // one bit for each page

	table       string // whose bucket is walked
	seen, known int    // its records, and whether one of them was found to be of that table

	sums    sums
	seal    []byte // the record that holds it, nil: none was found
	decode  bool   // whether each record is held to its checksum, which takes time
	damaged int    // records that do not fit theirs, if decode

	visit func(table, key string, value []byte) error // told of each record; nil: nobody
}

// checkStructure walks the whole file as bbolt will: each page in bounds, of the kind expected and used once, each
// element within its page, keys in order. Both meta pages must be whole: bbolt would go on with the older one, and that
// would take back the last commit. (A meta page is written in one sector, a crash does not tear it.)
func checkStructure(file *os.File) (found sums, err error) {
	info, err := file.Stat()
	if err != nil {
		return sums{}, err
	}
	if info.Size() < 4*1024 {
		return sums{}, fmt.Errorf("%w: the file has only %d bytes", storage.ErrCorrupt, info.Size())
	}
	data, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return sums{}, fmt.Errorf("map: %w", err)
	}
	defer func() { err = errors.Join(err, syscall.Munmap(data)) }()
	return checkPages(data)
}

// checkPages walks the pages of a file and gives the sums of what is there; the map of a file that is cut off
// meanwhile faults.
func checkPages(data []byte) (found sums, err error) {
	defer protect(&err)()
	s := structure{data: data}
	if s.meta, err = readMetas(data); err != nil {
		return sums{}, err
	}
	if s.meta.hwm > uint64(len(data))/s.meta.pageSize {
		return sums{}, fmt.Errorf("%w: the file is cut off", storage.ErrCorrupt)
	}
	if err := s.all(); err != nil || s.seal == nil {
		return sums{}, err // a file without a last revision is refused when that is read
	}
	return s.sums, s.unseal()
}

// all walks the whole file.
func (s *structure) all() error {
	s.visited = make([]uint64, s.meta.hwm/64+1)
	s.visited[0] = 3 // the meta pages
	_, err := s.walk(s.meta.root, nil, nil, 0, true)
	return err
}

// unseal holds what the walk found to the seal. A record that does not fit its checksum may have lost its part of the sum:
// it is refused when it is read, and the seal is no reason to refuse all the others.
func (s *structure) unseal() error {
	want, err := decodeSeal(s.seal)
	if err != nil {
		return err
	}
	if want.txid != s.meta.txid {
		return fmt.Errorf("%w: the seal is of transaction %d, the file of %d", storage.ErrCorrupt, want.txid, s.meta.txid)
	}
	if s.sums == want.sums {
		return nil
	}
	if s.sums.keys != want.sums.keys {
		return fmt.Errorf("%w: records are missing, or have another key than they were written with", storage.ErrCorrupt)
	}
	again := structure{data: s.data, meta: s.meta, decode: true}
	if err := again.all(); err != nil {
		return err
	}
	if again.damaged == 0 {
		return fmt.Errorf("%w: records are older than the last commit", storage.ErrCorrupt)
	}
	return nil
}

// page checks the header of page id and gives the whole page.
func (s *structure) page(id uint64) ([]byte, error) {
	if id < 2 || id >= s.meta.hwm {
		return nil, fmt.Errorf("%w: page %d is out of bounds", storage.ErrCorrupt, id)
	}
	b := s.data[id*s.meta.pageSize:]
	flags, span := order.Uint16(b[8:]), uint64(order.Uint32(b[12:]))+1
	if order.Uint64(b) != id || flags != branchPage && flags != leafPage || span > s.meta.hwm-id {
		return nil, fmt.Errorf("%w: page %d has a wrong header", storage.ErrCorrupt, id)
	}
	for i := id; i < id+span; i++ {
		if s.visited[i/64]&(1<<(i%64)) != 0 {
			return nil, fmt.Errorf("%w: page %d is used twice", storage.ErrCorrupt, i)
		}
		s.visited[i/64] |= 1 << (i % 64)
	}
	return b[:span*s.meta.pageSize], nil
}

// walk checks the tree below page id, whose keys lie from least (included) to limit (not included), and gives the last
// one. Only the top tree holds buckets.
func (s *structure) walk(id uint64, least, limit []byte, depth int, top bool) (last []byte, err error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: page %d is too deep", storage.ErrCorrupt, id)
	}
	page, err := s.page(id)
	if err != nil {
		return nil, err
	}
	if order.Uint16(page[8:]) == leafPage {
		return s.leaf(page, least, limit, top)
	}
	keys, err := branchKeys(page, id)
	if err != nil {
		return nil, err
	}
	last = least
	for i, key := range keys {
		if !inOrder(i, last, key, limit) {
			return nil, fmt.Errorf("%w: page %d is out of order", storage.ErrCorrupt, id)
		}
		end := limit
		if i+1 < len(keys) {
			end = keys[i+1]
		}
		child := order.Uint64(page[pageHeader+i*elementSize+8:])
		if last, err = s.walk(child, key, end, depth+1, top); err != nil {
			return nil, err
		}
	}
	return last, nil
}

func inOrder(i int, previous, key, limit []byte) bool {
	c := bytes.Compare(previous, key)
	return (c < 0 || c == 0 && i == 0 || previous == nil) && (limit == nil || bytes.Compare(key, limit) < 0)
}

func branchKeys(page []byte, id uint64) ([][]byte, error) {
	count := int(order.Uint16(page[10:]))
	if count == 0 || pageHeader+count*elementSize > len(page) {
		return nil, fmt.Errorf("%w: page %d has %d elements", storage.ErrCorrupt, id, count)
	}
	keys := make([][]byte, count)
	for i := range keys {
		at := pageHeader + i*elementSize
		key, _, ok := element(page, at, order.Uint32(page[at:]), order.Uint32(page[at+4:]), 0)
		if !ok {
			return nil, fmt.Errorf("%w: page %d, element %d", storage.ErrCorrupt, id, i)
		}
		keys[i] = key
	}
	return keys, nil
}

// element cuts key and value out of page; pos counts from the element at offset at.
func element(page []byte, at int, pos, ksize, vsize uint32) (key, value []byte, ok bool) {
	start := uint64(at) + uint64(pos) //nolint:gosec // at is an offset
	middle := start + uint64(ksize)
	end := middle + uint64(vsize)
	if ksize == 0 || end > uint64(len(page)) {
		return nil, nil, false
	}
	return page[start:middle], page[middle:end], true
}

func (s *structure) leaf(page []byte, least, limit []byte, top bool) (last []byte, err error) {
	id, count := order.Uint64(page), int(order.Uint16(page[10:]))
	if pageHeader+count*elementSize > len(page) {
		return nil, fmt.Errorf("%w: page %d has %d elements", storage.ErrCorrupt, id, count)
	}
	last = least
	next := pageHeader + count*elementSize
	if count == 0 && len(bytes.Trim(page[next:], "\x00")) > 0 {
		return nil, fmt.Errorf("%w: page %d is not empty", storage.ErrCorrupt, id)
	}
	for i := range count {
		at := pageHeader + i*elementSize
		// bbolt leaves no gaps: where one is, the count is wrong, and records would be missing.
		if at+int(order.Uint32(page[at+4:])) != next {
			return nil, fmt.Errorf("%w: page %d has a gap before element %d", storage.ErrCorrupt, id, i)
		}
		flags := order.Uint32(page[at:])
		key, value, ok := element(page, at, order.Uint32(page[at+4:]), order.Uint32(page[at+8:]), order.Uint32(page[at+12:]))
		if !ok || !inOrder(i, last, key, limit) || (flags == bucketElement) != top || flags > bucketElement {
			return nil, fmt.Errorf("%w: page %d, element %d", storage.ErrCorrupt, id, i)
		}
		next += len(key) + len(value)
		if top {
			if err := s.bucket(string(key), value); err != nil {
				return nil, err
			}
		} else {
			s.record(string(key), value)
			if s.visit != nil {
				if err := s.visit(s.table, string(key), value); err != nil {
					return nil, err
				}
			}
		}
		last = key
	}
	return last, nil
}

// record notes one record of the table that is walked.
func (s *structure) record(key string, value []byte) {
	s.seen++
	switch s.table {
	case metaBucket:
		if key == revKey {
			s.seal = value
		}
	case expiryBucket: // an index; Prune holds it to the records
	default:
		s.sums.record(value)
		s.sums.key(s.table, key)
		if !s.decode && s.known > 0 {
			return
		}
		if _, err := decodeRecord(s.table, key, value); err == nil {
			s.known = 1
		} else {
			s.damaged++
		}
	}
}

// bucket checks the tree of a table, and that its records are of that table: under a name that is damaged they would be
// missing.
func (s *structure) bucket(name string, value []byte) error {
	s.table, s.seen, s.known = name, 0, 0
	if err := s.tree(value); err != nil {
		return err
	}
	if name[0] != '.' && s.seen > 0 && s.known == 0 {
		return fmt.Errorf("%w: no record of the table %q is of that table", storage.ErrCorrupt, name)
	}
	return nil
}

// tree checks a tree of its own, or a small one that lies inside the element.
func (s *structure) tree(value []byte) error {
	if len(value) < bucketHeader {
		return fmt.Errorf("%w: a bucket has no header", storage.ErrCorrupt)
	}
	root, inline := order.Uint64(value), value[bucketHeader:]
	if root != 0 {
		_, err := s.walk(root, nil, nil, 1, false)
		return err
	}
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != leafPage {
		return fmt.Errorf("%w: a small bucket has no page", storage.ErrCorrupt)
	}
	_, err := s.leaf(inline, nil, nil, false)
	return err
}
