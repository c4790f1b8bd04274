package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// shellWord is s as one word of a shell, for commands that people copy.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:,=@%+", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

const maxTokenFile = 64 << 10

// readToken reads a token from a file, or from standard input as "-". A final newline is no part of it.
func (a *app) readToken(path string) (string, error) {
	body, err := a.readInput(path, maxTokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(body))
	if token == "" {
		where := path
		if path == "-" {
			where = "standard input"
		}
		return "", &failure{Exit: exitLocal, What: "there is no token in " + where, Why: "it is empty",
			Next: "put the token there as it was issued, alone; `countersign token exchange` and `token request` print one"}
	}
	return token, nil
}

// readInput reads a small file whole, or standard input as "-".
func (a *app) readInput(path string, limit int64) ([]byte, error) {
	if path != "-" {
		return readFile(path, limit)
	}
	body, err := io.ReadAll(io.LimitReader(a.in, limit+1))
	switch {
	case err != nil && errors.Is(err, a.in.ctx.Err()):
		return nil, err // Ctrl-C
	case err != nil:
		return nil, &failure{Exit: exitLocal, What: "can't read standard input", Why: cause(err), err: err,
			Next: "give it a file or a pipe, or name a file in place of -"}
	case int64(len(body)) > limit:
		return nil, &failure{Exit: exitLocal, What: "can't read standard input", Why: fmt.Sprintf("it has more than %d bytes", limit),
			Next: "give it the file that was meant"}
	}
	return body, nil
}

// readFile reads a small file whole, and says what is wrong with it in the words of a failure.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().IsRegular() && info.Size() > limit {
		return nil, &failure{Exit: exitLocal, What: "can't read " + path, Next: "name the file that was meant",
			Why: fmt.Sprintf("it has %d bytes; at most %d are read", info.Size(), limit)}
	}
	if err == nil {
		var body []byte
		if body, err = readSmall(path, limit); err == nil {
			return body, nil
		}
	}
	return nil, &failure{Exit: exitLocal, What: "can't read " + path, Why: cause(err), Next: mendFile(err), err: err}
}

// readSmall reads at most limit bytes of a file, whatever it is: a device or a pipe may have no end. Its error is the Why of a failure.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	return body, err
}

// mendFile says what to do about a file that can't be read.
func mendFile(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is the path right? It counts from the present directory"
	case errors.Is(err, fs.ErrPermission):
		return "run this as the file's owner, or let this user read it"
	case errors.Is(err, syscall.EISDIR):
		return "name a file, not a directory"
	}
	return "look at the file and its file system, then run this again"
}

// cause strips operation and path from a file error: the failure names them already.
func cause(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}
