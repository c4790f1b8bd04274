package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// The exit codes of interfaces.md.
const (
	exitOK          = 0
	exitLocal       = 1 // local or usage
	exitRemote      = 2
	exitDenied      = 3
	exitCondition   = 4 // asked for something that is not so
	exitNotFound    = 5
	exitDisk        = 74 // EX_IOERR: the disk failed under the daemon; start it again
	exitInterrupted = 130
)

// failure is an error of the command line: what happened, why, and what to do next.
type failure struct {
	Exit      int              `json:"exit"`
	What      string           `json:"error"`
	Why       string           `json:"why,omitempty"`
	Next      string           `json:"next,omitempty"`
	Code      countersign.Code `json:"code,omitempty"`
	OAuth     string           `json:"oauth_error,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
	Details   []string         `json:"details,omitempty"`
	err       error
}

// Error is the one-line form.
func (f *failure) Error() string {
	if f.Why == "" {
		return f.What
	}
	return f.What + ": " + f.Why
}

// Unwrap gives the cause.
func (f *failure) Unwrap() error { return f.err }

// fail shows err on standard error and returns its exit code.
func (a *app) fail(err error) int {
	f := explain(err)
	switch a.output {
	case "json":
		body, _ := json.Marshal(f)
		fmt.Fprintf(a.err, "%s\n", body)
		return f.Exit
	case "yaml":
		if body, err := asYAML(f); err == nil {
			_, _ = a.err.Write(body)
			return f.Exit
		}
	}
	fmt.Fprintf(a.err, "countersign: %s\n", f.What)
	for _, line := range f.Details {
		fmt.Fprintf(a.err, "  %s\n", line)
	}
	if f.Why != "" {
		fmt.Fprintf(a.err, "  why:  %s\n", f.Why)
	}
	if f.Next != "" {
		fmt.Fprintf(a.err, "  next: %s\n", strings.ReplaceAll(f.Next, "\n", "\n        "))
	}
	var tags []string
	if f.Code != "" {
		tags = append(tags, "code "+string(f.Code))
	}
	if f.RequestID != "" {
		tags = append(tags, "request "+f.RequestID)
	}
	if len(tags) > 0 {
		fmt.Fprintf(a.err, "  (%s)\n", strings.Join(tags, ", "))
	}
	return f.Exit
}

// explain finds words for every kind of error that reaches the command line.
func explain(err error) *failure {
	var (
		f        *failure
		api      *client.APIError
		oauth    *client.OAuthError
		config   *daemon.ConfigError
		used     *daemon.UsedError
		fatal    *daemon.FatalError
		address  *daemon.AddressError
		locked   *bolt.LockedError
		netError *net.OpError
		answer   *client.UnreachableError
		shared   *daemon.SharedDirError
	)
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &api):
		return explainAPI(api)
	case errors.As(err, &oauth):
		return explainOAuth(oauth)
	case errors.As(err, &fatal):
		return &failure{Exit: exitDisk, What: fatal.Error(),
			Next: "look at the disk, then start the daemon again: what it acknowledged is safe, and it checks the rest at start"}
	case errors.As(err, &config):
		return explainConfig(config)
	case errors.As(err, &used):
		return explainUsed(used)
	case errors.As(err, &locked):
		return &failure{Exit: exitLocal, What: "another countersign uses this directory", Why: locked.Error(),
			Next: "stop that one first, or choose another --dir"}
	case errors.As(err, &address):
		return explainAddress(address)
	case errors.As(err, &shared):
		return &failure{Exit: exitLocal, What: "others may write to the directory", Why: shared.Error(), err: err,
			Next: "chmod go-w " + shellWord(shared.Dir) + ", or choose another --dir, or for a long one another XDG_RUNTIME_DIR"}
	case errors.As(err, &answer) && !errors.As(err, &netError):
		return &failure{Exit: exitRemote, What: "no daemon of this authority answers there", Why: err.Error(), err: err,
			Next: "is --server (or the identity's server) the daemon's public address, and --root its authority's roots?"}
	case errors.As(err, &netError):
		return &failure{Exit: exitRemote, What: "the daemon can't be reached", Why: err.Error(),
			Next: "is it running there? `countersign serve` or `countersign dev` starts one; --server names another"}
	}
	return explainDomain(err)
}

func explainDomain(err error) *failure {
	var domain *countersign.Error
	if errors.As(err, &domain) {
		f := &failure{Exit: exitOf(domain.Kind), What: err.Error(), Next: domain.Hint, Code: domain.Code}
		if f.Next == "" {
			f.Next = domain.Code.Info().Next
		}
		return f
	}
	return explainDisk(err)
}

// explainDisk finds words for what the daemon finds on its disk at start. A restart would not mend any of it.
func explainDisk(err error) *failure {
	var tampered *audit.TamperedError
	f := &failure{Exit: exitLocal, What: err.Error(), err: err}
	switch {
	case errors.As(err, &tampered):
		f.What, f.Why = "the audit log was tampered with, or a part of it was lost", err.Error()
		f.Next = "keep a copy of the whole directory as it is, and find out who or what changed it;\n" +
			"then restore the database and audit/ from the same backup"
	case errors.Is(err, storage.ErrCorrupt):
		f.What, f.Why = "the database is damaged", err.Error()
		f.Next = "keep a copy of the whole directory as it is; then restore the database and audit/ from the same backup"
	case errors.Is(err, syscall.EROFS):
		f.Next = "make the file system writable again, after a look at why it is not, then start the daemon"
	case errors.Is(err, fs.ErrPermission):
		f.Next = "run this as the owner, or choose another directory"
	}
	return f
}

func exitOf(k countersign.Kind) int {
	switch k {
	case countersign.Unauthenticated, countersign.Denied:
		return exitDenied
	case countersign.NotFound:
		return exitNotFound
	case countersign.Conflict:
		return exitCondition
	}
	return exitRemote
}

// explainAPI turns an answer of the daemon into words. The exit code follows the kind of its code, not the status.
func explainAPI(e *client.APIError) *failure {
	p := e.Problem
	f := &failure{Exit: exitRemote, What: p.Detail, Next: p.Hint, Code: p.Code, RequestID: p.RequestID, err: e}
	switch {
	case p.Code == "":
		f.What = e.Error()
		f.Next = "is --server the daemon's public address?"
	case f.What == "":
		f.What = p.Title
	}
	if p.Code != "" {
		info := p.Code.Info()
		f.Exit = exitOf(info.Kind)
		if f.Next == "" {
			f.Next = info.Next
		}
	}
	for _, fault := range p.Faults {
		f.Details = append(f.Details, faultText("", fault))
	}
	return f
}

// explainOAuth turns an answer of the token endpoint into words: what the client may know, and where the rest is.
func explainOAuth(e *client.OAuthError) *failure {
	return &failure{
		Exit: exitOf(e.Body.Code.Info().Kind), What: "refused: " + e.Body.Error, Why: e.Body.Description,
		Next: "an operator sees the whole decision with `countersign audit search --request " + e.Body.RequestID + "`",
		Code: e.Body.Code, OAuth: e.Body.Error, RequestID: e.Body.RequestID, err: e,
	}
}

func explainConfig(e *daemon.ConfigError) *failure {
	f := &failure{Exit: exitLocal, What: "the configuration has faults", err: e,
		Next: "mend them, then `countersign config check`"}
	for _, p := range e.Problems {
		f.Details = append(f.Details, p.String())
	}
	return f
}

func explainUsed(e *daemon.UsedError) *failure {
	if e.Whole {
		return &failure{Exit: exitLocal, What: "this directory holds an authority already", Why: e.Error(),
			Next: "start it with `countersign serve`, or choose another --dir"}
	}
	return &failure{Exit: exitLocal, What: "this directory is not empty of ours", Why: e.Error() + ", but no " + daemon.ConfigFile + ": an earlier init did not end",
		Next: "nothing in it was ever in use: remove it and run init again, or choose another --dir"}
}

func explainAddress(e *daemon.AddressError) *failure {
	f := &failure{Exit: exitLocal, What: "can't listen on " + e.Addr, Why: e.Err.Error(), err: e,
		Next: "choose another address: " + e.Key + " in " + daemon.ConfigFile + ", or " + daemon.Variable(e.Key)}
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE):
		f.Why = "something else listens there"
		f.Next += "\nwho: ss -ltnp | grep " + e.Addr[strings.LastIndexByte(e.Addr, ':'):]
	case errors.Is(e.Err, fs.ErrPermission):
		f.Why = "this user may not use that port"
		f.Next += "\nor allow it: setcap cap_net_bind_service=+ep bin/countersign"
	}
	return f
}

func usageError(cmd *cobra.Command, err error) error {
	return &failure{Exit: exitLocal, What: err.Error(), Next: "see `" + cmd.CommandPath() + " --help`"}
}

// unknownCommand suggests the nearest one.
func unknownCommand(cmd *cobra.Command, arg string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	f := &failure{Exit: exitLocal, What: fmt.Sprintf("`%s` has no command %q", cmd.CommandPath(), arg),
		Next: "there are " + strings.Join(names, ", ")}
	if near := countersign.Nearest(arg, names); near != "" {
		f.Next = "did you mean `" + cmd.CommandPath() + " " + near + "`?"
	}
	return f
}

func quoted(s string) string { return strconv.Quote(s) }
