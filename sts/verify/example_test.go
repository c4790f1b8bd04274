package verify_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// A service named inventory takes relay tokens of the company's Countersign. authority stands for it here: it publishes
// its keys on a loopback address, under a root of its own.
func Example() {
	authority := newAuthority()
	defer authority.Close()

	v, err := verify.New(verify.Config{
		Issuer:   authority.URL,
		Audience: "inventory",
		Roots:    authority.roots(), // root.crt of the identity directory
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	// The token that a caller sent as "Authorization: Bearer ...".
	token, err := jwt.Sign(authority.key, "ES256", "k1", "at+jwt", authority.claims(time.Now()))
	if err != nil {
		fmt.Println(err)
		return
	}
	claims, err := v.Verify(context.Background(), token)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("user:", claims.User())
	fmt.Println("caller:", claims.Actor())
	fmt.Println("may read stock:", claims.HasScope("stock:read"))
	fmt.Println("may delete stock:", claims.HasScope("stock:delete"))

	// The same from a caller who passes on a token that it got itself, instead of exchanging it.
	foreign := authority.claims(time.Now())
	foreign["aud"] = "orders"
	if token, err = jwt.Sign(authority.key, "ES256", "k1", "at+jwt", foreign); err != nil {
		fmt.Println(err)
		return
	}
	_, err = v.Verify(context.Background(), token)
	var refused *verify.Error
	if errors.As(err, &refused) {
		fmt.Println("refused:", refused.Reason)
	}
	// Output:
	// user: alice
	// caller: spiffe://shop.internal/orders
	// may read stock: true
	// may delete stock: false
	// refused: aud
}
