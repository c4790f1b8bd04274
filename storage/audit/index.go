package audit

import (
	"slices"
	"sync"
)

// markEvery is the distance of the marks of the newest segment, in bytes: a reader that follows the log begins at most
// so far before what is new.
const markEvery = 64 << 10

// segmentInfo is what is known of a segment without reading it.
type segmentInfo struct {
	first          uint64
	oldest, newest int64  // wall clocks, Unix nanoseconds; 0: no frame yet
	marks          []mark // of segments that this process wrote to or scanned; ascending
}

// mark is where a frame begins.
type mark struct {
	seq    uint64
	offset int64
}

// index knows the segments, oldest first. The last one is written.
type index struct {
	mu       sync.RWMutex
	segments []segmentInfo
}

// all is a copy; the marks are shared, and only ever appended to.
func (x *index) all() []segmentInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.segments)
}

func (x *index) last() segmentInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.segments[len(x.segments)-1]
}

func (x *index) add(s segmentInfo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := len(x.segments); n > 1 {
		x.segments[n-2].marks = nil // the newest two keep theirs
	}
	x.segments = append(x.segments, s)
}

// dropFirst forgets the n oldest.
func (x *index) dropFirst(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segments = slices.Delete(x.segments, 0, n)
}

// has tells whether the segment that begins with first was not removed.
func (x *index) has(first uint64) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.ContainsFunc(x.segments, func(s segmentInfo) bool { return s.first == first })
}

// scanned sets what a scan of the segment found.
func (x *index) scanned(first uint64, found segmentInfo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.segments {
		if x.segments[i].first == first {
			found.first = first
			x.segments[i] = found
		}
	}
}

// wrote notes a frame at offset of the last segment, the first of a drain at the time wall.
func (x *index) wrote(seq uint64, offset, wall int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segments[len(x.segments)-1].note(seq, offset, wall)
}

func (s *segmentInfo) note(seq uint64, offset, wall int64) {
	if s.oldest == 0 || wall < s.oldest {
		s.oldest = wall
	}
	if s.newest == 0 || wall > s.newest {
		s.newest = wall
	}
	if n := len(s.marks); n == 0 || offset-s.marks[n-1].offset >= markEvery {
		s.marks = append(s.marks, mark{seq, offset})
	}
}

// from is the newest mark at or before seq; without marks the segment's beginning.
func (s *segmentInfo) from(seq uint64) mark {
	m := mark{s.first, headerSize}
	if i, ok := slices.BinarySearchFunc(s.marks, seq, func(m mark, seq uint64) int {
		if m.seq <= seq {
			return -1
		}
		return 1
	}); !ok && i > 0 {
		m = s.marks[i-1]
	}
	return m
}
