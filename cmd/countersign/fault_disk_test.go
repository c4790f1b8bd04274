package main

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

// smallLog is the smallest audit log: its files fill up soon.
func smallLog() []string {
	return []string{"COUNTERSIGN_AUDIT_SEGMENT=1MiB", "COUNTERSIGN_AUDIT_RESERVE=256KiB"}
}

// A disk that is full refuses what would have to be written, serves the rest, loses nothing, and works again by itself
// when there is space.
func TestFaultFullDisk(t *testing.T) {
	disk := newSmallDisk(t, "16m")
	i := instanceAt(t, plainBinary(t), filepath.Join(disk.path, "ca"), smallLog()...)
	w := newWorker(t, i)
	for range 3 {
		if err := errors.Join(w.enrol(t.Context()), w.token(t.Context(), w.service())); err != nil {
			t.Fatal(err)
		}
	}
	spare, err := w.joinToken(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}

	disk.fill(t)
	w.untilFull(t, func() error { return w.enrol(t.Context()) })
	w.untilTokensFull(t)
	for name, do := range map[string]func() error{
		"join token":  func() error { _, err := w.joinToken(t.Context(), "b"); return err },
		"certificate": func() error { return w.enrolWith(t.Context(), spare) },
		"policy":      func() error { return w.applyPolicy(t.Context(), "full") },
		"disable":     func() error { return w.admin.DisableService(t.Context(), "c", "full") },
		"rotate": func() error {
			_, err := w.admin.Rotate(t.Context(), "token", wire.RotateRequest{Now: true})
			return err
		},
		"token": func() error { return w.token(t.Context(), w.service()) },
	} {
		// What a refused change gave back, as the growth of the store's file, is taken again: else the daemon rightly goes on.
		disk.fill(t)
		w.untilTokensFull(t)
		wantFull(t, name, do())
	}
	disk.fill(t)
	w.untilTokensFull(t)
	w.stillServes(t, http.StatusServiceUnavailable)
	w.check()

	disk.free(t)
	w.eventually(t, func() error {
		return errors.Join(w.token(t.Context(), w.service()), w.enrol(t.Context()), w.applyPolicy(t.Context(), "again"))
	})
	// A request that was refused wrote nothing: the join token is as good as before.
	if err := w.enrolWith(t.Context(), spare); err != nil {
		t.Errorf("the join token that was refused on a full disk: %v", err)
	}
	w.stillServes(t, http.StatusOK)
	w.check()
	for _, kind := range []string{"audit.disk-full", "audit.resumed"} {
		if found, err := w.admin.Audit(t.Context(), client.AuditQuery{Type: kind}); err != nil || len(found.Records) == 0 {
			t.Errorf("no %s in the audit log: %v", kind, err)
		}
	}
	i.stop(t, syscall.SIGTERM)
	i.start(t)
	w.check()
}

// A file system that turns read-only under the daemon, as ext4 does after an error: the audit log refuses and says so,
// the store ends the daemon with 74. Then a start on it is refused, and one with everything in order again is clean.
func TestFaultReadOnly(t *testing.T) {
	bin := plainBinary(t)
	disk := newSmallDisk(t, "16m")
	i := instanceAt(t, bin, filepath.Join(disk.path, "ca"), smallLog()...)
	w := newWorker(t, i)
	if err := errors.Join(w.enrol(t.Context()), w.token(t.Context(), w.service())); err != nil {
		t.Fatal(err)
	}
	i.stop(t, syscall.SIGTERM)

	disk.remount(t, "ro")
	code, said := i.startFails(t)
	if code != exitLocal || !strings.Contains(said, "read-only file system") || !strings.Contains(said, "next:") {
		t.Errorf("a start on a read-only disk: exit code %d\n%s", code, said)
	}
	disk.remount(t, "rw")
	i.start(t)
	w.check()
}

// Writes through open files fail as they do on a file system that turned read-only.
func TestFaultReadOnlyWhileRunning(t *testing.T) {
	bin := plainBinary(t)
	i := newInstance(t, bin)
	w := newWorker(t, i)
	for file, refuse := range map[string]func(*worker, *testing.T){
		"audit/00000000000000000001.segment": (*worker).auditReadOnly,
		"countersign.db":                     (*worker).storeReadOnly,
	} {
		t.Run(filepath.Ext(file), func(t *testing.T) {
			i.stop(t, syscall.SIGTERM)
			i.bin = wrapped(t, bin, strace(filepath.Join(i.dir, file), "pwrite64", "EROFS", 8)...)
			i.start(t)
			refuse(w, t)
			i.bin = bin
			i.start(t)
			w.check()
		})
	}
}

// auditReadOnly wants refusals while the audit log can't be written, and everything else served.
func (w *worker) auditReadOnly(t *testing.T) {
	t.Helper()
	w.untilTokensFull(t)
	w.stillServes(t, http.StatusServiceUnavailable)
	w.i.stop(t, syscall.SIGKILL)
}

// storeReadOnly wants the daemon to end: of a commit that failed in another way than on a full disk nothing is known.
func (w *worker) storeReadOnly(t *testing.T) {
	t.Helper()
	w.untilDead(t)
	if code := w.i.exits(t); code != exitDisk {
		t.Errorf("exit code %d instead of %d\n%s", code, exitDisk, w.i.logText())
	}
}

// untilFull repeats a mutation until it is refused: what was made ready before the disk was full may still be used up.
func (w *worker) untilFull(t *testing.T, do func() error) {
	t.Helper()
	var err error
	for range 5000 {
		if err = do(); err != nil {
			break
		}
	}
	wantFull(t, "mutation", err)
}

// untilTokensFull asks for tokens, many at a time, until the space that the audit log has written ahead is used up.
func (w *worker) untilTokensFull(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	refusals := make(chan error, 16)
	for range cap(refusals) {
		c := w.service()
		group.Go(func() {
			for range 20_000 {
				if err := w.token(ctx, c); err != nil {
					refusals <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(refusals)
	seen := 0
	for err := range refusals {
		wantFull(t, "token", err)
		seen++
	}
	if seen == 0 {
		t.Fatal("tokens are issued though nothing can be recorded")
	}
}

// wantFull wants 503 in the form of the route, with a time to come again.
func wantFull(t *testing.T, what string, err error) {
	t.Helper()
	var api *client.APIError
	var oauth *client.OAuthError
	switch {
	case errors.As(err, &api):
		full := api.Code() == countersign.CodeBusy || api.Code() == countersign.CodeAudit
		if api.Status != http.StatusServiceUnavailable || !full || api.RetryAfter <= 0 {
			t.Errorf("%s: %d, Retry-After %s: %v", what, api.Status, api.RetryAfter, err)
		}
	case errors.As(err, &oauth):
		if oauth.Status != http.StatusServiceUnavailable || oauth.Body.Error != "temporarily_unavailable" || oauth.RetryAfter <= 0 {
			t.Errorf("%s: %d, Retry-After %s: %v", what, oauth.Status, oauth.RetryAfter, err)
		}
	default:
		t.Errorf("%s: %v", what, err)
	}
}

// stillServes wants the public documents, health and reads; ready is what the load balancer is told.
func (w *worker) stillServes(t *testing.T, ready int) {
	t.Helper()
	for path, want := range map[string]int{"/livez": http.StatusOK, "/readyz": ready, "/metrics": http.StatusOK} {
		response, err := http.Get("http://" + w.i.ops + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, response.Status, want)
		}
	}
	keys, err := w.service().JWKS(t.Context())
	if err != nil || !strings.Contains(string(keys), `"kid"`) {
		t.Errorf("JWKS: %s, %v", keys, err)
	}
	_, rootsErr := w.service().RootsPEM(t.Context())
	_, statusErr := w.admin.Status(t.Context())
	_, keysErr := w.admin.Keys(t.Context())
	_, listErr := w.admin.Certificates(t.Context(), client.CertificateQuery{})
	_, auditErr := w.admin.Audit(t.Context(), client.AuditQuery{Limit: 10, Newest: true})
	if err := errors.Join(rootsErr, statusErr, keysErr, listErr, auditErr); err != nil {
		t.Errorf("reads: %v", err)
	}
}

// eventually wants do to work again without anybody's help.
func (w *worker) eventually(t *testing.T, do func() error) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		err := do()
		if err == nil {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("there is space again, and still: %v", err)
		}
	}
}
