package api

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// ServerConfig of [NewServer]. The zero durations are the defaults of production; tests shorten them.
type ServerConfig struct {
	Handler     http.Handler
	TLS         *tls.Config                                     // of the public listener: see TLSConfig
	ConnContext func(context.Context, net.Conn) context.Context // PeerCred for the admin socket
	Logger      *slog.Logger                                    // nil: discards
	Header      time.Duration                                   // for the handshake and, again, for the header; default 5 s
	Read        time.Duration                                   // for the whole request; default 30 s
	Write       time.Duration                                   // for the answer; default 60 s; streams set their own
	Idle        time.Duration                                   // between requests; default 2 min
}

const (
	maxHeader  = 16 << 10
	maxStreams = 250 // concurrent requests of one HTTP/2 connection
	// What an HTTP/2 peer may send before a handler reads it. By net/http's default it would be 1 MiB a connection, and so
	// much memory for each peer whose requests wait.
	maxUnread = 32 << 10
)

// NewServer is an http.Server that no slow, silent or flooding peer can hold up. The caller serves it with ServeTLS on a
// [LimitListener], or with Serve where there is no TLS.
func NewServer(cfg ServerConfig) *http.Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           cfg.Handler,
		TLSConfig:         cfg.TLS,
		ConnContext:       cfg.ConnContext,
		ReadHeaderTimeout: orDefault(cfg.Header, 5*time.Second), // net/http takes the least of the timeouts for the handshake
		ReadTimeout:       orDefault(cfg.Read, 30*time.Second),
		WriteTimeout:      orDefault(cfg.Write, 60*time.Second),
		IdleTimeout:       orDefault(cfg.Idle, 2*time.Minute),
		MaxHeaderBytes:    maxHeader - 4096, // net/http adds 4 KiB of its own
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: maxUnread, MaxReceiveBufferPerConnection: 4 * maxUnread,
		},
		// Broken handshakes are what strangers cause: worth a line to who looks for it, not an alarm.
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
}

func orDefault(d, other time.Duration) time.Duration {
	if d == 0 {
		return other
	}
	return d
}

// TLSConfig is that of the public listener. A client certificate is asked for and not judged here: a connection that is
// kept would outlive its expiry and revocation, and an expired one would cost its owner even the public documents. It is
// judged on each request. Session tickets are off, because a resumed session repeats an old proof.
func TLSConfig(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		GetCertificate:         certificate,
		NextProtos:             []string{"h2", "http/1.1"},
	}
}
