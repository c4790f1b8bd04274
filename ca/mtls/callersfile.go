package mtls

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// CallersFile is the file in Dir that keeps who may call, for a start while the authority is gone.
const CallersFile = "callers.json"

const (
	maxCallers  = 16 << 20
	callersTemp = ".callers-*" // a file on its way to becoming CallersFile
)

// keptCallers is what CallersFile holds.
type keptCallers struct {
	Until   time.Time    `json:"until"` // the end of the certificate that was the own one when it was last said
	Callers wire.Callers `json:"callers"`
}

// parseCallers reads CallersFile. It is pure. ends is when the own certificate is over: nothing that is kept counts longer.
func parseCallers(body []byte, own countersign.ID, ends time.Time) (*graph, time.Time, error) {
	var kept keptCallers
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&kept); err != nil {
		return nil, time.Time{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, time.Time{}, errors.New("something comes after the list")
	}
	if kept.Until.IsZero() {
		return nil, time.Time{}, errors.New("it does not say how long it counts")
	}
	g, err := readGraph(kept.Callers, own)
	if err != nil {
		return nil, time.Time{}, err
	}
	if kept.Until.After(ends) {
		kept.Until = ends
	}
	return g, kept.Until, nil
}

// recall reads what was kept, if nothing was heard yet.
func (f *callersFeed) recall() {
	i, err := f.src.Identity()
	if g, _ := f.now(); f.src.cfg.Dir == "" || g != nil || err != nil {
		return
	}
	path := filepath.Join(f.src.cfg.Dir, CallersFile)
	body, err := readAtMost(path, maxCallers)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var g *graph
	var until time.Time
	if err == nil {
		g, until, err = parseCallers(body, i.ID, i.NotAfter)
	}
	if err != nil {
		f.src.cfg.Logger.Warn("who may call was kept, but can't be read; nobody may until the authority says", "file", path, "error", err)
		return
	}
	f.take(g, until)
}

// remember writes it, whole or not at all. A ReadOnly source writes nothing, and so starts without.
func (f *callersFeed) remember(g *graph, until time.Time) error {
	dir := f.src.cfg.Dir
	if dir == "" || f.src.cfg.ReadOnly {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, dataLink)); err != nil {
		return err // a directory that is no identity directory yet must stay empty, or it never becomes one
	}
	body, err := json.Marshal(keptCallers{Until: until.UTC(), Callers: g.told})
	if err != nil {
		return err
	}
	w, err := os.CreateTemp(dir, callersTemp) // 0600
	if err != nil {
		return err
	}
	_, err = w.Write(body)
	err = errors.Join(err, w.Sync(), w.Close())
	if err == nil {
		// Crash point: the file before, or this one. Neither is lost to a crash later on: what is missing is asked for again.
		err = os.Rename(w.Name(), filepath.Join(dir, CallersFile))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", CallersFile, err), os.Remove(w.Name()))
	}
	return nil
}

// tidy removes what a crash left on its way.
func (f *callersFeed) tidy() {
	if f.src.cfg.Dir == "" || f.src.cfg.ReadOnly {
		return
	}
	left, err := filepath.Glob(filepath.Join(f.src.cfg.Dir, callersTemp))
	if err != nil {
		return // the pattern is ours
	}
	for _, path := range left {
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > time.Minute {
			os.Remove(path) // another process may be writing the young ones
		}
	}
}
