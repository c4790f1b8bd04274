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
