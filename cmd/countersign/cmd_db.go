package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

// shownCheck is what db check prints.
type shownCheck struct {
	OK bool `json:"ok"`
	daemon.DBReport
}

func (a *app) dbCommand() *cobra.Command {
	return group("db", "look after the database of a daemon that is stopped", a.dbCheckCommand(), a.dbStatsCommand(), a.dbCompactCommand())
}

func (a *app) dbCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "read all of the database and hold the audit log's end to it; exit code 4 if anything is wrong", Args: noArgs,
		Long: `Reads the database of --dir under its lock, which a running daemon holds: stop that first. It checks the pages and their order, the
seal of the last commit, the checksum of every record, bbolt's own rules, the index by which expired records are removed, and that the
audit log reaches the end that the database remembers. It changes nothing. countersign audit verify checks the whole log.`,
		Example: "  countersign db check --dir /var/lib/countersign",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := a.readDB(cmd)
			if err != nil {
				return err
			}
			err = a.show(shownCheck{len(found.Faults) == 0, found}, func(w *tabwriter.Writer) {
				row(w, "database", found.File)
				row(w, "records", fmt.Sprintf("%d in %d tables", found.Records, len(found.Tables)))
				row(w, "audit log", fmt.Sprintf("to record %d; the database remembers %d", found.Audit.Log.Seq, found.Audit.Stored.Seq))
				for _, fault := range found.Faults {
					row(w, "wrong", fault)
				}
				if len(found.Faults) == 0 {
					row(w, "wrong", "nothing")
				}
			})
			if err == nil && len(found.Faults) > 0 {
				err = &failure{Exit: exitCondition, What: "the database is damaged, or the audit log does not fit it", Why: found.Faults[0], Code: countersign.CodeDBFaults,
					Next: "keep a copy of the directory as it is, then restore the newest backup into another one (countersign restore --audit)"}
			}
			return err
		},
	}
}

func (a *app) dbStatsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stats", Short: "what the database holds: tables, records, bytes, free pages", Args: noArgs,
		Long: `Reads the database of --dir under its lock, which a running daemon holds: stop that first. EXPIRED are records that the daemon
removes within seconds when it runs; FIRST and LAST are when the first and the last of a table's records expire.`,
		Example: "  countersign db stats --dir /var/lib/countersign -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := a.readDB(cmd)
			if err != nil {
				return err
			}
			return a.show(found, func(w *tabwriter.Writer) {
				row(w, "TABLE", "RECORDS", "EXPIRED", "BYTES", "FIRST", "LAST")
				for _, t := range found.Tables {
					row(w, t.Name, fmt.Sprint(t.Records), fmt.Sprint(t.Expired), fmt.Sprint(t.Bytes), a.moment(t.First), a.moment(t.Last))
				}
				fmt.Fprintf(w, "\nfile\t%d bytes, %d pages of %d bytes, %d of them free\n", found.FileBytes, found.Pages, found.PageBytes, found.FreePages)
				fmt.Fprintf(w, "audit log\t%d bytes in %d segments\n", found.Audit.Bytes, found.Audit.Segments)
				if len(found.Faults) > 0 {
					fmt.Fprintf(w, "damaged\tcountersign db check says what is wrong\n")
				}
			})
		},
	}
}

func (a *app) dbCompactCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compact", Short: "write the database anew without the room that removed records left", Args: noArgs,
		Long: `Writes a copy of the database beside it, compares both record by record, and puts the copy in its place. It works under the lock, which
a running daemon holds: stop that first. The directory needs room for the copy; without it nothing is begun. Killed at any point there is one whole
database; run it again. The daemon uses free pages again by itself: compacting is for a file that was once much larger.`,
		Example: "  countersign db compact --dir /var/lib/countersign",
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress, end := a.progress("records were copied")
			done, err := daemon.CompactDB(cmd.Context(), daemon.Dir(a.dir), progress)
			end()
			if err != nil {
				return a.explainDB(err)
			}
			return a.show(done, func(w *tabwriter.Writer) {
				row(w, "database", done.File)
				row(w, "records", fmt.Sprint(done.Records))
				row(w, "bytes", fmt.Sprintf("%d, before %d", done.After, done.Before))
			})
		},
	}
}

// readDB is what check and stats share.
func (a *app) readDB(cmd *cobra.Command) (daemon.DBReport, error) {
	progress, end := a.progress("records were read")
	found, err := daemon.CheckDB(cmd.Context(), daemon.Dir(a.dir), a.now(), progress)
	end()
	if err != nil {
		return found, a.explainDB(err)
	}
	return found, nil
}

func (a *app) explainDB(err error) error {
	var (
		locked *bolt.LockedError
		room   *bolt.RoomError
	)
	switch {
	case errors.As(err, &locked):
		return &failure{Exit: exitCondition, What: "a daemon uses this database", Why: locked.Error(), Code: countersign.CodeDBHeld, err: err,
			Next: "stop the daemon first; countersign doctor looks at one that runs"}
	case errors.As(err, &room):
		return &failure{Exit: exitCondition, What: "there is no room for the copy", Why: room.Error(), Code: countersign.CodeDBRoom, err: err,
			Next: "make room on that disk; nothing was written"}
	case errors.Is(err, fs.ErrNotExist):
		return &failure{Exit: exitLocal, What: "there is no database in " + a.dir, Why: cause(err), err: err,
			Next: "name the daemon's directory with --dir"}
	case errors.Is(err, storage.ErrCorrupt):
		return &failure{Exit: exitCondition, What: "the database is damaged", Why: err.Error(), Code: countersign.CodeDBFaults, err: err,
			Next: "countersign db check says all that is wrong; nothing was changed"}
	}
	return err
}

// progress shows counts on a terminal, on one line; elsewhere nothing.
func (a *app) progress(what string) (tell func(int64), end func()) {
	f, ok := a.err.(*os.File)
	if !ok || a.quiet {
		return nil, func() {}
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil, func() {}
	}
	shown := false
	return func(n int64) { shown = true; fmt.Fprintf(f, "\r%d %s", n, what) }, func() {
		if shown {
			fmt.Fprint(f, "\r\x1b[K")
		}
	}
}
