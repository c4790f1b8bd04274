package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/countersign/countersign"
)

const (
	firstRead = 4 << 10
	lightBody = 16 << 10 // no honest token form or certificate request is larger
	roomBytes = 1 << 20  // for all bodies beyond lightBody, together: one policy, 4 forms, or 2 certificate requests
	copies    = 4        // of a body are made by who decodes it; a share counts them
	outBytes  = 2 * copies * formBody
)

// rooms bounds what bodies may cost at one time, whoever sends them and over however many connections: those that turn out
// to be large, and all of the routes that take policies, whose parser needs many times the document's size. Light bodies
// never wait, so that who holds a room with a slow body holds up nobody but others with large ones.
type rooms struct {
	free *semaphore.Weighted
	// outside is a room apart for those whose credential stands in the body: strangers with slow large ones hold up nobody
	// who came with a certificate.
	outside *semaphore.Weighted
	// policy is the buffer into which policies are read, once there was one: they come in one at a time, and a flood of
	// them is no flood of garbage.
	policy chan []byte
	forms  *sync.Pool // of *[]byte
}

func newRooms() rooms {
	return rooms{free: semaphore.NewWeighted(roomBytes), outside: semaphore.NewWeighted(outBytes), policy: make(chan []byte, 1), forms: &sync.Pool{}}
}

// room is one request's share.
type room struct {
	rooms rooms
	from  *semaphore.Weighted
	bytes int64 // that are read at most
	share int64 // of from
	told  int64 // the length that the sender told; 0: none
	taken bool
}

func (r rooms) of(rt route, known bool) *room {
	if !known && rt.auth.byForm() || rt.auth == authLogout {
		return &room{rooms: r, from: r.outside, bytes: min(rt.body, outBytes), share: min(copies*rt.body, outBytes)}
	}
	return &room{rooms: r, from: r.free, bytes: min(rt.body, roomBytes), share: min(copies*rt.body, roomBytes)}
}

// enter waits for the share; to have it already is no error.
func (r *room) enter(ctx context.Context) error {
	if r.taken {
		return nil
	}
	if err := r.from.Acquire(ctx, r.share); err != nil {
		return countersign.Errorf(countersign.CodeTimeout, "others are sending large requests; this one had to wait too long").
			After(5 * time.Second).Because(err)
	}
	r.taken = true
	return nil
}

// leave gives the share back, if there is one.
func (r *room) leave() {
	if r.taken {
		r.from.Release(r.share)
		r.taken = false
	}
}

// read reads body to its end. It is not io.ReadAll, which needs several times what a body has: this takes one small buffer
// and then, in a room, one for the most that the route takes.
func (r *room) read(ctx context.Context, body io.Reader) ([]byte, error) {
	if r.bytes > csrBody {
		if err := r.enter(ctx); err != nil {
			return nil, err
		}
	}
	first := int64(firstRead)
	if r.told > 0 { // the sender said how much it is; one byte more, for the read that finds the end
		first = min(first, r.told+1)
	}
	first = min(first, r.bytes+1)
	if r.bytes > csrBody {
		read := r.rooms.buffer(r.bytes + 1)
		defer func() { r.rooms.policy <- read[:0] }() // there is room: who gives it back has the one share
		body, err := readInto(read, body)
		return bytes.Clone(body), err
	}
	read := r.rooms.small(first)
	for {
		n, err := body.Read(read[len(read):cap(read)])
		read = read[:len(read)+n]
		switch {
		case errors.Is(err, io.EOF):
			return read, nil
		case err != nil:
			return nil, err
		case len(read) < cap(read):
			continue
		}
		next := int64(lightBody)
		if len(read) >= lightBody {
			if err := r.enter(ctx); err != nil {
				return nil, err
			}
			next = r.bytes + 1 // one more, for the read that finds the end
		}
		read = append(make([]byte, 0, min(next, r.bytes+1)), read...)
	}
}

// small is an empty buffer of a form that was read, or a new one.
func (r rooms) small(size int64) []byte {
	if kept, _ := r.forms.Get().(*[]byte); kept != nil && int64(cap(*kept)) >= size {
		return (*kept)[:0]
	}
	return make([]byte, 0, size)
}

// giveBack keeps the buffer of a body that nobody has any more, unless it is a large one.
func (r rooms) giveBack(body []byte) {
	if cap(body) > 0 && cap(body) <= firstRead {
		r.forms.Put(&body)
	}
}

// buffer is the one for policies, whose room the caller has.
func (r rooms) buffer(size int64) []byte {
	select {
	case kept := <-r.policy:
		return kept
	default:
		return make([]byte, 0, size)
	}
}

// readInto reads body to its end into buffer, which is larger than what body gives before it fails.
func readInto(buffer []byte, body io.Reader) ([]byte, error) {
	for len(buffer) < cap(buffer) {
		n, err := body.Read(buffer[len(buffer):cap(buffer)])
		buffer = buffer[:len(buffer)+n]
		if errors.Is(err, io.EOF) {
			return buffer, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, io.ErrShortBuffer
}
