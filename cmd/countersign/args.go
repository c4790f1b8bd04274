package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// exactArgs demands these arguments, and says which is missing or too many.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		f := &failure{Exit: exitLocal, Next: "usage: " + cmd.UseLine()}
		switch {
		case len(args) < len(names):
			f.What = fmt.Sprintf("`%s` needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			f.What = fmt.Sprintf("`%s` does not take %q", cmd.CommandPath(), args[len(names)])
		default:
			return nil
		}
		return f
	}
}

// upTo allows one argument, or none.
func upTo(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return &failure{Exit: exitLocal, What: fmt.Sprintf("`%s` does not take %q", cmd.CommandPath(), args[1]),
			Why: "it takes one " + name + "; one with spaces stands in quotes", Next: "usage: " + cmd.UseLine()}
	}
}

// checkCount refuses numbers that the daemon would not take; it would read none as its default.
func checkCount(flag string, n int) error {
	if n >= 1 && n <= 1000 {
		return nil
	}
	return &failure{Exit: exitLocal, What: fmt.Sprintf("%s: %d is not from 1 to 1000", flag, n)}
}

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

func noArgs(cmd *cobra.Command, args []string) error { return exactArgs()(cmd, args) }

const maxTokenFile = 64 << 10

// readToken reads a token from a file, or from standard input as "-". A final newline is no part of it.
func (a *app) readToken(path string) (string, error) {
	var body []byte
	var err error
	if path == "-" {
		body, err = io.ReadAll(io.LimitReader(a.in, maxTokenFile))
	} else {
		body, err = readFile(path, maxTokenFile)
	}
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(body))
	if token == "" {
		return "", &failure{Exit: exitLocal, What: "there is no token in " + path}
	}
	return token, nil
}
