package client

import (
	"context"
	"io"
	"net/http"
)

// Backup copies a backup of the daemon to w. Whether it came whole is for who reads it to see: its form tells.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	rq := call{method: http.MethodPost, path: "/v1/backup", long: true}
	response, err := c.sendOwn(ctx, rq)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	written := &writer{w: w}
	if _, err := io.Copy(written, response.Body); err != nil {
		if written.err != nil {
			return written.err
		}
		return &AnswerError{Method: rq.method, Path: rq.path, Err: err}
	}
	return nil
}

// writer remembers its own error, to tell it from the peer's.
type writer struct {
	w   io.Writer
	err error
}

// Write writes.
func (w *writer) Write(p []byte) (n int, err error) {
	n, w.err = w.w.Write(p)
	return n, w.err
}
