package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/agent"
	"github.com/countersign/countersign/ca/mtls"
)

// explainAgent is for the agent and `countersign run`.
func explainAgent(err error) *failure {
	var (
		config  *agent.ConfigError
		socket  *agent.SocketError
		absent  *agent.NoAgentError
		address *agent.AddressError
		start   *agent.StartError
		one     *agent.IdentityError
	)
	switch {
	case errors.As(err, &config):
		f := &failure{Exit: exitLocal, What: "the agent's configuration has faults", err: err,
			Why: "what is listed above is not known or not in its range; all faults are listed", Next: "mend them; docs/agent.md explains each key"}
		for _, p := range config.Problems {
			f.Details = append(f.Details, p.String())
		}
		return f
	case errors.Is(err, agent.ErrRunning):
		return &failure{Exit: exitLocal, What: "another agent runs already", Why: err.Error(), err: err,
			Next: "let that one keep this identity too (--config), or give this one another --socket"}
	case errors.As(err, &socket):
		return &failure{Exit: exitLocal, What: "the status socket can't be served", Why: socket.Err.Error() + " (" + socket.Socket + ")", err: err,
			Next: "--socket PATH in a directory of this user alone"}
	case errors.As(err, &absent):
		return &failure{Exit: exitRemote, What: "no agent answers on " + absent.Socket, Why: absent.Err.Error(), err: err,
			Next: "start it with `countersign agent run`, name its socket with --socket, or read a directory with --out DIR"}
	case errors.As(err, &address):
		return &failure{Exit: exitLocal, What: "can't listen on " + address.Addr, Why: address.Err.Error(), err: err,
			Next: "choose another address for health and metrics: --ops-listen, or ops.listen in the configuration"}
	case errors.As(err, &start):
		return &failure{Exit: start.Code, What: "the program can't be started", Why: start.Err.Error(), err: err,
			Next: "look at its path and mode: it is run as it is written, without a shell (exit code " + strconv.Itoa(start.Code) + ", as shells have it)"}
	case errors.As(err, &one):
		return explainIdentity(one)
	}
	return nil
}

// explainIdentity says which identity it is, and what the daemon or the disk said.
func explainIdentity(e *agent.IdentityError) *failure {
	if errors.Is(e, context.Canceled) {
		return nil
	}
	f := explainKnown(e.Err)
	var delivery *agent.DeliveryError
	switch {
	case errors.As(e.Err, &delivery):
		f = &failure{Exit: exitCondition, What: "identity " + e.Name + ": the program did not take the new certificate", Why: delivery.Err.Error(),
			Next: "look at the program and its hook; the certificate itself is in the directory, and the next run tells the program again"}
	case f != nil:
		f.What = "identity " + e.Name + ": " + f.What
	case errors.Is(e, client.ErrNotAuthority):
		f = &failure{Exit: exitDenied, What: "identity " + e.Name + ": " + client.ErrNotAuthority.Error(), Why: e.Err.Error() + "; nothing was sent",
			Next: "check the address; if it is right, somebody may be in between: ask for a new token over another way"}
	case errors.Is(e, mtls.ErrNone):
		f = &failure{Exit: exitLocal, What: "identity " + e.Name + " has no certificate", Why: e.Err.Error(),
			Next: "--join-file FILE with what `countersign join-token create SERVICE` printed, or --attest FILE"}
	default:
		f = &failure{Exit: exitLocal, What: "identity " + e.Name + " can't be kept fresh", Why: e.Err.Error(),
			Next: "mend what the reason names; `countersign agent status --out DIR` shows how the directory stands"}
	}
	f.err = e
	return f
}
