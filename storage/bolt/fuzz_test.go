package bolt

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign/countersign/storage"
)

// FuzzRecord demands that a record that is accepted is what the encoder makes of it.
func FuzzRecord(f *testing.F) {
	f.Add("things", "k", encodeRecord("things", "k", record{rev: 7, expires: never, value: []byte("v")}))
	f.Add("things", "k", encodeRecord("things", "l", record{rev: 7, expires: -1}))
	f.Add("", "", []byte{recordVersion})
	f.Fuzz(func(t *testing.T, table, key string, b []byte) {
		r, err := decodeRecord(table, key, b)
		if err != nil {
			if !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
			return
		}
		if again := encodeRecord(table, key, r); string(again) != string(b) {
			t.Errorf("%x is read, %x is written", b, again)
		}
	})
}

// FuzzPages demands an error or a sound file, never a panic that passes or a walk without end.
func FuzzPages(f *testing.F) {
	path := filepath.Join(f.TempDir(), "store.db")
	if err := create(path); err != nil {
		f.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Add(sound[:9000])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := checkPages(data); err != nil && !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
}

// FuzzHolder demands that no line of the kernel's table makes a process of nothing.
func FuzzHolder(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 10458 fe:00:9978002 0 EOF\n", uint64(9978002))
	f.Add("1: POSIX  ADVISORY  WRITE 1 fe:00:1 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 2 fe:00:1 0 EOF\n", uint64(1))
	f.Add("1: FLOCK ADVISORY WRITE -5 x 0 EOF", uint64(0))
	f.Fuzz(func(t *testing.T, locks string, inode uint64) {
		if holderIn(strings.NewReader(locks), inode) < 0 {
			t.Error("a negative process id")
		}
	})
}

func TestHolder(t *testing.T) {
	const table = `1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  READ 12 fe:00:77 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fe:00:77 0 EOF
4: FLOCK  ADVISORY  WRITE 15 fe:00:770 0 EOF
5: FLOCK  ADVISORY  WRITE 0 fe:00:78 0 EOF
6: FLOCK  ADVISORY  WRITE 16 fe:00:79 0 EOF
7: FLOCK  ADVISORY  WRITE 17 fe:01:79 0 EOF
`
	for inode, want := range map[uint64]int{77: 13, 770: 15, 78: 0, 79: 0, 7: 0} {
		if got := holderIn(strings.NewReader(table), inode); got != want {
			t.Errorf("inode %d: got pid %d, want %d", inode, got, want)
		}
	}
}
