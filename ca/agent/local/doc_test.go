package local_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/countersign/countersign/ca/agent"
	"github.com/countersign/countersign/ca/agent/local"
)

const (
	document  = "../../../docs/workload-api.md"
	docSocket = "/run/countersign/workload.sock"
)

// block is a fenced code block of the document.
type block struct{ language, text string }

func blocks(t *testing.T) (all []block) {
	t.Helper()
	body, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split("\n"+string(body), "\n```")
	for i := 1; i < len(parts); i += 2 {
		language, text, _ := strings.Cut(parts[i], "\n")
		all = append(all, block{language, text + "\n"})
	}
	return all
}

// TestDocument: the agent reads the document's configuration, Envoy's own types its bootstrap file, the Go code is compiled and
// run below, and the command is typed.
func TestDocument(t *testing.T) {
	own, err := os.ReadFile("doc_test.go")
	if err != nil {
		t.Fatal(err)
	}
	socket := local.ServeForDocument(t)
	seen := map[string]int{}
	for _, b := range blocks(t) {
		seen[b.language]++
		switch {
		case b.language == "yaml" && strings.HasPrefix(b.text, "identities:"):
			cfg, err := agent.Parse("agent.yaml", []byte(b.text))
			if err != nil || len(cfg.Identities) != 2 || len(cfg.API.Rules) != 2 || cfg.API.Socket != docSocket {
				t.Errorf("the agent's configuration: %+v, %v", cfg, err)
			}
		case b.language == "yaml":
			checkEnvoy(t, b.text)
		case b.language == "go":
			if !strings.Contains(flat(string(own)), flat(strings.TrimSuffix(b.text, "\n"))) {
				t.Errorf("this block is not the code below:\n%s", b.text)
			}
		case b.language == "sh":
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(b.text, docSocket, socket.Path))
			cmd.Env = append(os.Environ(), "TOKEN="+socket.Token)
			out, err := cmd.Output()
			var answer struct {
				Token string `json:"access_token"`
				Type  string `json:"token_type"`
				Ends  int    `json:"expires_in"`
				Scope string `json:"scope"`
			}
			if err != nil || json.Unmarshal(out, &answer) != nil || answer.Token == "" || answer.Type != "Bearer" || answer.Ends <= 0 || answer.Scope != "stock:read" {
				t.Errorf("%v %s", err, out)
			}
		default:
			t.Errorf("a block of language %q is executed by nothing", b.language)
		}
	}
	if seen["yaml"] != 2 || seen["go"] != 1 || seen["sh"] != 1 {
		t.Errorf("the document has %v", seen)
	}
	if err := goSpiffe(socket.Path); err != nil {
		t.Errorf("the Go code: %v", err)
	}
}

// flat is Go code without its indentation, which the document has not, and without the path of the socket, which is another's.
func flat(code string) string {
	code = strings.NewReplacer(`"unix://"+path`, "SOCKET", `"unix://`+docSocket+`"`, "SOCKET").Replace(code)
	var b strings.Builder
	for line := range strings.SplitSeq(code, "\n") {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// goSpiffe is the code of the document.
func goSpiffe(path string) error {
	ctx := context.Background()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+path)))
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://shop.internal/orders")))
	_, err = config.GetClientCertificate(nil)
	return err
}

// checkEnvoy reads a bootstrap file strictly by Envoy's own types and their validation.
func checkEnvoy(t *testing.T, text string) {
	t.Helper()
	var tree any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	file := &bootstrap.Bootstrap{}
	if err := protojson.Unmarshal(encoded, file); err != nil {
		t.Fatal(err)
	}
	if err := file.ValidateAll(); err != nil {
		t.Error(err)
	}
	inbound := &tlsv3.DownstreamTlsContext{}
	if err := file.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetTransportSocket().GetTypedConfig().UnmarshalTo(inbound); err != nil {
		t.Fatal(err)
	}
	if err := inbound.ValidateAll(); err != nil {
		t.Error(err)
	}
	common := inbound.GetCommonTlsContext()
	combined := common.GetCombinedValidationContext()
	if !inbound.GetRequireClientCertificate().GetValue() || common.GetTlsCertificateSdsSecretConfigs()[0].GetName() != "default" ||
		combined.GetValidationContextSdsSecretConfig().GetName() != "ROOTCA" || len(combined.GetDefaultValidationContext().GetMatchTypedSubjectAltNames()) != 1 {
		t.Errorf("the listener's TLS: %v", inbound)
	}
}
