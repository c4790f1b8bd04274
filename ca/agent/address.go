package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSocketPath is Linux's limit on the path of a Unix socket, without its final zero (unix(7)).
const maxSocketPath = 107

// target is a TLS server whose certificate is looked at: host:port.
type target string

// parseTarget reads tcp://host:port or https://host:port; both mean a bare TLS handshake.
func parseTarget(s string) (target, error) {
	if s == "" {
		return "", errors.New("is needed: the program's TLS address, as tcp://127.0.0.1:8443")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "tcp" && u.Scheme != "https" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is no address to look at: write tcp://host:port", s)
	}
	port := u.Port()
	if port == "" && u.Scheme == "https" {
		port = "443"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || u.Hostname() == "" {
		return "", fmt.Errorf("%q is no address to look at: write tcp://host:port", s)
	}
	return target(net.JoinHostPort(u.Hostname(), port)), nil
}

// checkServer tells why s is not https://host:port.
func checkServer(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q must be https://host:port and nothing else", s)
	}
	return nil
}

// checkLoopback tells why s is no address of loopback: what the listener tells is for this machine only.
func checkLoopback(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is no address to listen on: write 127.0.0.1:8445", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port number: write 127.0.0.1:8445", s)
	}
	if addr, err := netip.ParseAddr(host); err != nil || !addr.IsLoopback() {
		return fmt.Errorf("%q is not an address of loopback: write 127.0.0.1:%s or [::1]:%s", s, port, port)
	}
	return nil
}

// DefaultSocket is where an agent answers `agent status` unless its configuration says otherwise: agent.sock in systemd's
// runtime directory, in the user's, in /run/countersign for root, else in a directory of the user's own below /tmp.
func DefaultSocket(getenv func(string) string, uid int) string {
	dir := filepath.Join(os.TempDir(), "countersign-"+strconv.Itoa(uid))
	xdg := getenv("XDG_RUNTIME_DIR")
	switch {
	case filepath.IsAbs(getenv("RUNTIME_DIRECTORY")):
		dir = getenv("RUNTIME_DIRECTORY")
	case filepath.IsAbs(xdg):
		dir = filepath.Join(xdg, "countersign")
	case uid == 0:
		dir = "/run/countersign"
	}
	return filepath.Join(dir, "agent.sock")
}
