// Package archive is the form of a backup: one stream of files that ends with its manifest and a checksum of all of it.
//
// It imports nothing of ours and knows no directory: it says which names a backup may hold, and who reads says where they go. It
// never holds more than one frame, never takes a backup for whole that was cut off or changed, and never gives out a name
// that is none of a backup's.
package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"
)

// The files of a backup besides the segments of the audit log.
const (
	Database = "countersign.db"
	Config   = "countersign.yaml"
	Root     = "root.pem"
	Audit    = "audit/" // followed by a segment's name
)

// magic begins every backup. After it come frames: kind (1 byte), length (4, big-endian), payload. A file is a name and
// data frames; the manifest follows the last file, and the SHA-256 of all before it ends the backup. So it can be written as a
// stream, and one that was cut off anywhere is known to be.
const magic = "countersign backup 1\n"

const (
	frameName     = 'F'
	frameData     = 'D'
	frameManifest = 'M'
	frameEnd      = 'E'

	maxData     = 256 << 10 // bytes of a data frame
	maxManifest = 16 << 20
	maxFiles    = 1 << 16
)

// Manifest is what a backup says of itself.
type Manifest struct {
	Version  int       `json:"version"` // of the format: 1
	Made     time.Time `json:"made"`
	Software string    `json:"software"`
	Domain   string    `json:"trust_domain"`
	Issuer   string    `json:"issuer"`
	Roots    []string  `json:"roots"`     // lower-case hex SHA-256 of the certificates
	Audit    End       `json:"audit"`     // the newest record in it
	Store    uint64    `json:"store_seq"` // all that the audit log tells of up to this record is in the database; of what is between, nobody knows
	Files    []File    `json:"files"`     // in their order
}

// End is where the audit log of a backup ends.
type End struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"` // lower-case hex
}

// File is one file of a backup.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // lower-case hex
}

// Error says why a backup can't be used.
type Error struct{ Msg string }

// Error says what is wrong with it.
func (e *Error) Error() string { return "the backup can't be used: " + e.Msg }

// Bad is an [*Error].
func Bad(format string, args ...any) error {
	return &Error{fmt.Sprintf(format, args...)}
}

// Allowed tells whether a backup may hold a file of this name. There are no others, so that no name leads out of the
// directory, and a key in clear has no place in it.
func Allowed(name string) bool {
	switch name {
	case Database, Config, Root:
		return true
	}
	segment, ok := strings.CutPrefix(name, Audit)
	return ok && isSegment(segment)
}

// isSegment tells whether name is that of a segment: 20 digits and a suffix, as package storage/audit names them.
func isSegment(name string) bool {
	digits, ok := strings.CutSuffix(name, ".segment")
	return ok && len(digits) == 20 && strings.Trim(digits, "0123456789") == ""
}

// Is tells whether the file at path begins as a backup does.
func Is(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	begin := make([]byte, len(magic))
	_, err = io.ReadFull(f, begin)
	return err == nil && string(begin) == magic
}

// Writer writes a backup: [NewWriter], then Add for each file, then Finish.
type Writer struct {
	w     io.Writer
	sum   hash.Hash
	files []File
}

// NewWriter begins a backup.
func NewWriter(w io.Writer) (*Writer, error) {
	a := &Writer{sum: sha256.New()}
	a.w = io.MultiWriter(w, a.sum)
	_, err := io.WriteString(a.w, magic)
	return a, err
}

func (a *Writer) frame(kind byte, payload []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload))) //nolint:gosec // at most maxManifest
	if _, err := a.w.Write(head); err != nil {
		return err
	}
	_, err := a.w.Write(payload)
	return err
}

// Add writes a file; write gives its content.
func (a *Writer) Add(name string, write func(io.Writer) error) error {
	if !Allowed(name) || len(a.files) == maxFiles {
		return fmt.Errorf("%q has no place in a backup, or there are too many files", name)
	}
	if err := a.frame(frameName, []byte(name)); err != nil {
		return err
	}
	data := &dataWriter{a: a, sum: sha256.New(), buf: make([]byte, 0, maxData)}
	if err := write(data); err != nil {
		return err
	}
	if err := data.flush(); err != nil {
		return err
	}
	a.files = append(a.files, File{Name: name, Size: data.size, SHA256: hex.EncodeToString(data.sum.Sum(nil))})
	return nil
}

// Finish writes the manifest with the files that were added, and the end.
func (a *Writer) Finish(m Manifest) error {
	m.Version, m.Files = 1, a.files
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := a.frame(frameManifest, body); err != nil {
		return err
	}
	return a.frame(frameEnd, a.sum.Sum(nil))
}

// Files are those that were added.
func (a *Writer) Files() []File { return a.files }

// dataWriter collects what is written to it into frames.
type dataWriter struct {
	a    *Writer
	sum  hash.Hash
	size int64
	buf  []byte
}

// Write never keeps p.
func (d *dataWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), maxData-len(d.buf))
		d.buf, p = append(d.buf, p[:n]...), p[n:]
		if len(d.buf) == maxData {
			if err := d.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (d *dataWriter) flush() error {
	if len(d.buf) == 0 {
		return nil
	}
	d.sum.Write(d.buf)
	d.size += int64(len(d.buf))
	err := d.a.frame(frameData, d.buf)
	d.buf = d.buf[:0]
	return err
}

// Read reads a backup to its end and checks all of it: names, order, sizes, checksums. It holds one frame at a time. open
// gives where a file goes. Only when the error is nil is anything known of what was written there. An error is an
// [*Error], or one of reading or of open.
func Read(r io.Reader, open func(name string) (io.WriteCloser, error)) (Manifest, error) {
	a := reader{sum: sha256.New(), open: open, seen: map[string]bool{}}
	a.r = io.TeeReader(r, a.sum)
	begin := make([]byte, len(magic))
	if err := a.read(begin); err != nil {
		return Manifest{}, err
	}
	if string(begin) != magic {
		return Manifest{}, Bad("it is no backup of Countersign, or one of a format that this version does not know")
	}
	for {
		done, err := a.next()
		if err != nil {
			return Manifest{}, errors.Join(err, a.close())
		}
		if done {
			return a.manifest, nil
		}
	}
}

type reader struct {
	r        io.Reader
	sum      hash.Hash
	open     func(name string) (io.WriteCloser, error)
	seen     map[string]bool
	files    []File
	out      io.WriteCloser // of the file that is read
	fileSum  hash.Hash
	buf      []byte
	manifest Manifest
	told     bool // the manifest was read
}

// read fills b.
func (a *reader) read(b []byte) error {
	_, err := io.ReadFull(a.r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return Bad("it ends in the middle: it was cut off")
	}
	return err
}

// payload reads one frame of at most limit bytes, and not one more than are there.
func (a *reader) payload(n uint32, limit int) ([]byte, error) {
	if int64(n) > int64(limit) {
		return nil, Bad("it is damaged: a part of %d bytes", n)
	}
	var body bytes.Buffer
	body.Grow(min(int(n), maxData))
	if got, err := io.CopyN(&body, a.r, int64(n)); err != nil && got < int64(n) {
		if errors.Is(err, io.EOF) {
			err = Bad("it ends in the middle: it was cut off")
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// next reads one frame; true: it was the end.
func (a *reader) next() (bool, error) {
	before := a.sum.Sum(nil)
	var head [5]byte
	if err := a.read(head[:]); err != nil {
		return false, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	switch kind := head[0]; {
	case kind == frameName && !a.told:
		return false, a.begin(n)
	case kind == frameData && a.out != nil:
		return false, a.data(n)
	case kind == frameManifest && !a.told:
		return false, a.tell(n)
	case kind == frameEnd && a.told:
		return true, a.end(n, before)
	}
	return false, Bad("it is damaged: a part of the kind %q stands where none may", head[:1])
}

func (a *reader) begin(n uint32) error {
	if err := a.close(); err != nil {
		return err
	}
	name, err := a.payload(n, 64)
	if err != nil {
		return err
	}
	if !Allowed(string(name)) {
		return Bad("a backup holds no file %.80q", name)
	}
	if a.seen[string(name)] || len(a.files) == maxFiles {
		return Bad("it holds the file %q twice, or too many files", name)
	}
	a.seen[string(name)] = true
	a.files = append(a.files, File{Name: string(name)})
	a.fileSum = sha256.New()
	a.out, err = a.open(string(name))
	return err
}

func (a *reader) data(n uint32) error {
	if n == 0 || n > maxData {
		return Bad("it is damaged: a part of %d bytes", n)
	}
	if a.buf == nil {
		a.buf = make([]byte, maxData)
	}
	if err := a.read(a.buf[:n]); err != nil {
		return err
	}
	a.fileSum.Write(a.buf[:n])
	a.files[len(a.files)-1].Size += int64(n)
	_, err := a.out.Write(a.buf[:n])
	return err
}

// close ends the file that is read.
func (a *reader) close() error {
	if a.out == nil {
		return nil
	}
	a.files[len(a.files)-1].SHA256 = hex.EncodeToString(a.fileSum.Sum(nil))
	out := a.out
	a.out = nil
	return out.Close()
}

func (a *reader) tell(n uint32) error {
	if err := a.close(); err != nil {
		return err
	}
	body, err := a.payload(n, maxManifest)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&a.manifest); err != nil || a.manifest.Version != 1 {
		return Bad("its manifest can't be read: %v", err)
	}
	a.told = true
	return a.compare()
}

// compare holds what was read to the manifest.
func (a *reader) compare() error {
	if len(a.manifest.Files) != len(a.files) {
		return Bad("its manifest names %d files, and it holds %d", len(a.manifest.Files), len(a.files))
	}
	segments := 0
	for i, file := range a.files {
		if a.manifest.Files[i] != file {
			return Bad("the file %s is not what the manifest says", file.Name)
		}
		if strings.HasPrefix(file.Name, Audit) {
			segments++
		}
	}
	for _, name := range []string{Database, Config, Root} {
		if !a.seen[name] {
			return Bad("it holds no %s", name)
		}
	}
	if segments == 0 {
		return Bad("it holds no audit log")
	}
	return nil
}

func (a *reader) end(n uint32, before []byte) error {
	sum, err := a.payload(n, sha256.Size)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, before) {
		return Bad("it does not fit its own checksum")
	}
	if n, _ := io.ReadFull(a.r, make([]byte, 1)); n != 0 {
		return Bad("something follows its end")
	}
	return nil
}

// discard is where a backup goes that is only checked.
type discard struct{ io.Writer }

// Close does nothing.
func (discard) Close() error { return nil }

// Check reads the backup at path to its end and checks all of it.
func Check(path string) (Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return Manifest{}, err
	}
	defer f.Close()
	return Read(f, func(string) (io.WriteCloser, error) { return discard{io.Discard}, nil })
}
