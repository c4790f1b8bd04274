package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

const minimal = "domain: shop.internal\nissuer: https://ca.shop.internal:8443\n"

func load(t *testing.T, doc string, o LoadOptions) (Loaded, error) {
	t.Helper()
	for _, e := range o.Environ { // viper asks the process's own environment
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	return parse("countersign.yaml", []byte(doc), o)
}

func TestPrecedence(t *testing.T) {
	doc := minimal + "certificate: {ttl: 12h}\nlimits: {address: 7}\n"
	loaded, err := load(t, doc, LoadOptions{
		Environ: []string{"COUNTERSIGN_CERTIFICATE_TTL=6h", "COUNTERSIGN_DNS=a.example,b.example", "COUNTERSIGN_OPS_LISTEN=127.0.0.1:1", "COUNTERSIGN_LISTEN=:2"},
		Flags:   map[string]any{"listen": "127.0.0.1:3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := loaded.Config
	switch {
	case time.Duration(c.Certificate.TTL) != 6*time.Hour, loaded.Origin["certificate.ttl"] != "environment COUNTERSIGN_CERTIFICATE_TTL":
		t.Errorf("environment over file: %v from %s", c.Certificate.TTL, loaded.Origin["certificate.ttl"])
	case c.Limits.Address != 7, loaded.Origin["limits.address"] != "file countersign.yaml":
		t.Errorf("file over default: %v from %s", c.Limits.Address, loaded.Origin["limits.address"])
	case c.Listen != "127.0.0.1:3", loaded.Origin["listen"] != "flag":
		t.Errorf("flag over environment: %v from %s", c.Listen, loaded.Origin["listen"])
	case c.Ops.Listen != "127.0.0.1:1":
		t.Errorf("a nested key from the environment: %v", c.Ops.Listen)
	case !slices.Equal(c.DNS, []string{"a.example", "b.example"}):
		t.Errorf("a list from the environment: %q", c.DNS)
	case c.Limits.PerHost != 64, loaded.Origin["limits.perhost"] != "default":
		t.Errorf("default: %v from %s", c.Limits.PerHost, loaded.Origin["limits.perhost"])
	}
}

// Every key is reachable by the environment, whatever its kind.
func TestEnvironmentReachesEveryKey(t *testing.T) {
	values := map[string]string{
		"domain": "other.internal", "issuer": "https://other.internal", "listen": ":1", "dns": "one.example", "proxies": "10.0.0.1/32",
		"ops.listen": ":2", "pki.listen": ":3", "pki.url": "http://pki.internal", "tls.cert": "/c", "tls.key": "/k", "tls.proxies": "proxy=xfcc", "tls.min": "1.2", "token.lead": "20m",
		"token.rotate": "3d", "certificate.ttl": "1h", "certificate.operator": "2h", "certificate.server": "3h", "certificate.grace": "5h", "ca.root": "100d",
		"ca.intermediate": "50d", "ca.lead": "20d", "ca.permit": "one.example,shop.internal", "join.ttl": "2m", "audit.segment": "2MiB", "audit.reserve": "3MiB", "audit.keep": "5d",
		"keys.root": "softkms:", "keys.intermediate": "softkms:", "keys.token": "softkms:", "keys.also": "softkms:", "keys.pin.file": "/pin",
		"keytypes.operator": "P-384", "keytypes.server": "P-384,P-256",
		"limits.identity": "1", "limits.address": "2", "limits.connections": "3", "limits.perhost": "4", "limits.issuing": "5", "limits.waiting": "6", "log.level": "debug", "log.format": "json",
	}
	var environ []string
	for _, key := range Keys() {
		value, ok := values[key]
		if !ok {
			t.Fatalf("this test has no value for %s", key)
		}
		environ = append(environ, Variable(key)+"="+value)
	}
	loaded, err := load(t, minimal, LoadOptions{Environ: environ})
	if err != nil {
		t.Fatal(err)
	}
	defaults := Defaults().Values()
	for key, value := range loaded.Config.Values() {
		if reflect.DeepEqual(value, defaults[key]) {
			t.Errorf("%s did not reach %s", Variable(key), key)
		}
	}
	if len(loaded.Warnings) != 0 {
		t.Errorf("warnings: %q", loaded.Warnings)
	}
}

// The environment names a proxy and its header in one word; a name alone is told what to write.
func TestProxiesFromTheEnvironment(t *testing.T) {
	loaded, err := load(t, minimal+"tls: {proxies: [{name: edge, header: xfcc}]}\n", LoadOptions{})
	if want := []TLSProxy{{"edge", "xfcc"}}; err != nil || !slices.Equal(loaded.Config.TLS.Proxies, want) {
		t.Errorf("%v, %v", loaded.Config.TLS.Proxies, err)
	}
	loaded, err = load(t, minimal+"tls: {proxies: [{name: other, header: xfcc}]}\n", LoadOptions{Environ: []string{"COUNTERSIGN_TLS_PROXIES=edge=client-cert,front=xfcc"}})
	if want := []TLSProxy{{"edge", "client-cert"}, {"front", "xfcc"}}; err != nil || !slices.Equal(loaded.Config.TLS.Proxies, want) {
		t.Errorf("%v, %v", loaded.Config.TLS.Proxies, err)
	}
	_, err = load(t, minimal, LoadOptions{Environ: []string{"COUNTERSIGN_TLS_PROXIES=edge"}})
	var config *ConfigError
	if !errors.As(err, &config) || !strings.Contains(err.Error(), "write edge=client-cert (RFC 9440) or edge=xfcc (Envoy)") {
		t.Errorf("%v", err)
	}
}

func TestUnknownVariables(t *testing.T) {
	loaded, err := load(t, minimal, LoadOptions{Environ: []string{"COUNTERSIGN_LISTNE=:1", "COUNTERSIGN_DIR=/x", "OTHER=1"}, Known: []string{"COUNTERSIGN_DIR"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded.Warnings) != 1 || !strings.Contains(loaded.Warnings[0], "COUNTERSIGN_LISTNE; did you mean COUNTERSIGN_LISTEN?") {
		t.Errorf("warnings: %q", loaded.Warnings)
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"unknown key":                     {minimal + "lisen: :1\n", "countersign.yaml:3:1: lisen: there is no such key; did you mean listen?"},
		"unknown nested key":              {minimal + "token:\n  laed: 1h\n", "countersign.yaml:4:3: token.laed: there is no such key; did you mean token.lead?"},
		"key in upper case":               {minimal + "Listen: :1\n", "did you mean listen?"},
		"key twice":                       {minimal + "listen: :1\nlisten: :2\n", "listen"},
		"scalar for a section":            {minimal + "token: 1h\n", "countersign.yaml:3:8: token: must be a section of key: value lines, not the single value \"1h\""},
		"section for a scalar":            {minimal + "listen: {a: b}\n", "countersign.yaml:3:9: listen: must be a single value, not a section"},
		"scalar for a list":               {minimal + "dns: localhost\n", "countersign.yaml:3:6: dns: must be a list, not the single value \"localhost\""},
		"nothing for a scalar":            {minimal + "listen:\n", "listen: must be a single value, not nothing"},
		"number without unit":             {minimal + "certificate: {ttl: 5}\n", `certificate.ttl: "5" has no unit: write 5s, 5m, 5h or 5d`},
		"no duration":                     {minimal + "certificate: {ttl: soon}\n", `"soon" is no duration`},
		"duration out of range":           {minimal + "certificate: {ttl: 5ns}\n", "certificate.ttl: must be between 1m and 90d: short-lived is the point (from file countersign.yaml)"},
		"text for a number":               {minimal + "limits: {address: many}\n", `limits.address: "many" is not of the right kind`},
		"negative number":                 {minimal + "limits: {address: -1}\n", "limits.address: must be between 0 and 1000000"},
		"size without unit":               {minimal + "audit: {segment: 64}\n", "audit.segment"},
		"two documents":                   {minimal + "---\nlisten: :1\n", "there is more than one YAML document"},
		"alias":                           {"domain: &x shop.internal\nissuer: *x\n", "issuer: YAML aliases are not read here"},
		"no YAML":                         {"domain: [\n", "did not find expected"},
		"a list":                          {"- domain\n", "must be a section of key: value lines, not a list"},
		"empty":                           {"", "domain: a trust domain is missing"},
		"issuer with slash":               {"domain: a.b\nissuer: https://a.b/\n", "must not end with a slash"},
		"issuer without TLS":              {"domain: a.b\nissuer: http://a.b\n", "must be an https:// URL"},
		"issuer with query":               {"domain: a.b\nissuer: https://a.b?x\n", "no query, fragment or user"},
		"issuer in upper case":            {"domain: a.b\nissuer: https://A.b\n", "must be spelt in lower case"},
		"lead longer than allowed":        {minimal + "token: {lead: 10d, rotate: 30d}\n", "token.lead: must be between 2s and 7d"},
		"rotation under the lead":         {minimal + "token: {lead: 2h, rotate: 4h}\n", "token.rotate: must be at least four times token.lead (2h)"},
		"no names":                        {minimal + "dns: []\n", "dns: at least one name is needed"},
		"bad name":                        {minimal + "dns: [a_b]\n", `"a_b" is neither an IP address nor a lower-case DNS name`},
		"bad address":                     {minimal + "listen: 8443\n", "is no address to listen on"},
		"bad proxy":                       {minimal + "proxies: [10.0.0.1]\n", "is no prefix"},
		"TLS proxy without header":        {minimal + "tls:\n  proxies: [edge]\n", "countersign.yaml:4:13: tls.proxies: a proxy forwards certificates in one header: write {name: edge, header: client-cert} (RFC 9440) or {name: edge, header: xfcc} (Envoy)"},
		"TLS proxy as in the environment": {minimal + "tls: {proxies: [edge=xfcc]}\n", "a proxy forwards certificates in one header"},
		"bad TLS proxy":                   {minimal + "tls: {proxies: [{name: 10.0.0.1/32, header: xfcc}]}\n", "tls.proxies"},
		"the authority as proxy":          {minimal + "tls: {proxies: [{name: countersign, header: xfcc}]}\n", "reserved"},
		"TLS proxy, no header":            {minimal + "tls: {proxies: [{name: edge}]}\n", `the header of edge must be client-cert (RFC 9440) or xfcc (Envoy), not ""`},
		"TLS proxy, another header":       {minimal + "tls: {proxies: [{name: edge, header: Client-Cert}]}\n", `not "Client-Cert"`},
		"TLS proxy, two headers":          {minimal + "tls: {proxies: [{name: edge, header: xfcc}, {name: edge, header: client-cert}]}\n", "edge stands there twice"},
		"TLS proxy, unknown key":          {minimal + "tls: {proxies: [{name: edge, haeder: xfcc}]}\n", "tls.proxies.haeder: there is no such key; did you mean tls.proxies.header?"},
		"cert without key":                {minimal + "tls: {cert: a.pem}\n", "tls.cert and tls.key go together"},
		"pki.url without listener":        {minimal + "pki: {url: http://pki.internal}\n", "pki.url: needs pki.listen"},
		"pki.url with TLS":                {minimal + "pki: {listen: \":1\", url: https://pki.internal}\n", "must be an http:// URL"},
		"old TLS":                         {minimal + "tls: {min: \"1.1\"}\n", `must be "1.3" or "1.2"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.doc, LoadOptions{})
			var config *ConfigError
			if !errors.As(err, &config) {
				t.Fatalf("got %v instead of a *ConfigError", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := load(t, minimal+"lisen: :1\ntoken: 3\ndns: x\n", LoadOptions{})
	var config *ConfigError
	if !errors.As(err, &config) || len(config.Problems) != 3 {
		t.Errorf("got %v", err)
	}
}

func TestLoadIsBounded(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ConfigFile), make([]byte, maxConfigFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, LoadOptions{}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "1.5d": 36 * time.Hour, "30d": 30 * day, "0d": 0, "1h30m": 90 * time.Minute} {
		got, err := ParseDuration(text)
		if err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v", text, got, err)
		}
		again, err := ParseDuration(Duration(got).String())
		if err != nil || again != got {
			t.Errorf("%v reads back from %q as %v, %v", got, Duration(got), again, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1e99d", "5", "1y", "NaNd"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v", text, got)
		}
	}
	for _, text := range []string{"", "64", "-1MiB", "1.5MiB", "99999999999GiB", "64MB"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("the size %q is read", text)
		}
	}
}

// What init writes, Load reads.
func TestWriteConfig(t *testing.T) {
	dir := Dir(t.TempDir())
	cfg := initialConfig(InitOptions{Dir: dir, Domain: "shop.internal", Listen: "127.0.0.1:9", DNS: []string{"ca.shop.internal"}})
	if err := writeConfig(dir, cfg); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(string(dir), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(loaded.Config.Values(), cfg.Values()) {
		t.Errorf("wrote %v, read %v", cfg, loaded.Config)
	}
	if cfg.Issuer != "https://ca.shop.internal:9" {
		t.Errorf("the issuer is %s", cfg.Issuer)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("token: {lead: 1h}\nlimits: {address: 1}\ndns: [a]\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? {}\n: x"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		loaded, err := parse("f", doc, LoadOptions{})
		if err != nil {
			return
		}
		if problems := loaded.Config.Validate(); len(problems) > 0 {
			t.Errorf("accepted with %v", problems)
		}
		var plain map[string]any
		if err := yaml.Unmarshal(doc, &plain); err != nil && len(doc) > 0 {
			t.Errorf("accepted what is no YAML mapping: %v", err)
		}
	})
}
