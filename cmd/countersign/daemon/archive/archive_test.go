package archive

import (
	"bytes"
	"io"
	"testing"
)

type nowhere struct{ bytes.Buffer }

func (*nowhere) Close() error { return nil }

func smallArchive(t testing.TB, files map[string]string, order ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	a, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range order {
		err := a.Add(name, func(w io.Writer) error { _, err := io.WriteString(w, files[name]); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Finish(Manifest{Domain: "shop.internal", Audit: End{Seq: 7}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const oneSegment = "audit/00000000000000000001.segment"

func wholeArchive(t testing.TB) (body []byte, files map[string]string) {
	t.Helper()
	files = map[string]string{
		Database: string(bytes.Repeat([]byte("database"), maxData/4)), oneSegment: "segment", Root: "", Config: "domain: x\n",
	}
	return smallArchive(t, files, Database, oneSegment, Root, Config), files
}

// What is written is read; every single byte that differs is noticed, and so is every cut.
func TestArchive(t *testing.T) {
	body, files := wholeArchive(t)
	read := map[string]*nowhere{}
	m, err := Read(bytes.NewReader(body), func(name string) (io.WriteCloser, error) {
		read[name] = &nowhere{}
		return read[name], nil
	})
	if err != nil || m.Audit.Seq != 7 || len(m.Files) != len(files) {
		t.Fatal(m, err)
	}
	for name, want := range files {
		if read[name].String() != want {
			t.Errorf("%s differs", name)
		}
	}
	drop := func(string) (io.WriteCloser, error) { return discard{io.Discard}, nil }
	for at := range body {
		if at > 200 && at < len(body)-2000 && at%9973 != 0 {
			continue
		}
		if _, err := Read(bytes.NewReader(body[:at]), drop); err == nil {
			t.Fatalf("cut at %d: nothing was noticed", at)
		}
		harmed := bytes.Clone(body)
		harmed[at] ^= 0x20
		if _, err := Read(bytes.NewReader(harmed), drop); err == nil {
			t.Fatalf("byte %d: nothing was noticed", at)
		}
	}
	for name, order := range map[string][]string{
		"no database": {oneSegment, Root, Config}, "no log": {Database, Root, Config},
		"twice": {Database, oneSegment, Root, Config, Config},
	} {
		if _, err := Read(bytes.NewReader(smallArchive(t, files, order...)), drop); err == nil {
			t.Errorf("%s: nothing was noticed", name)
		}
	}
	if a, err := NewWriter(io.Discard); err != nil || a.Add("kek", func(io.Writer) error { return nil }) == nil {
		t.Error("a key was written into a backup")
	}
}

// FuzzArchive: no file opens a name that a backup may not hold, and what is accepted is what its manifest says.
func FuzzArchive(f *testing.F) {
	f.Add(smallArchive(f, map[string]string{Database: "db", oneSegment: "segment"}, Database, oneSegment, Root, Config))
	f.Add(smallArchive(f, map[string]string{}, Database, oneSegment, Root, Config))
	f.Add([]byte(magic + "F\x00\x00\x00\x10../../etc/passwd"))
	f.Add([]byte(magic + "M\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var names []string
		sizes := map[string]*nowhere{}
		m, err := Read(bytes.NewReader(b), func(name string) (io.WriteCloser, error) {
			if !Allowed(name) {
				t.Fatalf("%q was opened", name)
			}
			names = append(names, name)
			sizes[name] = &nowhere{}
			return sizes[name], nil
		})
		if err != nil {
			return
		}
		if len(m.Files) != len(names) {
			t.Fatalf("%v, and read were %v", m.Files, names)
		}
		for i, file := range m.Files {
			if file.Name != names[i] || file.Size != int64(sizes[file.Name].Len()) {
				t.Fatalf("%+v", file)
			}
		}
	})
}
