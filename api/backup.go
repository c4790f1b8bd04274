package api

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// Backup makes backups of the daemon.
type Backup interface {
	// Write writes one backup. It is recorded before its first byte. One that was not written to its end is known to be
	// broken by its form.
	Write(ctx context.Context, by countersign.Caller, w io.Writer) error
}

// backup streams a backup: as long as it is taken, it goes on.
func (s *Server) backup(rq *request) error {
	if s.Backup == nil {
		return countersign.Errorf(countersign.CodeNoRoute, "no backup can be had here")
	}
	if t := trackOf(rq); t != nil {
		t.stream = true
	}
	if err := patient(rq); err != nil {
		return err
	}
	return s.Backup.Write(rq.Request().Context(), rq.caller, &backupWriter{rq: rq, stream: http.NewResponseController(rq.Response())})
}

// backupWriter begins the answer with its first byte, so that an error before that is an answer like any other, and gives up a
// peer that takes nothing for a while: no audit segment leaves meanwhile.
type backupWriter struct {
	rq     *request
	stream *http.ResponseController
	begun  bool
}

// Write writes to the peer.
func (b *backupWriter) Write(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.rq.Response().Header().Set("Content-Type", wire.Archive)
		b.rq.Response().WriteHeader(http.StatusOK)
	}
	if err := b.stream.SetWriteDeadline(time.Now().Add(streamPatience)); err != nil {
		return 0, err
	}
	return b.rq.Response().Write(p)
}
