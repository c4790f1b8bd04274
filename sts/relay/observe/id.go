package observe

import "net/http"

// RequestID is the header with the request's id: to the application, and on every answer.
const RequestID = "X-Request-Id"

// readRequestID takes an id over from a trusted side, if it is one as we make them or a UUID; else it makes one. An id that
// anyone could choose would let him write under another request's.
func readRequestID(h http.Header, trust bool) string {
	if values := h.Values(RequestID); trust && len(values) == 1 && (isOurs(values[0]) || isUUID(values[0])) {
		return values[0]
	}
	return randomHex(16)
}

func isOurs(s string) bool { return len(s) == 32 && isHex(s) }

// isUUID knows the form of RFC 9562 4, of any version, in either case.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
			continue
		}
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
