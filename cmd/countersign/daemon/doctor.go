package daemon

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// The states of a [Finding]. Only FindingWrong is a reason for a bad exit code.
const (
	FindingOK      = "ok"
	FindingAdvice  = "advice"  // it works; it should be another way
	FindingWrong   = "wrong"   // it does not work, or soon will not
	FindingUnknown = "unknown" // it could not be looked at
)

// Finding is what `doctor` says of one thing. Next, how to mend it, is empty only if it is ok.
type Finding struct {
	Check string `json:"check"`
	State string `json:"state"`
	What  string `json:"what"`
	Next  string `json:"next,omitempty"`
}

// Facts are what `doctor` judges. [Look] collects those of the disk; Live is what a running daemon says, nil without one.
type Facts struct {
	Now       time.Time
	Dir       Dir
	Config    error               // why the configuration can't be used
	Own       []*x509.Certificate // the daemon's own chain, leaf first
	OwnErr    error
	Roots     []*x509.Certificate // of root.pem
	Modes     []ModeFault
	Free      int64 // bytes that the file system has left; negative: not known
	Database  int64 // bytes
	Lock      error // a *bolt.LockedError, or why the database can't be looked at
	KEK       error // why there is none that can be used
	Backups   []string
	Audit     error // why the log on the disk does not fit the store; only without a running daemon
	AuditSeq  uint64
	AuditSeen bool // Audit and AuditSeq were looked at
	Newest    time.Time
	Live      *Live
}

// Live is what a running daemon says of itself.
type Live struct {
	Status    wire.Status
	Authority wire.Authority
	Keys      wire.Keys
	Clock     wire.Clock
}

// ModeFault is a file or directory with rights or an owner that it must not have.
type ModeFault struct{ Path, What, Next string }

// spareDisk is what must be free beside a copy of the database, which a backup and a compaction need: the audit log's reserve and
// some segments.
const spareDisk = 256 << 20

// Judge says what is wrong, and how to mend it. It is pure.
func (f Facts) Judge() []Finding {
	var all []Finding
	add := func(found ...Finding) { all = append(all, found...) }
	if f.Config != nil {
		add(Finding{"configuration", FindingWrong, firstLine(f.Config), "countersign config check tells every mistake with its place"})
	} else {
		add(Finding{Check: "configuration", State: FindingOK, What: f.Dir.config() + " is valid"})
	}
	add(f.daemon(), f.kek(), f.ownCertificate())
	add(f.authority()...)
	add(f.clock())
	add(f.modes()...)
	add(f.disk(), f.backups(), f.rootKey())
	add(f.tokens()...)
	add(f.issuers()...)
	add(f.chain())
	return all
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (f Facts) daemon() Finding {
	const check = "daemon"
	switch {
	case f.Live != nil && !f.Live.Status.Ready:
		return Finding{check, FindingWrong, "it runs and is not ready: " + strings.Join(f.Live.Status.Reasons, "; "), "mend the reason; it goes on by itself (docs/operations.md)"}
	case f.Live != nil:
		return Finding{Check: check, State: FindingOK, What: "it runs, version " + f.Live.Status.Version}
	case f.Lock != nil:
		return Finding{check, FindingWrong, "no daemon answers on the admin socket, and the database can't be had: " + f.Lock.Error(),
			"run this as the daemon's user or root; if that process hangs, stop it and start the daemon again"}
	}
	return Finding{check, FindingAdvice, "it does not run; nobody holds the lock", "countersign serve --dir " + string(f.Dir)}
}

func (f Facts) kek() Finding {
	const check = "key-encryption key"
	switch {
	case f.Live != nil && !f.Live.Status.Sealed:
		return Finding{Check: check, State: FindingOK, What: "the daemon has it"}
	case f.KEK != nil:
		return Finding{check, FindingWrong, f.KEK.Error(), "put back the file kek of this authority, mode 0400; no other key opens the database"}
	case f.Live != nil:
		return Finding{check, FindingWrong, "it is there, and the daemon is sealed", "it looks again within 5 s, or at once after SIGHUP; its log tells why it does not open"}
	}
	return Finding{Check: check, State: FindingOK, What: "it is there"}
}

// expiry judges a certificate by what is left of its life: below a tenth, or the given part, it should have a successor by now.
func (f Facts) expiry(check string, cert *x509.Certificate, tight time.Duration, next string) Finding {
	left := cert.NotAfter.Sub(f.now())
	until := "until " + cert.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case f.now().After(cert.NotAfter):
		return Finding{check, FindingWrong, "it expired at " + cert.NotAfter.UTC().Format(time.RFC3339), next}
	case left < tight:
		return Finding{check, FindingWrong, "it is valid " + until + " and has no successor yet", next}
	}
	return Finding{Check: check, State: FindingOK, What: "valid " + until}
}

// now is the daemon's time if it runs: certificates are judged by that.
func (f Facts) now() time.Time {
	if f.Live != nil {
		return f.Live.Status.Time
	}
	return f.Now
}

func life(cert *x509.Certificate) time.Duration { return cert.NotAfter.Sub(cert.NotBefore) }

func (f Facts) ownCertificate() Finding {
	const check = "own certificate"
	if errors.Is(f.OwnErr, fs.ErrNotExist) && f.Live == nil { // a restored directory before its first start
		return Finding{check, FindingAdvice, "there is none yet", "the daemon issues itself one when it starts with its key-encryption key"}
	}
	if f.OwnErr != nil || len(f.Own) == 0 {
		return Finding{check, FindingWrong, fmt.Sprint("it can't be read: ", f.OwnErr),
			"a daemon that has its key-encryption key issues itself a new one if the directory server is absent: start it"}
	}
	return f.expiry(check, f.Own[0], life(f.Own[0])/4, "the daemon renews it by itself when half of its life is left: start it, or look in its log for why it does not")
}

// authority judges what signs: as a running daemon tells it, else as the daemon's own chain and root.pem do.
func (f Facts) authority() []Finding {
	const rotateIntermediate = "countersign ca rotate intermediate --now, with the daemon running; it works with an expired one too"
	const rotateRoot = "countersign ca rotate root, with the daemon running; then give clients the new bundle (countersign ca bundle)"
	var out []Finding
	if f.Live == nil {
		for _, cert := range f.Own[min(1, len(f.Own)):] {
			if cert.Issuer.String() != cert.Subject.String() {
				out = append(out, f.expiry("intermediate", cert, life(cert)/10, rotateIntermediate))
			}
		}
		for _, cert := range f.Roots {
			out = append(out, f.expiry("root", cert, life(cert)/10, rotateRoot))
		}
		return out
	}
	for _, group := range []struct {
		check, next string
		certs       []wire.AuthorityCertificate
	}{{"intermediate", rotateIntermediate, f.Live.Authority.Intermediates}, {"root", rotateRoot, f.Live.Authority.Roots}} {
		waits := slices.ContainsFunc(group.certs, func(c wire.AuthorityCertificate) bool { return c.State == "pending" })
		found := false
		for _, c := range group.certs {
			if c.State != "signing" && !(c.State == "expired" && len(group.certs) == 1) {
				continue
			}
			found = true
			cert := &x509.Certificate{NotBefore: c.NotBefore, NotAfter: c.NotAfter}
			tight := life(cert) / 10
			if waits {
				tight = 0
			}
			out = append(out, f.expiry(group.check, cert, tight, group.next))
		}
		if !found {
			out = append(out, Finding{group.check, FindingWrong, "none that is valid signs now", group.next})
		}
	}
	return out
}

func (f Facts) clock() Finding {
	const check = "clock"
	const next = "set the clock right (timedatectl shows whether it is synchronised); if it is right, countersign clock confirm"
	switch {
	case f.Live != nil && !f.Live.Clock.Trusted:
		return Finding{check, FindingWrong, f.Live.Clock.Why, next}
	case f.Live != nil:
		return Finding{Check: check, State: FindingOK, What: "the daemon believes it: " + f.Live.Clock.Time.UTC().Format(time.RFC3339)}
	case f.Newest.After(f.Now.Add(maxParted)):
		return Finding{check, FindingWrong, fmt.Sprintf("it says %s, and the audit log was written at %s", f.Now.UTC().Format(time.RFC3339), f.Newest.UTC().Format(time.RFC3339)), next}
	case len(f.Own) > 0 && f.Now.Before(f.Own[0].NotBefore):
		return Finding{check, FindingWrong, fmt.Sprintf("it says %s, before the daemon's own certificate was made", f.Now.UTC().Format(time.RFC3339)), next}
	}
	return Finding{Check: check, State: FindingOK, What: "not before what the directory holds"}
}

func (f Facts) modes() []Finding {
	if len(f.Modes) == 0 {
		return []Finding{{Check: "permissions", State: FindingOK, What: "the directory and its files are their owner's alone"}}
	}
	var out []Finding
	for _, m := range f.Modes {
		out = append(out, Finding{"permissions", FindingWrong, m.Path + " " + m.What, m.Next})
	}
	return out
}

func (f Facts) disk() Finding {
	const check = "disk"
	need := f.Database + spareDisk
	what := fmt.Sprintf("%d MiB are free; the database has %d MiB", f.Free>>20, f.Database>>20)
	switch {
	case f.Free < 0:
		return Finding{check, FindingUnknown, "the file system does not say how much is free", "look yourself: df " + string(f.Dir)}
	case f.Free < need:
		return Finding{check, FindingWrong, what, fmt.Sprintf("make room for %d MiB: a backup and a compaction copy the database, and the audit log grows", need>>20)}
	}
	return Finding{Check: check, State: FindingOK, What: what}
}

func (f Facts) backups() Finding {
	const check = "backups"
	if len(f.Backups) == 0 {
		return Finding{Check: check, State: FindingOK, What: "none lies beside the key-encryption key"}
	}
	return Finding{check, FindingWrong, "beside the key-encryption key lies " + strings.Join(f.Backups, ", ") + ": who copies both has the keys in clear",
		"move it to another machine; keep the key-encryption key apart from backups"}
}

func (f Facts) rootKey() Finding {
	const check = "root key"
	if f.Live == nil {
		return Finding{check, FindingUnknown, "whether the root's key is online is known to a running daemon", "run this again when the daemon runs"}
	}
	for _, root := range f.Live.Authority.Roots {
		if slices.ContainsFunc(f.Live.Keys.Keys, func(k wire.Key) bool { return k.ID == root.KeyID && k.KMS == "" }) {
			return Finding{check, FindingAdvice, "the root's key is online, sealed in the database",
				"whoever has database and key-encryption key can make intermediates until the root is replaced: guard both, and keep them apart"}
		}
	}
	return Finding{Check: check, State: FindingOK, What: "the root's key is not in the database"}
}

// maxKeysAge is when the keys of an issuer are older than any healthy fetch leaves them; at 24 h they stop serving.
const maxKeysAge = 2 * time.Hour

func (f Facts) issuers() []Finding {
	if f.Live == nil {
		return []Finding{{"issuers", FindingUnknown, "whether issuers can be reached is known to a running daemon", "run this again when the daemon runs"}}
	}
	var out []Finding
	for _, i := range f.Live.Status.Issuers {
		check := "issuer " + i.Issuer
		next := "can the daemon's machine reach its jwks_uri, and is it right in the policy? The daemon's log has the cause"
		switch age := f.now().Sub(i.Fetched); {
		case i.Pinned:
			out = append(out, Finding{Check: check, State: FindingOK, What: "its keys stand in the policy"})
		case i.Fetched.IsZero():
			out = append(out, Finding{check, FindingWrong, "its keys were never fetched: its tokens are refused", next})
		case i.Failing || age > maxKeysAge:
			out = append(out, Finding{check, FindingWrong, "its keys were last fetched at " + i.Fetched.UTC().Format(time.RFC3339) + "; they serve 24 h", next})
		default:
			out = append(out, Finding{Check: check, State: FindingOK, What: "its keys were fetched at " + i.Fetched.UTC().Format(time.RFC3339)})
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{Check: "issuers", State: FindingOK, What: "the policy names none"})
	}
	return out
}

func (f Facts) chain() Finding {
	const check = "audit chain"
	switch {
	case f.Live != nil: // a running log holds head and store together; whether it can be written is part of being ready
		return Finding{Check: check, State: FindingOK, What: fmt.Sprintf("the running daemon is at record %d; countersign audit verify reads all of it", f.Live.Status.AuditSeq)}
	case f.Audit != nil:
		return Finding{check, FindingWrong, f.Audit.Error(), "keep a copy of the whole directory as it is; then restore database and audit log from one backup (docs/backup.md)"}
	case !f.AuditSeen:
		return Finding{check, FindingUnknown, "the database could not be opened: " + cmp.Or(fmt.Sprint(f.Lock), "-"), "mend that first"}
	}
	return Finding{Check: check, State: FindingOK, What: fmt.Sprintf("the log reaches the head that the store remembers, and ends with record %d", f.AuditSeq)}
}
