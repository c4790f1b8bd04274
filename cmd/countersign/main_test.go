package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/countersign/countersign/sts/jwt"
)

func TestMain(m *testing.M) {
	endAtOnce()
	testscript.Main(leakChecked{m}, map[string]func(){"countersign": main})
}

// endAtOnce lets the commands that the tests run, which are this binary with -race, end when they are done. The race detector would let
// each of them sleep for a second at its end, in which it waits for races of goroutines that are left; there were 300 such seconds.
func endAtOnce() {
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=10")
	}
}

// leakChecked wants that no test left a goroutine behind; a child that is the command line does not come here.
type leakChecked struct{ tests testscript.TestingM }

func (l leakChecked) Run() int {
	code := l.tests.Run()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestScripts are the command line's specification: testdata/script/*.txtar.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":     cmdReady,
			"usertoken": cmdUserToken,
			"capture":   cmdCapture,
			"exit":      cmdExit,
			"mode":      cmdMode,
			"envsubst":  cmdEnvsubst,
		},
	})
}

func setupScript(env *testscript.Env) error {
	for _, name := range []string{"PUBLIC", "OPS"} {
		address, err := freeLoopback()
		if err != nil {
			return err
		}
		env.Setenv(name, address)
		if name == "PUBLIC" {
			_, port, _ := net.SplitHostPort(address)
			env.Setenv("PORT", port)
		}
	}
	idp, err := newIDP()
	if err != nil {
		return err
	}
	env.Defer(idp.Close)
	env.Values["idp"] = idp
	env.Setenv("IDP", idp.URL)
	env.Setenv("COUNTERSIGN_DIR", env.WorkDir+"/ca")
	env.Setenv("GORACE", os.Getenv("GORACE"))
	return nil
}

func freeLoopback() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// idp is a real OIDC issuer on loopback: discovery, keys, and tokens of any shape.
type idp struct {
	*httptest.Server
	key crypto.Signer
}

func newIDP() (*idp, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keys, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		return nil, err
	}
	i := &idp{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(keys.JSON())
	})
	i.Server = httptest.NewServer(mux)
	return i, nil
}

// token is a user token, or a workload's with "(typ)=JWT"; changes are name=value, a value that is JSON is taken as such, an empty one removes the claim.
func (i *idp) token(changes ...string) (string, error) {
	now := time.Now()
	claims := map[string]any{
		"iss": i.URL, "sub": "ana", "aud": "shop-web", "scope": "shop.read shop.write orders:read",
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "email": "ana@shop.example",
	}
	typ := "at+jwt"
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		var decoded any
		switch {
		case name == "(typ)": // of the header
			typ = value
		case value == "":
			delete(claims, name)
		case json.Unmarshal([]byte(value), &decoded) == nil:
			claims[name] = decoded
		default:
			claims[name] = value
		}
	}
	return jwt.Sign(i.key, "ES256", "k1", typ, claims)
}

// ready waits until the daemon of this script says that it is ready.
func cmdReady(ts *testscript.TestScript, neg bool, args []string) {
	want := http.StatusOK
	if neg {
		want = http.StatusServiceUnavailable
	}
	var last string
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		response, err := http.Get("http://" + ts.Getenv("OPS") + "/readyz")
		if err != nil {
			last = err.Error()
			continue
		}
		response.Body.Close()
		if last = response.Status; response.StatusCode == want {
			return
		}
	}
	ts.Fatalf("the daemon does not become ready: %s", last)
}

// usertoken FILE [claim=value]... writes a token of the script's issuer.
func cmdUserToken(ts *testscript.TestScript, _ bool, args []string) {
	token, err := ts.Value("idp").(*idp).token(args[1:]...)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(token+"\n"), 0o600))
}

// capture NAME [FIELD[.FIELD]...] puts the last standard output, or a member of it as JSON, into the environment.
func cmdCapture(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.TrimSpace(ts.ReadFile("stdout"))
	if len(args) == 2 {
		var value any
		ts.Check(json.Unmarshal([]byte(text), &value))
		for field := range strings.SplitSeq(args[1], ".") {
			members, _ := value.(map[string]any)
			value = members[field]
		}
		text = fmt.Sprint(value)
	}
	ts.Setenv(args[0], text)
}

// exit CODE COMMAND... demands that exit code.
func cmdExit(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		var coded interface{ ExitCode() int }
		if !asExit(err, &coded) {
			ts.Fatalf("%v", err)
		}
		got = strconv.Itoa(coded.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("exit code %s instead of %s", got, args[0])
	}
}

func asExit(err error, target *interface{ ExitCode() int }) bool {
	e, ok := err.(interface{ ExitCode() int })
	*target = e
	return ok
}

// mode MODE FILE... demands exactly these permissions.
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s instead of %s", name, got, args[0])
		}
	}
}

// envsubst FILE... puts the script's variables into the files.
func cmdEnvsubst(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}
