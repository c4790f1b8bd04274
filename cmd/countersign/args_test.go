package main

import (
	"errors"
	"testing"
)

// A file without an end is read to its limit and not further.
func TestReadFileIsBounded(t *testing.T) {
	_, err := readFile("/dev/zero", 1000)
	var f *failure
	if !errors.As(err, &f) || f.Why != "it is longer than 1000 bytes" || f.Next == "" {
		t.Errorf("%+v", err)
	}
}
