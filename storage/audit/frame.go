package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
)

// A segment file is a header and then frames without gaps; zeros follow the last one. All integers are big-endian.
//
//	header (80 bytes)                        frame (72 bytes, then the payload)
//	 0  magic "CSAUDIT\n"                     0  length of the payload, 4
//	 8  format version, 4                     4  CRC32C of everything but itself, 4
//	12  CRC32C of everything but itself, 4    8  hash of the frame before, 32
//	16  sequence of the first frame, 8       40  kind, 1
//	24  first of the segment before, 8       41  zeros, 7
//	32  its oldest frame's wall clock, 8          48  sequence, 8
//	40  its newest frame's wall clock, 8          56  wall clock, Unix nanoseconds, 8
//	48  hash of its last frame, 32           64  nanoseconds since the log was opened, 8
//
// The hash of a frame is the SHA-256 of bytes 8 to its end, so it begins with the hash before. The first frame of a log
// follows the zero hash.
const (
	magic         = "CSAUDIT\n"
	formatVersion = 1
	headerSize    = 80
	frameHead     = 72
	hashedFrom    = 8
)

type kind uint8

const (
	kindEvent      kind = 1
	kindCheckpoint kind = 2
)

type hash = [sha256.Size]byte

// header opens a segment. What it says of the segment before lets Open see a missing file, and Search and retention
// judge a file's times, without reading that file.
type header struct {
	first          uint64
	prevFirst      uint64 // 0: this is the first segment of the log
	oldest, newest int64  // wall clocks of the frames of the segment before, Unix nanoseconds; 0 when there is none
	prev           hash
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.BigEndian.PutUint32(b[8:], formatVersion)
	binary.BigEndian.PutUint64(b[16:], h.first)
	binary.BigEndian.PutUint64(b[24:], h.prevFirst)
	binary.BigEndian.PutUint64(b[32:], uint64(h.oldest))
	binary.BigEndian.PutUint64(b[40:], uint64(h.newest))
	copy(b[48:], h.prev[:])
	binary.BigEndian.PutUint32(b[12:], checksum(b[:12], b[16:]))
	return b
}

var (
	errHeader  = errors.New("no header of an audit segment")
	errVersion = errors.New("a format version that this program does not know")
	errFrame   = errors.New("no whole frame")
	errZero    = errors.New("zeros") // a clean end: zeros written ahead, or the end of the file
)

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize || string(b[:8]) != magic ||
		binary.BigEndian.Uint32(b[12:]) != checksum(b[:12], b[16:headerSize]) {
		return header{}, errHeader
	}
	if binary.BigEndian.Uint32(b[8:]) != formatVersion {
		return header{}, errVersion
	}
	h := header{
		first:     binary.BigEndian.Uint64(b[16:]),
		prevFirst: binary.BigEndian.Uint64(b[24:]),
		oldest:    int64(binary.BigEndian.Uint64(b[32:])),
		newest:    int64(binary.BigEndian.Uint64(b[40:])),
	}
	copy(h.prev[:], b[48:])
	if h.first == 0 || h.prevFirst >= h.first {
		return header{}, errHeader
	}
	return h, nil
}

// frame is a decoded one; payload is part of the buffer it was decoded from.
type frame struct {
	kind    kind
	seq     uint64
	wall    int64
	mono    int64
	prev    hash
	payload []byte
}

// seal fills in the first frameHead bytes of b, whose rest is the payload, and returns the frame's hash.
func (f frame) seal(b []byte) hash {
	binary.BigEndian.PutUint32(b, uint32(len(b)-frameHead))
	copy(b[8:], f.prev[:])
	clear(b[40:48])
	b[40] = byte(f.kind)
	binary.BigEndian.PutUint64(b[48:], f.seq)
	binary.BigEndian.PutUint64(b[56:], uint64(f.wall))
	binary.BigEndian.PutUint64(b[64:], uint64(f.mono))
	binary.BigEndian.PutUint32(b[4:], checksum(b[:4], b[8:]))
	return sha256.Sum256(b[hashedFrom:])
}

// payloadSize reads the length of a frame from its head. Zeros are errZero; a length that no frame has is errFrame.
func payloadSize(head []byte) (int, error) {
	n := binary.BigEndian.Uint32(head)
	switch {
	case n == 0:
		return 0, errZero
	case n > maxPayload:
		return 0, errFrame
	}
	return int(n), nil
}

// parseFrame decodes the frame at the beginning of b and returns its size. It accepts exactly what seal makes.
func parseFrame(b []byte) (frame, int, error) {
	if len(b) < frameHead {
		return frame{}, 0, errFrame
	}
	n, err := payloadSize(b)
	if err != nil {
		return frame{}, 0, err
	}
	size := frameHead + n
	if len(b) < size || binary.BigEndian.Uint32(b[4:]) != checksum(b[:4], b[8:size]) {
		return frame{}, 0, errFrame
	}
	f := frame{
		kind:    kind(b[40]),
		seq:     binary.BigEndian.Uint64(b[48:]),
		wall:    int64(binary.BigEndian.Uint64(b[56:])),
		mono:    int64(binary.BigEndian.Uint64(b[64:])),
		payload: b[frameHead:size:size],
	}
	copy(f.prev[:], b[8:])
	if f.kind != kindEvent && f.kind != kindCheckpoint || [7]byte(b[41:48]) != [7]byte{} || f.seq == 0 {
		return frame{}, 0, errFrame
	}
	return f, size, nil
}

// hashFrame is the hash of the frame whose bytes b are.
func hashFrame(b []byte) hash { return sha256.Sum256(b[hashedFrom:]) }

func checksum(parts ...[]byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // a pointer to the standard library's own table
	var sum uint32
	for _, p := range parts {
		sum = crc32.Update(sum, table, p)
	}
	return sum
}

func hexHash(h hash) string { return hex.EncodeToString(h[:]) }

func parseHash(s string) (hash, error) {
	var h hash
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return hash{}, errors.New("not a hex SHA-256")
	}
	copy(h[:], b)
	return h, nil
}
