package verify

import (
	"fmt"
	"net/url"
	"strings"
)

// sameURI tells whether htu is the request's URI without query and fragment, both in normal form (RFC 9449 4.3, check 9).
// base is configured: which host a request says that it is for is the sender's word.
func sameURI(htu string, base *url.URL, path string) bool {
	if strings.HasPrefix(path, "//") || path != "" && path[0] != '/' {
		return false // the asterisk form, or what would be read as a host
	}
	want, err := normalURI(base.Scheme + "://" + base.Host + base.EscapedPath() + path)
	if err != nil {
		return false
	}
	got, err := normalURI(htu)
	return err == nil && got == want
}

// normalURI is an http or https URI without query and fragment after syntax- and scheme-based normalisation (RFC 3986 6.2.2,
// 6.2.3): scheme and host in lower case, no default port, percent-encodings in upper case and only where they are needed,
// no dot segments, "/" for the empty path.
func normalURI(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", fmt.Errorf("%.100q is not an http URI without user", raw)
	}
	host := strings.ToLower(u.Host)
	defaults := map[string]string{"http": ":80", "https": ":443"}
	if port := u.Port(); port == "" {
		host = strings.TrimSuffix(host, ":")
	} else if ":"+port == defaults[u.Scheme] {
		host = strings.TrimSuffix(host, ":"+port)
	}
	return u.Scheme + "://" + host + removeDots(normalEscapes(u.EscapedPath())), nil
}

// normalEscapes decodes the percent-encodings of unreserved characters and writes the others in upper case.
func normalEscapes(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b.WriteByte(path[i])
			continue
		}
		if c, err := url.PathUnescape(path[i : i+3]); err == nil && len(c) == 1 && unreserved(c[0]) {
			b.WriteString(c)
		} else {
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// removeDots is RFC 3986 5.2.4 for an absolute path.
func removeDots(path string) string {
	if path == "" {
		return "/"
	}
	var out []string
	segments := strings.Split(path, "/")[1:] // nothing stands before the first slash
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "." && last:
			out = append(out, "")
		case s == ".":
		case s == "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}
