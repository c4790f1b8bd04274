package daemon

import (
	"fmt"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api"
)

// TLSProxy is a service that ends the TLS connections of OAuth clients and forwards their certificates, in one header. It
// is told which: a proxy sets and removes the header that it knows, and passes on what its clients send in the other one.
type TLSProxy struct {
	Name   string `yaml:"name" mapstructure:"name" json:"name"`
	Header string `yaml:"header" mapstructure:"header" json:"header"` // client-cert (RFC 9440) or xfcc (Envoy)
}

// String is how the environment names a proxy: name=header.
func (p TLSProxy) String() string { return p.Name + "=" + p.Header }

// UnmarshalText reads what the environment says.
func (p *TLSProxy) UnmarshalText(text []byte) error {
	name, header, ok := strings.Cut(string(text), "=")
	if !ok {
		return fmt.Errorf("write %s=client-cert (RFC 9440) or %s=xfcc (Envoy): a proxy forwards certificates in one header", name, name)
	}
	p.Name, p.Header = name, header
	return nil
}

// plainProxy is what is said of a name alone, as tls.proxies once took it.
func plainProxy(name string) string {
	return fmt.Sprintf("a proxy forwards certificates in one header: write {name: %s, header: client-cert} (RFC 9440) or {name: %s, header: xfcc} (Envoy)", name, name)
}

// certHeaders are the proxies as the API knows them; an error is a fault of tls.proxies.
func (c Config) certHeaders() (map[countersign.ID]api.CertHeader, error) {
	proxies := map[countersign.ID]api.CertHeader{}
	for _, p := range c.TLS.Proxies {
		id, err := countersign.NewServiceID(c.Domain, p.Name)
		if err != nil {
			return nil, fmt.Errorf("%w: name a service", err)
		}
		if _, twice := proxies[id]; twice {
			return nil, fmt.Errorf("%s stands there twice: a proxy forwards certificates in one header", p.Name)
		}
		header, ok := map[string]api.CertHeader{"client-cert": api.ClientCert, "xfcc": api.XFCC}[p.Header]
		if !ok {
			return nil, fmt.Errorf("the header of %s must be client-cert (RFC 9440) or xfcc (Envoy), not %q", p.Name, p.Header)
		}
		proxies[id] = header
	}
	return proxies, nil
}
