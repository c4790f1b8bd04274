package relay

import (
	"net"
	"net/http"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

// outbound takes the application's calls to one service.
type outbound struct {
	service *service
	live    *live
	socket  bool // it listens at a Unix socket, which no browser reaches
}

// ServeHTTP finds the request that the call is made for, verifies its token again, and sends the call on with one that was
// exchanged for it.
func (o *outbound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	observe.From(r.Context()).SetRoute("outbound." + o.service.cfg.Name)
	if err := o.fromHere(r); err != nil {
		refuse(w, r, err)
		return
	}
	a, err := o.credential(r.Header)
	if err != nil {
		if e := countersign.AsError(err); e.Kind == countersign.Unauthenticated {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		refuse(w, r, err)
		return
	}
	if a == nil && !o.service.cfg.Machine {
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, r, countersign.Errorf(countersign.CodeRelayNoHandle,
			"the call has neither the handle nor the token of a request, and %s is not called without a user", o.service.cfg.Name))
		return
	}
	if a != nil {
		if err := a.again(r.Context()); err != nil {
			refuseToken(w, r, a.verifier, err)
			return
		}
		user, _ := userOf(a.claims)
		observe.From(r.Context()).SetIdentity(observe.Identity{User: user, Address: observe.PeerAddress(r)})
	}
	if most := int64(o.service.cfg.Body); r.ContentLength > most {
		refuse(w, r, countersign.Errorf(countersign.CodeRelayTooLarge, "the body has over %d bytes", most))
		return
	} else if r.Body != nil && r.Body != http.NoBody {
		r.Body = &boundedBody{ReadCloser: http.MaxBytesReader(w, r.Body, most), request: observe.From(r.Context()), most: most}
	}
	o.service.forward(w, r, a, o.service.cfg.Timeout, o.service.cfg.Idle, "")
}

// fromHere tells why a call is not one of a program of this machine. Pages of a browser on this machine reach loopback too: by
// a name of theirs that resolves to it (the Host is that name), and, where no credential is needed, from any page (the browser
// says so in Origin or Sec-Fetch-Site).
func (o *outbound) fromHere(r *http.Request) error {
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return countersign.Errorf(countersign.CodeRelayMethod, "%s is not forwarded", r.Method)
	}
	if r.Header.Get("Origin") != "" && o.service.cfg.Machine || r.Header.Get("Sec-Fetch-Site") != "" {
		return countersign.Errorf(countersign.CodeRelayHost, "the call comes from a page of a browser")
	}
	if o.socket {
		return nil
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	if isLoopback(host) || strings.EqualFold(host, "localhost") || strings.EqualFold(host, o.service.target.Hostname()) {
		return nil
	}
	return countersign.Errorf(countersign.CodeRelayHost, "the call names the host %.100q, which is neither loopback nor %s", host, o.service.target.Hostname())
}

// credential finds the token of the request that the call is made for. nil: the call names none. A handle and a token must
// mean the same.
func (o *outbound) credential(h http.Header) (*admitted, error) {
	handles, tokens := h.Values(HandleHeader), h.Values("Authorization")
	if len(handles) > 1 || len(tokens) > 1 {
		return nil, countersign.Errorf(countersign.CodeRelayTwo, "the call has more than one %s or Authorization", HandleHeader)
	}
	var byHandle, byToken *admitted
	ok := true
	if len(handles) == 1 {
		if byHandle, ok = o.live.byHandle(handles[0]); !ok {
			return nil, countersign.Errorf(countersign.CodeRelayHandle, "the handle is none that is good now")
		}
	}
	if len(tokens) == 1 {
		scheme, token, _ := strings.Cut(tokens[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return nil, countersign.Errorf(countersign.CodeRelayTwo, "the Authorization of the call is not of the scheme Bearer")
		}
		if byToken, ok = o.live.byToken(strings.TrimLeft(token, " ")); !ok {
			return nil, countersign.Errorf(countersign.CodeRelayHandle, "the token is none that the application was given for a request that is being served")
		}
	}
	switch {
	case byHandle == nil:
		return byToken, nil
	case byToken != nil && byToken.token != byHandle.token:
		return nil, countersign.Errorf(countersign.CodeRelayTwo, "the handle and the token are those of two requests")
	}
	return byHandle, nil
}
