package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/countersign/countersign/cmd/countersign/local"
)

// Options say how to run the demo.
type Options struct {
	Executable string    // our own binary
	Out        io.Writer // what a newcomer reads
	Keep       bool      // leave the directory behind
}

type demo struct {
	Options
	dir      string
	host     local.Host
	issuer   string            // of user tokens
	self     string            // the authority's issuer identifier
	services map[string]string // name: address
	client   *http.Client      // of the client app: trusts the authority's root, shows no certificate
	idp      *http.Client
}

// lead is how long a new key is published before it signs: short, so that the demo ends soon.
const lead = 3 * time.Second

// Run plays the whole demo. An error says which step was not as it should be.
func Run(ctx context.Context, o Options) (err error) {
	// Children are told to die with the thread that started them; the main thread lives as long as the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d := &demo{Options: o, services: map[string]string{}}
	if d.dir, err = os.MkdirTemp("", "countersign-demo-"); err != nil {
		return err
	}
	d.host = local.Host{Executable: o.Executable, Dir: d.dir}
	defer func() {
		d.host.StopAll()
		if d.Keep {
			d.say("\nThe demo's files are in %s.", d.dir)
			return
		}
		if removeErr := os.RemoveAll(d.dir); err == nil {
			err = removeErr
		}
	}()
	began := time.Now()
	d.say("Countersign: one user's request through three services, on this machine, with real processes and real TLS.\n" +
		"\n    client app --user token--> gateway --relay token--> orders --relay token--> inventory")
	for i, step := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"An authority: CA, token service, call graph and audit log in one process", d.startAuthority},
		{"The call graph: who may call whom, with which scopes", d.applyPolicy},
		{"Bootstrap: each service joins once, with a one-time token; its key never leaves it", d.join},
		{"A request: at each hop the service exchanges the token that it got for one that is good for the next only", d.request},
		{"The signing key rotates while requests flow", d.rotate},
		{"A hop that the graph does not have", d.deny},
		{"The audit log: every certificate, exchange, denial and rotation, hash-chained and signed", d.audit},
	} {
		d.say("\n%d. %s", i+1, step.title)
		if err := step.play(ctx); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
	}
	d.say("\nAll as expected, in %.1f s.", time.Since(began).Seconds())
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, format+"\n", args...) }

func (d *demo) line(label, format string, args ...any) {
	fmt.Fprintf(d.Out, "   %-12s %s\n", label, fmt.Sprintf(format, args...))
}

func (d *demo) identity(name string) string { return filepath.Join(d.dir, name) }

func (d *demo) startAuthority(ctx context.Context) error {
	done, err := d.host.StartAuthority(ctx, "demo.internal", "COUNTERSIGN_TOKEN_LEAD="+lead.String())
	if err != nil {
		return err
	}
	d.self = done.Issuer
	if d.client, err = local.Trusting(done.Root); err != nil {
		return err
	}
	d.line("issuer", "%s", done.Issuer)
	d.line("trust domain", "%s", done.TrustDomain)
	d.line("root", "SHA-256 %s", done.Fingerprint)
	return nil
}

const policyTemplate = `trust_domain: demo.internal
issuers:
  - {name: idp, use: users, issuer: "ISSUER", ca_file: idp-ca.pem, scopes: [shop.read, shop.write, "orders:read"], carry: [email]}
services:
  - {name: gateway, dns: [gateway.demo.internal], accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.demo.internal]}
  - {name: inventory, dns: [inventory.demo.internal]}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read", {name: "orders:write", needs: [shop.write]}]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}], ttl: 2m}
`

func (d *demo) applyPolicy(ctx context.Context) error {
	caFile := filepath.Join(d.dir, "idp-ca.pem")
	issuer, err := d.host.StartPart(ctx, "idp", "demo", "issuer", caFile)
	if err != nil {
		return err
	}
	d.issuer = issuer
	if d.idp, err = local.Trusting(caFile); err != nil {
		return err
	}
	document := strings.Replace(policyTemplate, "ISSUER", issuer, 1)
	path := filepath.Join(d.dir, "policy.yaml")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		return err
	}
	var applied struct{ Version int }
	if err := d.host.Ask(ctx, &applied, "policy", "apply", path); err != nil {
		return err
	}
	if applied.Version != 1 {
		return fmt.Errorf("version %d instead of 1 is in force", applied.Version)
	}
	d.line("idp", "%s may assert shop.read, shop.write, orders:read; its tokens enter at gateway", issuer)
	d.line("call", "gateway -> orders      orders:read (needs the same), orders:write (needs shop.write)")
	d.line("call", "orders  -> inventory   stock:read (needs orders:read)")
	return nil
}

// join enrols the services from the end of the chain on, because each is started with its successor's address.
func (d *demo) join(ctx context.Context) error {
	for _, s := range []struct{ name, needs, next, scope string }{
		{name: "inventory", needs: "stock:read"},
		{name: "orders", needs: "orders:read", next: "inventory", scope: "stock:read"},
		{name: "gateway", next: "orders", scope: "orders:read"},
	} {
		var token struct{ Join string }
		if err := d.host.Ask(ctx, &token, "join-token", "create", s.name); err != nil {
			return err
		}
		var joined struct {
			ID, Serial string
			NotAfter   time.Time `json:"not_after"`
		}
		if err := d.host.Ask(ctx, &joined, "join", token.Join, "--out", d.identity(s.name)); err != nil {
			return err
		}
		args := []string{"demo", "service", "--name", s.name, "--as", d.identity(s.name)}
		if s.name != "gateway" {
			args = append(args, "--issuer", d.self, "--needs", s.needs)
		}
		if s.next != "" {
			args = append(args, "--next", d.services[s.next], "--next-name", s.next, "--scope", s.scope)
		}
		address, err := d.host.StartPart(ctx, s.name, args...)
		if err != nil {
			return err
		}
		d.services[s.name] = withHost(address, s.name+".demo.internal")
		d.line(s.name, "%s  serial %s  valid %s", joined.ID, joined.Serial, time.Until(joined.NotAfter).Round(time.Minute))
	}
	return nil
}

// withHost puts a name in the place of the loopback address that a service told.
func withHost(address, host string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	u.Host = net.JoinHostPort(host, u.Port())
	return u.String()
}

// login gets a user token from the identity provider.
func (d *demo) login(ctx context.Context) (string, error) {
	form := url.Values{"user": {"ana"}, "scope": {"shop.read shop.write orders:read"}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.issuer+"/login", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := d.idp.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var body struct {
		AccessToken string `json:"access_token"`
	}
	err = json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&body)
	return body.AccessToken, err
}

// call sends the user's request to the gateway, as the client app does.
func (d *demo) call(ctx context.Context, token string) (*Hop, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.services["gateway"], nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	return readHop(d.client, request)
}
