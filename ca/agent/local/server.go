package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/countersign/countersign/ca/mtls"
)

const (
	headerTime    = 10 * time.Second // to send the header of an HTTP/1.1 request
	writeMost     = 10 * time.Second // for the reader of one message
	idleTime      = 5 * time.Minute
	drainTime     = 5 * time.Second
	maxHeader     = 24 << 10 // a token has up to 16 KiB
	judgedAtATime = 8        // connections of one user whose program is looked at
)

// Server serves the local APIs. It is safe for concurrent use.
type Server struct {
	cfg         Config
	log         *slog.Logger
	served      map[string]*served
	programs    bool // a rule names a program
	connections *places
	calls       *places
	judging     *places
	grpc        *grpc.Server
	denials     denials
	stopping    chan struct{} // closed when Serve is to end
	writeTime   time.Duration // for the reader of one message
}

// served is one identity with what is kept for its callers.
type served struct {
	name   string
	source *mtls.Source
	tokens *mtls.Tokens
	bundle *bundle

	stopping <-chan struct{} // of the server
}

// New checks the configuration; everything that is wrong with it is told at once. It opens nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("local API: %w", err)
	}
	cfg.Limits.defaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, served: map[string]*served{}, stopping: make(chan struct{}), denials: denials{now: cfg.Now, last: map[uint32]denial{}},
		connections: newPlaces(cfg.Limits.PerUser, cfg.Limits.Connections),
		calls:       newPlaces(cfg.Limits.Streams, 0),
		judging:     newPlaces(judgedAtATime, 0),
		writeTime:   writeMost,
	}
	for _, id := range cfg.Identities {
		tokens := id.Tokens
		if tokens == nil {
			tokens = mtls.NewTokens(id.Source)
		}
		s.served[id.Name] = &served{name: id.Name, source: id.Source, tokens: tokens, bundle: newBundle(id.Source, cfg.Now), stopping: s.stopping}
	}
	for _, r := range cfg.Rules {
		s.programs = s.programs || r.Exe != ""
	}
	s.grpc = s.newGRPC()
	return s, nil
}

// Serve serves until ctx ends; then it ends all streams, removes the socket and returns nil. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	socket, err := listen(s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("local API: %w", err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, looping := errgroup.WithContext(running)
	for _, id := range s.served {
		group.Go(func() error { return id.bundle.follow(looping, s.log.With("identity", id.name)) })
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler: http.HandlerFunc(s.serve), Protocols: protocols, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: s.cfg.Limits.Streams, WriteByteTimeout: s.writeTime},
		BaseContext: func(net.Listener) context.Context { return looping },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, c)
		},
	}
	group.Go(func() error {
		if err := server.Serve(listener{socket, s}); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("local API: %w", err)
		}
		return nil
	})
	s.log.Info("local API: serving", "socket", s.cfg.Socket)
	select {
	case <-ctx.Done():
	case <-looping.Done(): // it failed
	}
	// Streams end with a word to their clients, which the end of their context would not let them say.
	close(s.stopping)
	drained, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if server.Shutdown(drained) != nil {
		server.Close()
	}
	s.grpc.Stop()
	stop()
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

type connectionKey struct{}

// denials bounds how many lines denials make: one a second for each user, and the number of those in between.
type denials struct {
	mu   sync.Mutex
	now  func() time.Time
	last map[uint32]denial
}

type denial struct {
	at      time.Time
	dropped int
}

const maxDenials = 1024 // users that are remembered

// denied tells the log of a denial. Nothing that a caller sent is in it.
func (s *Server) denied(p peer, reason string) {
	d := &s.denials
	now := d.now()
	d.mu.Lock()
	last := d.last[p.uid]
	quiet := now.Sub(last.at) < time.Second && !now.Before(last.at)
	if quiet {
		last.dropped++
		d.last[p.uid] = last
	} else {
		if len(d.last) >= maxDenials {
			clear(d.last)
		}
		d.last[p.uid] = denial{at: now}
	}
	d.mu.Unlock()
	if !quiet {
		s.log.Warn("local API: denied", "uid", p.uid, "gid", p.gid, "pid", p.pid, "reason", reason, "more", last.dropped)
	}
}
