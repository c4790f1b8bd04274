package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/cmd/countersign/daemon/archive"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// noWords is said of errors that nobody thought of; no test may meet it.
const noWords = "something happened that has no words of its own"

// explain finds words for every kind of error that reaches the command line.
func explain(err error) *failure {
	if f := explainKnown(err); f != nil {
		return f
	}
	return &failure{Exit: exitLocal, What: noWords, Why: err.Error(), err: err,
		Next: "if it happens again, it is a fault of Countersign's: report it with this message and what\n`countersign --version` prints"}
}

// explainKnown gives nil for an error that has no words of its own.
func explainKnown(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	for _, words := range []func(error) *failure{explainAgent, explainAnswer, explainStart, explainNetwork, explainDomain, explainDisk} {
		if f := words(err); f != nil {
			return f
		}
	}
	return nil
}

// explainAnswer is for what a daemon answered.
func explainAnswer(err error) *failure {
	var (
		api   *client.APIError
		oauth *client.OAuthError
		bad   *client.AnswerError
	)
	switch {
	case errors.As(err, &api):
		return explainAPI(api)
	case errors.As(err, &oauth):
		return explainOAuth(oauth)
	case errors.As(err, &bad):
		return badAnswer(bad)
	}
	return nil
}

// badAnswer is for an answer that a daemon of this version would not give.
func badAnswer(err error) *failure {
	return &failure{Exit: exitRemote, What: "the daemon's answer can't be used", Why: err.Error(), err: err,
		Next: "do both have the same version (`countersign --version`, `countersign status`)? If the connection broke, run\nthis again: look first whether the change was made"}
}

// explainStart is for what the daemon and init find wrong before they serve.
func explainStart(err error) *failure {
	var (
		config  *daemon.ConfigError
		used    *daemon.UsedError
		fatal   *daemon.FatalError
		address *daemon.AddressError
		locked  *bolt.LockedError
		shared  *daemon.SharedDirError
		long    *daemon.SocketPathError
		kek     *daemon.KEKError
		backup  *archive.Error
		waits   *daemon.WaitsError
	)
	switch {
	case errors.As(err, &fatal):
		return &failure{Exit: exitDisk, What: "the disk failed", Why: fatal.Err.Error(), err: err,
			Next: "look at the disk, then start the daemon again: what it acknowledged is safe, and it checks the rest at start"}
	case errors.As(err, &config):
		return explainConfig(config)
	case errors.As(err, &used):
		return explainUsed(used)
	case errors.As(err, &waits):
		return &failure{Exit: exitLocal, What: "the authority waits for its intermediate", Why: waits.Error(), err: err,
			Next: "have the root sign that request, then countersign ca import FILE --dir " + shellWord(string(waits.Dir)) + " (docs/authority.md)"}
	case errors.As(err, &backup):
		return &failure{Exit: exitLocal, What: "the backup can't be used", Why: backup.Msg, err: err,
			Next: "take another one; nothing was written for good"}
	case errors.As(err, &locked):
		return &failure{Exit: exitLocal, What: "another countersign uses this directory", Why: locked.Error(), err: err,
			Next: "stop that one first, or choose another --dir"}
	case errors.As(err, &address):
		return explainAddress(address)
	case errors.As(err, &shared):
		return &failure{Exit: exitLocal, What: "others may write to the directory", Why: shared.Error(), err: err,
			Next: "chmod go-w " + shellWord(shared.Dir) + ", or choose another --dir, or for a long one another XDG_RUNTIME_DIR"}
	case errors.As(err, &long):
		return &failure{Exit: exitLocal, What: "the path of the admin socket would be too long", Why: long.Error(), err: err,
			Next: "a shorter --dir, or XDG_RUNTIME_DIR with a shorter path"}
	case errors.As(err, &kek):
		return &failure{Exit: exitLocal, What: "the key-encryption key can't be used", Why: kek.Err.Error(), err: err,
			Next: "put back the file kek that was made with this directory, with mode 0400 and the daemon's user as owner;\nno other key opens it"}
	}
	return nil
}

// explainNetwork is for answers that did not come.
func explainNetwork(err error) *failure {
	var (
		netError *net.OpError
		answer   *client.UnreachableError
	)
	switch {
	case errors.As(err, &answer) && errors.Is(err, context.DeadlineExceeded):
		return &failure{Exit: exitRemote, What: "the daemon did not answer in time", Why: answer.Error(), err: err,
			Next: "look at its log, disk and load; whether a change was made is not known: look before you repeat it"}
	case errors.As(err, &answer) && !errors.As(err, &netError):
		return &failure{Exit: exitRemote, What: "no daemon of this authority answers there", Why: err.Error(), err: err,
			Next: "is --server (or the identity's server) the daemon's public address, and --root its authority's roots?"}
	case errors.As(err, &netError):
		return &failure{Exit: exitRemote, What: "the daemon can't be reached", Why: err.Error(), err: err,
			Next: "is it running there? `countersign serve` or `countersign dev` starts one; --server names another"}
	}
	return nil
}

func explainDomain(err error) *failure {
	var domain *countersign.Error
	if !errors.As(err, &domain) {
		return nil
	}
	info := domain.Code.Info()
	f := &failure{Exit: exitOf(domain.Kind), What: info.Title, Why: err.Error(), Next: domain.Hint, Code: domain.Code, err: err}
	if f.Next == "" {
		f.Next = info.Next
	}
	return f
}

// explainDisk finds words for what is found on the disk. A restart of the daemon would not mend any of it.
func explainDisk(err error) *failure {
	const restore = "keep a copy of the whole directory as it is; then restore the database and audit/ from the same backup"
	var (
		tampered *audit.TamperedError
		path     *fs.PathError
		link     *os.LinkError
		number   syscall.Errno
	)
	what := "a file can't be used"
	switch {
	case errors.As(err, &path):
		what = "can't " + path.Op + " " + path.Path
	case errors.As(err, &link):
		what = "can't " + link.Op + " " + link.New
	}
	local := func(next string) *failure {
		return &failure{Exit: exitLocal, What: what, Why: err.Error(), Next: next, err: err}
	}
	switch {
	case errors.As(err, &tampered):
		what = "the audit log was tampered with, or a part of it was lost"
		return local("find out who or what changed it;\n" + restore)
	case errors.Is(err, storage.ErrCorrupt):
		what = "the database is damaged"
		return local(restore)
	case errors.Is(err, syscall.EROFS):
		return local("make the file system writable again, after a look at why it is not, then run this again")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return local("make space on the disk, then run this again")
	case errors.Is(err, fs.ErrPermission):
		return local("run this as the owner, or choose another directory")
	case errors.As(err, &path), errors.As(err, &link), errors.As(err, &number):
		return local("look at that path and its file system, then run this again")
	}
	return nil
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
	info := p.Code.Info()
	if p.Code == "" {
		return &failure{Exit: exitRemote, What: "something else than a daemon of Countersign answered", Why: e.Error(), err: e,
			Next: "is --server the daemon's public address, with nothing in between?"}
	}
	f := &failure{Exit: exitOf(info.Kind), What: info.Title, Why: p.Detail, Next: p.Hint, Code: p.Code, RequestID: p.RequestID, err: e}
	if f.Why == "" || f.Why == f.What {
		f.Why = "the daemon says no more than that"
	}
	if f.Next == "" {
		f.Next = info.Next
	}
	for _, fault := range p.Faults {
		f.Details = append(f.Details, faultText("", fault))
	}
	return f
}

// explainOAuth turns an answer of the token endpoint into words: what the client may know, and where the rest is.
func explainOAuth(e *client.OAuthError) *failure {
	why := e.Body.Description
	if why == "" {
		why = "the daemon says no more than that"
	}
	next := "an operator sees the whole decision with `countersign audit search --request " + e.Body.RequestID + "`"
	if e.Body.RequestID == "" {
		next = "is --server the daemon's public address, with nothing in between?"
	}
	return &failure{
		Exit: exitOf(e.Body.Code.Info().Kind), What: "refused: " + e.Body.Error, Why: why, Next: next,
		Code: e.Body.Code, OAuth: e.Body.Error, RequestID: e.Body.RequestID, err: e,
	}
}

func explainConfig(e *daemon.ConfigError) *failure {
	f := &failure{Exit: exitLocal, What: "the configuration has faults", err: e,
		Why:  "what is listed above is not known or not in its range; all faults are listed",
		Next: "mend them, then `countersign config check`"}
	for _, p := range e.Problems {
		f.Details = append(f.Details, p.String())
	}
	return f
}

func explainUsed(e *daemon.UsedError) *failure {
	if e.Whole {
		return &failure{Exit: exitLocal, What: "this directory holds an authority already", Why: e.Error(), err: e,
			Next: "start it with `countersign serve`, or choose another --dir"}
	}
	return &failure{Exit: exitLocal, What: "this directory is not empty of ours", err: e,
		Why:  e.Error() + ", but no " + daemon.ConfigFile + ": an earlier init did not end",
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
