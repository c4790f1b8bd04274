package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/sts/verify"
)

const javaPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: ["orders:read"]}
services:
  - {name: gateway, dns: [gateway.shop.internal], accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.shop.internal], token: {alg: RS256, typ: JWT}}
  - {name: inventory, dns: [inventory.shop.internal]}
  - {name: reports, dns: [reports.shop.internal]}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read"]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}]}
`

// javaServices are the services of the matrix, each with its kind of key.
var javaServices = []struct{ name, key string }{{"gateway", "P-256"}, {"orders", "RSA-3072"}, {"inventory", "Ed25519"}}

// java is one Peer.java that runs for the whole test: a JVM start costs more than all that it then does.
type java struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

func startJava(t *testing.T) *java {
	t.Helper()
	hosts := filepath.Join(t.TempDir(), "hosts")
	var names []string
	for _, s := range append(javaServices[:], struct{ name, key string }{name: "reports"}) {
		names = append(names, s.name+".shop.internal")
	}
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost "+strings.Join(names, " ")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The names of the services are on loopback for this JVM alone, so that host names are verified as they are elsewhere.
	cmd := exec.Command("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djdk.net.hosts.file="+hosts, "testdata/java/Peer.java")
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		_ = in.Close() // it ends with its input
		err := cmd.Wait()
		stuck.Stop()
		if err != nil {
			t.Errorf("java: %v\n%s", err, stderr)
		}
	})
	j := &java{t: t, in: in, out: bufio.NewScanner(out)}
	j.out.Buffer(nil, 1<<20)
	return j
}

// do gives what a command answered: whether it went well, and its text.
func (j *java) do(command ...string) (ok bool, answer string) {
	j.t.Helper()
	if _, err := fmt.Fprintln(j.in, strings.Join(command, "\t")); err != nil {
		j.t.Fatal(err)
	}
	if !j.out.Scan() {
		j.t.Fatalf("java ended at %q: %v", command[0], j.out.Err())
	}
	result, answer, _ := strings.Cut(j.out.Text(), "\t")
	return result == "ok", answer
}

// wants demands that a command goes well with this answer.
func (j *java) wants(answer string, command ...string) {
	j.t.Helper()
	if ok, got := j.do(command...); !ok || got != answer {
		j.t.Errorf("java %.200q answers %t %q, want %q", command, ok, got, answer)
	}
}

// refused demands that a command fails, for this reason.
func (j *java) refused(reason string, command ...string) {
	j.t.Helper()
	if ok, got := j.do(command...); ok || !strings.Contains(got, reason) {
		j.t.Errorf("java %.200q answers %t %q, want a refusal with %q", command, ok, got, reason)
	}
}

// refusedByServer demands that a command fails because the server did not take its certificate. In TLS 1.3 the client has sent
// its request by then, and a server that closes with it unread resets the connection (RFC 1122 4.2.2.13), at times before the
// client has read the alert. Why it refused, the server's log says.
func (j *java) refusedByServer(command ...string) {
	j.t.Helper()
	if ok, got := j.do(command...); ok || !strings.Contains(got, "alert") && !strings.Contains(got, "Connection reset") {
		j.t.Errorf("java %.200q answers %t %q, want an alert or a reset", command, ok, got)
	}
}

// serve starts a Java server for the peers and gives its port.
func (j *java) serve(keys, trust string, peers ...string) string {
	j.t.Helper()
	ok, port := j.do(append([]string{"serve", keys, trust}, peers...)...)
	if !ok {
		j.t.Fatalf("java does not serve: %s", port)
	}
	return port
}

func shopID(service string) string { return "spiffe://shop.internal/" + service }

func urlOf(service, port string) string { return "https://" + service + ".shop.internal:" + port + "/" }

// goServer serves with an identity directory; it tells each peer its ID.
type goServer struct {
	*httptest.Server
	mu  sync.Mutex
	log bytes.Buffer
}

// Write takes what the server logs.
func (s *goServer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *goServer) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func (s *goServer) port() string {
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return port
}

func goServe(t *testing.T, dir string, handler http.HandlerFunc) *goServer {
	t.Helper()
	id := identityIn(t, dir)
	s := &goServer{Server: httptest.NewUnstartedServer(handler)}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(s, "", 0)
	s.TLS = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.TLS()},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: id.Pool(),
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func tellID(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, r.TLS.PeerCertificates[0].URIs[0])
}

func identityIn(t *testing.T, dir string) *identity.Identity {
	t.Helper()
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// goGet asks a Java server, with the key of one directory and the roots of another, and presents the certificate
// whatever issuers the server asks for. keys may be "": then no certificate is sent.
func goGet(t *testing.T, keys, trust, service, port string) (string, error) {
	t.Helper()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: identityIn(t, trust).Pool(), ServerName: service + ".shop.internal"}
	if keys != "" {
		own := identityIn(t, keys).TLS()
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
	response, err := client.Get("https://127.0.0.1:" + port + "/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if state := response.TLS; state.PeerCertificates[0].URIs[0].String() != shopID(service) {
		t.Errorf("%s proves to be %s", service, state.PeerCertificates[0].URIs[0])
	}
	body, err := io.ReadAll(response.Body)
	return fmt.Sprintf("%d\t%s", response.StatusCode, body), err
}

// TestJSSE: Java 17's own TLS uses the two stores of an identity directory, as client and as server, against Go and
// against itself, with each kind of key; both sides hold the peer to its ID; strangers are refused; and the Java client
// gets a token by mTLS and calls on with it.
func TestJSSE(t *testing.T) {
	issuer, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	authority, other := newInstance(t, raceBinary(t)), newInstance(t, raceBinary(t))
	dirs, ports := map[string]string{}, map[string]string{}
	for _, i := range []*instance{authority, other} {
		i.apply(t, strings.ReplaceAll(javaPolicy, "IDP", issuer.URL))
	}
	j := startJava(t)
	var ids []string
	for _, s := range javaServices {
		dirs[s.name] = authority.join(t, s.name, "--key", s.key)
		ids = append(ids, shopID(s.name))
	}
	for name, dir := range dirs {
		ports[name] = j.serve(dir, dir, ids...)
	}
	for _, server := range javaServices {
		inGo := goServe(t, dirs[server.name], tellID)
		for _, client := range javaServices {
			answer := "200\t" + shopID(client.name)
			dir := dirs[client.name]
			j.wants(answer, "get", dir, dir, shopID(server.name), urlOf(server.name, inGo.port()), "")
			j.wants(answer, "get", dir, dir, shopID(server.name), urlOf(server.name, ports[server.name]), "")
			if got, err := goGet(t, dir, dir, server.name, ports[server.name]); err != nil || got != answer {
				t.Errorf("Go as %s to Java as %s: %q, %v", client.name, server.name, got, err)
			}
		}
	}
	reports := authority.join(t, "reports")
	t.Run("strangers", func(t *testing.T) {
		strangers(t, j, dirs, ports, reports, other.join(t, "gateway"))
	})
	t.Run("token", func(t *testing.T) { javaToken(t, j, authority, issuer, dirs) })
}

// strangers: a service that is not meant, and one that another authority calls gateway as well.
func strangers(t *testing.T, j *java, dirs, ports map[string]string, reports, foreign string) {
	j.t = t
	gateway, orders := dirs["gateway"], dirs["orders"]
	toOrders := urlOf("orders", ports["orders"])
	// The right authority, the wrong service: on either side it is the URI name that tells.
	j.wants("403\t"+shopID("reports"), "get", reports, reports, shopID("orders"), toOrders, "")
	if got, err := goGet(t, reports, reports, "orders", ports["orders"]); err != nil || got != "403\t"+shopID("reports") {
		t.Errorf("Go as reports: %q, %v", got, err)
	}
	j.refused("the server is "+shopID("orders")+", not", "get", gateway, gateway, shopID("inventory"), toOrders, "")
	j.refused("No subject alternative DNS name matching", "get", gateway, gateway, shopID("orders"), urlOf("inventory", ports["orders"]), "")

	// Another authority's certificate with the very same ID.
	inGo := goServe(t, orders, tellID)
	j.refusedByServer("get", foreign, gateway, shopID("orders"), urlOf("orders", inGo.port()), "")
	if said := inGo.logged(); !strings.Contains(said, "certificate signed by unknown authority") {
		t.Errorf("the Go server refused for another reason: %s", said)
	}
	j.wants("", "refused") // so far nobody was
	j.refused("IOException", "get", foreign, gateway, shopID("orders"), toOrders, "")
	refusedFor(t, j, "PKIX path building failed")
	for keys, reason := range map[string]string{foreign: "PKIX path building failed", "": ""} {
		if got, err := goGet(t, keys, gateway, "orders", ports["orders"]); err == nil {
			t.Errorf("Go with the keys in %q got %q from Java", keys, got)
		}
		refusedFor(t, j, reason)
	}
	impostor := goServe(t, foreign, tellID)
	j.refused("PKIX path building failed", "get", gateway, gateway, shopID("gateway"), urlOf("gateway", impostor.port()), "")
	inJava := j.serve(foreign, foreign, shopID("gateway"))
	if got, err := goGet(t, gateway, gateway, "gateway", inJava); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("Go to an impostor in Java: %q, %v", got, err)
	}
}

// refusedFor demands that the Java servers refused a certificate for this reason since the last look; "": none.
func refusedFor(t *testing.T, j *java, reason string) {
	t.Helper()
	if _, why := j.do("refused"); !strings.Contains(why, reason) || (why == "") != (reason == "") {
		t.Errorf("a Java server refused for another reason than %q: %q", reason, why)
	}
}

// javaToken exchanges a user's token from Java, proven by mTLS alone, and calls a service that verifies what it gets.
func javaToken(t *testing.T, j *java, authority *instance, issuer *idp, dirs map[string]string) {
	j.t = t
	user, err := issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "https://localhost:" + authority.port()
	exchange := func(as, token, audience string) string {
		t.Helper()
		ok, answer := j.do("post", dirs[as], dirs[as], shopID("countersign"), endpoint+"/oauth2/token",
			"grant_type=urn:ietf:params:oauth:grant-type:token-exchange",
			"subject_token_type=urn:ietf:params:oauth:token-type:access_token", "subject_token="+token, "audience="+audience)
		status, body, _ := strings.Cut(answer, "\t")
		var response struct {
			AccessToken string `json:"access_token"`
		}
		if err := json.Unmarshal([]byte(body), &response); err != nil || !ok || status != "200" || response.AccessToken == "" {
			t.Fatalf("Java as %s got no token for %s: %s", as, audience, answer)
		}
		return response.AccessToken
	}
	atOrders := exchange("gateway", user, "orders")
	atInventory := exchange("orders", atOrders, "inventory")
	inventory := identityIn(t, dirs["inventory"])
	verifier, err := verify.New(verify.Config{Issuer: endpoint, Audience: "inventory", Roots: inventory.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	server := goServe(t, dirs["inventory"], func(w http.ResponseWriter, r *http.Request) {
		claims, err := verifier.VerifyRequest(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, claims.Subject, " ", strings.Join(claims.Scopes, " "), " by ", r.TLS.PeerCertificates[0].URIs[0])
	})
	call := []string{"get", dirs["orders"], dirs["orders"], shopID("inventory"), urlOf("inventory", server.port())}
	j.wants("200\tana stock:read by "+shopID("orders"), append(call, atInventory)...)
	if ok, answer := j.do(append(call, atOrders)...); !ok || !strings.HasPrefix(answer, "401\t") {
		t.Errorf("a token for another service: %t %s", ok, answer)
	}
	// A Java service can't use the token of another: the certificate of the connection is the client.
	_, answer := j.do("post", dirs["inventory"], dirs["inventory"], shopID("countersign"), endpoint+"/oauth2/token",
		"grant_type=urn:ietf:params:oauth:grant-type:token-exchange",
		"subject_token_type=urn:ietf:params:oauth:token-type:access_token", "subject_token="+atOrders, "audience=inventory")
	if !strings.HasPrefix(answer, "400\t") {
		t.Errorf("a stolen token: %s", answer)
	}
}
