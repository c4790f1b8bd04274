package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/countersign/countersign/cmd/countersign/local"
)

// Options say how to run the chain.
type Options struct {
	Countersign string    // the binary
	Source      string    // directory of the services' sources
	Out         io.Writer // what a newcomer reads
	Keep        bool      // leave the directory behind

	Look func(dir string) error // for tests: looks at the directory at the end
}

// The services, in the order of the chain.
const (
	gateway   = "gateway"
	orders    = "orders"
	inventory = "inventory"
	warehouse = "warehouse"
)

const (
	trustDomain = "shop.internal"
	user        = "ana"
	// lead is how long a new key is published before it signs: short, so that the run ends soon.
	lead = 3 * time.Second
)

type chain struct {
	Options
	dir       string
	host      local.Host
	authority *local.Authority
	issuer    string            // of the users' tokens
	addresses map[string]string // service: https://name:port, the name is held to its certificate
	app       *http.Client      // the client app: trusts the authority's root, has no certificate
	idp       *http.Client
	inventory *local.Process
	agent     string // the agent's configuration
}

// Run plays the whole chain. An error says which step was not as it should be.
func Run(ctx context.Context, o Options) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := &chain{Options: o, addresses: map[string]string{}}
	for _, tool := range []string{"go", "javac", "java", "node"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is needed: on Debian, `sh scripts/test-deps.sh` installs Java 17 and Node.js: %w", tool, err)
		}
	}
	for _, path := range []*string{&c.Countersign, &c.Source} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if c.dir, err = os.MkdirTemp("", "countersign-chain-"); err != nil {
		return err
	}
	c.host = local.Host{Executable: c.Countersign, Dir: c.dir}
	defer func() {
		c.host.StopAll()
		if c.Keep {
			c.say("\nConfigurations, identities and logs are in %s.", c.dir)
			return
		}
		if removeErr := os.RemoveAll(c.dir); err == nil {
			err = removeErr
		}
	}()
	if err := c.play(ctx); err != nil || o.Look == nil {
		return err
	}
	return o.Look(c.dir)
}

func (c *chain) play(ctx context.Context) error {
	began := time.Now()
	c.say("The chain: one user's request through four services in three languages, on this machine, with real processes and real TLS.\n" +
		"\n    client app --user token--> gateway --mTLS--> orders --mTLS--> inventory --mTLS--> warehouse" +
		"\n                               relay             Java 17          Go, SDK            Node.js behind a relay")
	for i, step := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"The authority, the users' identity provider, and the call graph", c.startAuthority},
		{"The services start: each joins once, with a one-time token; its key never leaves it", c.startServices},
		{"A request of ana: what each service knows of it", c.request},
		{"Keys and certificates change while requests flow", c.rotate},
		{"Calls that the graph does not have", c.outside},
		{"Ana's transaction is revoked", c.revoke},
		{"The audit log", c.audit},
	} {
		c.say("\n%d. %s", i+1, step.title)
		if err := step.play(ctx); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
	}
	c.say("\nAll as expected, in %.1f s.", time.Since(began).Seconds())
	return nil
}

func (c *chain) say(format string, args ...any) { fmt.Fprintf(c.Out, format+"\n", args...) }

func (c *chain) line(label, format string, args ...any) {
	fmt.Fprintf(c.Out, "   %-12s %s\n", label, fmt.Sprintf(format, args...))
}

// identity is where the identity directory of a service is.
func (c *chain) identity(name string) string { return filepath.Join(c.dir, name) }

func (c *chain) startAuthority(ctx context.Context) (err error) {
	c.authority, err = c.host.StartAuthority(ctx, trustDomain, "COUNTERSIGN_TOKEN_LEAD="+lead.String())
	if err != nil {
		return err
	}
	if c.app, err = local.Trusting(c.authority.Root); err != nil {
		return err
	}
	caFile := filepath.Join(c.dir, "idp-ca.pem")
	if c.issuer, err = c.host.StartPart(ctx, "idp", "demo", "issuer", caFile); err != nil {
		return err
	}
	if c.idp, err = local.Trusting(caFile); err != nil {
		return err
	}
	policy, err := c.fill("policy.yaml", map[string]string{"IDP": c.issuer, "IDP_CA": caFile})
	if err != nil {
		return err
	}
	var applied struct{ Version int }
	if err := c.host.Ask(ctx, &applied, "policy", "apply", policy); err != nil {
		return err
	}
	c.line("authority", "%s, root %.16s…", c.authority.Issuer, c.authority.Fingerprint)
	c.line("provider", "%s; its tokens enter at gateway and may assert orders:read", c.issuer)
	c.line("calls", "gateway -> orders (orders:read) -> inventory (stock:read) -> warehouse (shelf:read)")
	return nil
}

// fill makes a configuration file of a template beside this program.
func (c *chain) fill(name string, values map[string]string) (string, error) {
	body, err := os.ReadFile(filepath.Join(c.Source, name))
	if err != nil {
		return "", err
	}
	var missing error
	text := os.Expand(string(body), func(name string) string {
		value, ok := values[name]
		if !ok {
			missing = fmt.Errorf("%s: ${%s} is not known", name, name)
		}
		return value
	})
	path := filepath.Join(c.dir, strings.ReplaceAll(name, "/", "-"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", err
	}
	return path, missing
}

// login gets a token of ana from the identity provider.
func (c *chain) login(ctx context.Context) (string, error) {
	form := url.Values{"user": {user}, "scope": {"orders:read"}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.issuer+"/login", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := c.idp.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }() // only read from
	var body struct {
		AccessToken string `json:"access_token"`
	}
	err = json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&body)
	return body.AccessToken, err
}

func (c *chain) audit(ctx context.Context) error {
	var report struct {
		OK                   bool
		Records, Checkpoints uint64
	}
	if err := c.host.Ask(ctx, &report, "audit", "verify"); err != nil {
		return err
	}
	if !report.OK || report.Records == 0 {
		return fmt.Errorf("the audit log does not verify: %+v", report)
	}
	c.line("verified", "%d records, %d signed checkpoints: every certificate, exchange, denial and revocation above", report.Records, report.Checkpoints)
	return nil
}
