package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/wire"
)

func (a *app) tokenRevoke() *cobra.Command {
	var rq wire.TokenRevocationRequest
	c := &cobra.Command{
		Use:   "revoke --jti ID | --txn ID | --subject SUB | --sid SID --issuer URL | --service NAME [--reason R]",
		Short: "revoke tokens: exchanges refuse them at once, verifiers that follow the feed within seconds",
		Long: `Revokes one token and all that were made from it (--jti), all of one user request (--txn), of one session (--sid, with
the issuer that it is a session at), all that a subject has now (--subject, as it stands in relay tokens), or all that a
service has now: those that it asked for, passed on, or that are for it (--service, name or ID).

Tokens that are issued later are good again: to keep a service out, disable it (countersign service disable).`,
		Example: "  countersign token revoke --subject alice --reason \"left the company\"\n  countersign token revoke --service orders --reason \"its host was broken into\"",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkRevocation(rq); err != nil {
				return err
			}
			daemon, err := a.connect()
			if err != nil {
				return err
			}
			defer daemon.Close()
			made, err := daemon.RevokeTokens(cmd.Context(), rq)
			if err != nil {
				return err
			}
			a.say("revoked; verifiers that follow the feed know within seconds")
			return a.show(made, func(w *tabwriter.Writer) {
				row(w, "kind", made.Kind)
				row(w, "what", revokedName(made))
				if !made.Before.IsZero() {
					row(w, "issued until", a.moment(made.Before))
				}
				row(w, "forgotten", a.moment(made.Until))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&rq.JTI, "jti", "", "the jti of the token")
	f.StringVar(&rq.Transaction, "txn", "", "the txn of the user request")
	f.StringVar(&rq.Subject, "subject", "", "the sub, as it stands in relay tokens")
	f.StringVar(&rq.SessionID, "sid", "", "the sid of the session")
	f.StringVar(&rq.Issuer, "issuer", "", "of --sid: the issuer identifier (sub_iss in relay tokens)")
	f.StringVar(&rq.Service, "service", "", "the service: its name or ID")
	f.StringVar(&rq.Reason, "reason", "", "why, for the audit log and the list")
	return c
}

// checkRevocation says what is missing in the words of the flags.
func checkRevocation(rq wire.TokenRevocationRequest) error {
	named := 0
	for _, value := range []string{rq.JTI, rq.Transaction, rq.Subject, rq.SessionID, rq.Service} {
		if value != "" {
			named++
		}
	}
	const next = "one of --jti, --txn, --subject, --sid and --service"
	switch {
	case named == 0:
		return &failure{Exit: exitLocal, What: "revoke what?", Why: "no flag names it", Next: next}
	case named > 1:
		return &failure{Exit: exitLocal, What: "revoke which of these?", Why: fmt.Sprintf("%d flags name something; each is a revocation of its own", named), Next: next}
	case rq.SessionID != "" && rq.Issuer == "":
		return &failure{Exit: exitLocal, What: "whose session?", Why: "a sid is unique at its issuer only", Next: "--issuer URL, the sub_iss of the session's relay tokens"}
	case rq.SessionID == "" && rq.Issuer != "":
		return &failure{Exit: exitLocal, What: "--issuer goes with --sid only", Why: "all other names are unique under our own issuer", Next: "leave it out"}
	}
	return nil
}

// revokedName is what was revoked, in the words of who revoked it.
func revokedName(r wire.TokenRevocation) string {
	switch {
	case r.Name == "":
		return printable(r.Value)
	case r.Issuer != "":
		return printable(r.Name + " at " + r.Issuer)
	}
	return printable(r.Name)
}

func (a *app) tokenRevocations() *cobra.Command {
	var limit int
	var after string
	c := &cobra.Command{
		Use: "revocations [--limit N]", Short: "list what is revoked, the newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkCount("--limit", limit); err != nil {
				return err
			}
			daemon, err := a.connect()
			if err != nil {
				return err
			}
			defer daemon.Close()
			page, err := daemon.TokenRevocations(cmd.Context(), after, limit)
			if err != nil {
				return err
			}
			if page.Next != "" {
				a.say("there are more: --after %s", page.Next)
			}
			return a.show(page, func(w *tabwriter.Writer) {
				fmt.Fprintln(w, "MADE\tKIND\tWHAT\tREASON\tBY\tFORGOTTEN")
				for _, r := range page.Revocations {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.MadeAt.UTC().Format(time.RFC3339), r.Kind, revokedName(r),
						dash(printable(r.Reason)), dash(printable(r.By)), a.moment(r.Until))
				}
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 100, "how many at most, 1 to 1000")
	c.Flags().StringVar(&after, "after", "", "go on where another page ended")
	return c
}

func (a *app) tokenIntrospect() *cobra.Command {
	return &cobra.Command{
		Use:   "introspect FILE [--identity DIR]",
		Short: "ask the daemon whether a relay token is active now (RFC 7662)",
		Long: `Asks the daemon whether a relay token is active: signed by a published key, in time, not revoked. As a service of
--identity, about tokens that concern it; as an operator, about all. Exits with 4 if it is not active.`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := a.readToken(args[0])
			if err != nil {
				return err
			}
			daemon, err := a.connect()
			if err != nil {
				return err
			}
			defer daemon.Close()
			body, err := daemon.Introspect(cmd.Context(), token)
			if err != nil {
				return err
			}
			var answer map[string]any
			if err := json.Unmarshal(body, &answer); err != nil {
				return &failure{Exit: exitRemote, What: "the daemon's answer can't be read", Why: err.Error(),
					Next: "is --server the URL of a Countersign daemon, and of this version?", err: err}
			}
			if err := a.show(json.RawMessage(body), func(w *tabwriter.Writer) { showClaims(w, answer) }); err != nil {
				return err
			}
			if answer["active"] != true {
				return &failure{Exit: exitCondition, What: "the token is not active",
					Why:  "it is over, revoked, signed by a retired key, not ours, or none of this caller's business",
					Next: "countersign token inspect tells what stands in it; countersign token revocations what is revoked"}
			}
			return nil
		},
	}
}

func showClaims(w *tabwriter.Writer, claims map[string]any) {
	var names []string
	for name := range claims {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value, err := json.Marshal(claims[name])
		if err != nil {
			continue // what was decoded can be encoded
		}
		row(w, printable(name), printable(strings.Trim(string(value), `"`)))
	}
}
