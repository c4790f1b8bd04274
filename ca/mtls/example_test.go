package mtls_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/verify"
)

// serve runs a server on loopback until end.
func serve(server *http.Server) (address string, end func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }()
	return l.Addr().String(), func() { server.Close(); <-done }
}

// open is Open and Wait.
func open(ctx context.Context, dir string) *mtls.Source {
	src, err := mtls.Open(ctx, mtls.Config{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	if err := src.Wait(ctx); err != nil {
		log.Fatal(err)
	}
	return src
}

// A server that admits whom the call graph lets call it, and a client that calls nobody but it.
func Example() {
	shop, end := mtls.NewShop()
	defer end()
	ctx := context.Background()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := mtls.Peer(r.TLS)
		fmt.Fprintf(w, "hello, %s", caller)
	})

	src, err := mtls.Open(ctx, mtls.Config{Dir: shop.Identity("orders")})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	server := &http.Server{Handler: handler, TLSConfig: mtls.Server(src, mtls.Callers())}

	address, stop := serve(server)
	defer stop()
	shop.Settled(src)

	gateway := open(ctx, shop.Identity("gateway"))
	defer gateway.Close()
	orders, err := countersign.NewServiceID("shop.internal", "orders")
	if err != nil {
		log.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: mtls.Client(gateway, mtls.Only(orders)), ForceAttemptHTTP2: true}

	transport.DialContext = shop.Resolve(map[string]string{"orders.shop.internal:443": address})
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("https://orders.shop.internal/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Println(string(body), err)
	// Output: hello, spiffe://shop.internal/gateway <nil>
}

// A service in the middle: it is called by the gateway with a user's token, and calls inventory with one that was exchanged
// from it.
func ExampleTokens_Transport() {
	shop, end := mtls.NewShop()
	defer end()
	ctx := context.Background()
	inventory := open(ctx, shop.Identity("inventory"))
	defer inventory.Close()
	stock := shop.Verifier("inventory").RequireScope("stock:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := verify.FromContext(r.Context())
		fmt.Fprintf(w, "%s asks for %v", claims.Actor(), claims.Scopes)
	}))
	inventoryAt, stop := serve(&http.Server{Handler: stock, TLSConfig: mtls.Server(inventory, mtls.InDomain())})
	defer stop()
	src := open(ctx, shop.Identity("orders"))
	defer src.Close()
	names := shop.Resolve(map[string]string{"inventory.shop.internal:443": inventoryAt})

	tokens := mtls.NewTokens(src)
	next := &http.Client{Transport: tokens.Transport("inventory", []string{"stock:read"}, &http.Transport{DialContext: names})}

	defer next.CloseIdleConnections()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "https://inventory.shop.internal/", nil)
		if err != nil {
			log.Fatal(err)
		}
		response, err := next.Do(request)

		if err != nil {
			http.Error(w, "no answer of inventory", http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		_, _ = io.Copy(w, response.Body)
	})
	server := &http.Server{Handler: shop.Verifier("orders").Middleware(handler), TLSConfig: mtls.Server(src, mtls.Callers())}
	address, stopOrders := serve(server)
	defer stopOrders()
	shop.Settled(src)

	gateway := open(ctx, shop.Identity("gateway"))
	defer gateway.Close()
	transport := &http.Transport{TLSClientConfig: mtls.Client(gateway, mtls.InDomain())}
	transport.DialContext = shop.Resolve(map[string]string{"orders.shop.internal:443": address})
	defer transport.CloseIdleConnections()
	request, err := http.NewRequest(http.MethodGet, "https://orders.shop.internal/", nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+shop.Token(gateway))
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Println(string(body), err)
	// Output: spiffe://shop.internal/orders asks for [stock:read] <nil>
}

// Three lines for a client where names are resolved as usual.
func ExampleTokens_HTTPClient() {
	ctx := context.Background()

	src, err := mtls.Open(ctx, mtls.Config{Dir: "/etc/orders/identity"})
	if err != nil {
		log.Fatal(err)
	}
	inventory := mtls.NewTokens(src).HTTPClient("inventory", "stock:read")

	_ = inventory
}

// A service that enrols at its first start, and whose state goes to its metrics.
func ExampleOpen() {
	shop, end := mtls.NewShop()
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, joinFile := shop.Identity("orders")+"/new", shop.JoinFile("orders")

	src, err := mtls.Open(ctx, mtls.Config{
		Dir:      dir,      // made at the first start
		JoinFile: joinFile, // what `countersign join-token create orders` printed
	})
	if err != nil {
		log.Fatal(err) // a fault of the configuration
	}
	defer src.Close()
	if err := src.Wait(ctx); err != nil {
		log.Fatal(err)
	}

	status := src.Status()
	fmt.Println(status.ID, status.Budget > 23*time.Hour, status.LastError)

	// Output: spiffe://shop.internal/orders true <nil>
}
