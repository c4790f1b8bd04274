package audit

import (
	"bytes"
	"os"
)

// FrameAt is where a test finds a frame in a segment file.
type FrameAt struct {
	Seq        uint64
	Offset     int64
	End        int64
	Checkpoint bool
}

// Frames lists the whole frames of a segment file.
func Frames(path string) ([]FrameAt, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []FrameAt
	r := newFrameReader(bytes.NewReader(b[headerSize:]), headerSize)
	for at := r.off; ; at = r.off {
		f, _, err := r.next()
		if err != nil {
			return all, nil
		}
		all = append(all, FrameAt{f.seq, at, r.off, f.kind == kindCheckpoint})
	}
}

// Reseal makes the CRC of the frame b right again and, if prev is not nil, makes it continue prev. It returns its hash.
func Reseal(b []byte, prev []byte) []byte {
	if prev != nil {
		copy(b[8:40], prev)
	}
	sum := checksum(b[:4], b[8:])
	b[4], b[5], b[6], b[7] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	h := hashFrame(b)
	return h[:]
}

// HeaderSize is where the first frame of a segment begins.
const HeaderSize = headerSize

// PayloadAt is where a frame's payload begins.
const PayloadAt = frameHead
