package grpcverify_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/sts/verify"
	"github.com/countersign/countersign/sts/verify/grpcverify"
)

// TestNonce: a client that brings no nonce is given one in the header metadata, for unary calls and streams, and is taken with it.
func TestNonce(t *testing.T) {
	a := newAuthority()
	defer a.Close()
	v, err := verify.NewExternal(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: a.roots(), URL: "https://inventory.shop.internal", Nonces: true})
	if err != nil {
		t.Fatal(err)
	}
	guard, err := grpcverify.New(grpcverify.Config{Verifier: v, Scopes: map[string][]string{check: nil, watch: nil}})
	if err != nil {
		t.Fatal(err)
	}
	client, stop, err := serve(guard, insecure.NewCredentials(), insecure.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	token := a.token("cnf", map[string]any{"jkt": base64.RawURLEncoding.EncodeToString(sum)})
	n := 0
	with := func(method, nonce string) context.Context {
		n++
		ath := sha256.Sum256([]byte(token))
		claims := map[string]any{
			"jti": fmt.Sprint("p", n), "htm": "POST", "htu": "https://inventory.shop.internal" + method, "iat": time.Now().Unix(),
			"ath": base64.RawURLEncoding.EncodeToString(ath[:]),
		}
		if nonce != "" {
			claims["nonce"] = nonce
		}
		return metadata.AppendToOutgoingContext(t.Context(), "authorization", "DPoP "+token, "dpop", proofOf(t, key, claims))
	}
	for name, call := range map[string]func(nonce string) (metadata.MD, error){
		"unary": func(nonce string) (md metadata.MD, err error) {
			_, err = client.Check(with(check, nonce), nil, grpc.Header(&md))
			return md, err
		},
		"stream": func(nonce string) (metadata.MD, error) {
			stream, err := client.Watch(with(watch, nonce), nil)
			if err != nil {
				return nil, err
			}
			_, err = stream.Recv()
			md, _ := stream.Header()
			return md, err
		},
	} {
		md, err := call("")
		if s := status.Convert(err); s.Code() != codes.Unauthenticated || s.Message() != "use_dpop_nonce" || len(md.Get("dpop-nonce")) != 1 {
			t.Errorf("%s without a nonce: %v, %v", name, err, md)
			continue
		}
		if _, err := call(md.Get("dpop-nonce")[0]); err != nil {
			t.Errorf("%s with the nonce: %v", name, err)
		}
		if _, err := call("invented"); status.Convert(err).Message() != "use_dpop_nonce" {
			t.Errorf("%s with another: %v", name, err)
		}
	}
}

func proofOf(t *testing.T, key *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}
