package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// Ctrl-C ends a command that waits for standard input.
func TestInterruptWhileReadingStandardInput(t *testing.T) {
	for _, args := range [][]string{
		{"token", "inspect", "-"},
		{"policy", "apply", "-"},
		{"join", "-", "--out", t.TempDir()},
	} {
		in, typing := io.Pipe()
		ctx, interrupt := context.WithCancel(t.Context())
		var stdout, stderr bytes.Buffer
		code := make(chan int, 1)
		go func() { code <- run(ctx, args, in, &stdout, &stderr) }()
		time.AfterFunc(50*time.Millisecond, interrupt)
		select {
		case got := <-code:
			if got != exitInterrupted {
				t.Errorf("%q: exit code %d, %s", args, got, stderr.String())
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q does not end", args)
		}
		typing.Close()
	}
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{
		"./countersign-data": "./countersign-data", "my ca": "'my ca'", "": "''", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "~": "'~'",
	} {
		if got := shellWord(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}

// What strangers wrote does not steer the terminal.
func TestTablesArePrintable(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out, output: "table"}
	err := a.show(nil, func(w *tabwriter.Writer) { row(w, "user", "ann\x1b[2J\r\n\u009b\u202eroot\tö") })
	if err != nil {
		t.Fatal(err)
	}
	if want := "user  ann?[2J????root?ö\n"; out.String() != want {
		t.Errorf("%q", out.String())
	}
	if line := recordLine(wire.AuditRecord{Subject: "a\x1bb"}); strings.ContainsRune(line, '\x1b') {
		t.Errorf("%q", line)
	}
}
