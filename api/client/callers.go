package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// Callers tells who may call the service of the identity. etag is the tag of what the caller has, "" for nothing. With it
// the daemon answers at the next change, after at most wait (0 to 30 s). changed is false if what the caller has still
// holds; out is zero and newTag is etag then.
func (c *Client) Callers(ctx context.Context, etag string, wait time.Duration) (out wire.Callers, newTag string, changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait+c.timeout)
	defer cancel()
	rq := call{method: http.MethodGet, path: "/v1/callers", known: etag, long: true}
	if wait > 0 {
		rq.query = url.Values{"wait": {wait.String()}}
	}
	response, err := c.sendOwn(ctx, rq)
	if err != nil {
		return out, etag, false, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified {
		return out, etag, false, nil
	}
	body, err := readBody(response, rq)
	if err != nil {
		return out, etag, false, err
	}
	if newTag = response.Header.Get("ETag"); newTag == "" {
		return out, etag, false, &AnswerError{Method: rq.method, Path: rq.path, Err: errors.New("it has no ETag")}
	}
	if err := json.Unmarshal(body, &out); err != nil || out.Service.IsZero() {
		return wire.Callers{}, etag, false, &AnswerError{Method: rq.method, Path: rq.path, Err: errors.Join(err, errors.New("it is no list of callers"))}
	}
	return out, newTag, true, nil
}
