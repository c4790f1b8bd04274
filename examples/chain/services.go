package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/countersign/countersign/cmd/countersign/local"
)

// startServices starts the agent of this host, and then the chain from its end, because each service is told where the next one is.
func (c *chain) startServices(ctx context.Context) error {
	for _, name := range []string{gateway, orders, inventory, warehouse} {
		if err := c.settle(ctx, name); err != nil {
			return err
		}
	}
	for _, start := range []func(context.Context) error{c.startAgent, c.startWarehouse, c.startInventory, c.startOrders, c.startGateway} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// settle makes a join token for a service, in a file, and chooses its address: one that is free at this moment.
func (c *chain) settle(ctx context.Context, name string) error {
	var token struct{ Join string }
	if err := c.host.Ask(ctx, &token, "join-token", "create", name); err != nil {
		return err
	}
	if err := os.WriteFile(c.identity(name)+".join", []byte(token.Join+"\n"), 0o600); err != nil {
		return err
	}
	free, err := local.FreeAddress()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(free)
	c.addresses[name] = "https://" + name + "." + trustDomain + ":" + port
	return err
}

// port is that of a service's address.
func (c *chain) port(name string) string {
	return c.addresses[name][strings.LastIndexByte(c.addresses[name], ':')+1:]
}

func (c *chain) startAgent(ctx context.Context) error {
	ops, err := local.FreeAddress()
	if err != nil {
		return err
	}
	c.agent, err = c.fill("agent.yaml", map[string]string{
		"SOCKET": filepath.Join(c.dir, "agent.sock"), "OPS": ops, "DIR": c.dir, "ORDERS_PORT": c.port(orders),
	})
	if err != nil {
		return err
	}
	if _, err := c.host.StartReady(ctx, "agent", ops, c.Countersign, nil, "agent", "run", "--config", c.agent); err != nil {
		return err
	}
	// It is ready when it has the certificates; the files are there a moment later.
	for _, name := range []string{gateway + "/tls.crt", warehouse + "/tls.crt", orders + "/application-countersign.yaml"} {
		if err := await(ctx, filepath.Join(c.dir, name)); err != nil {
			return err
		}
	}
	c.line("agent", "joins for gateway, orders and warehouse, and keeps their identity directories fresh")
	return nil
}

// startWarehouse starts the application in Node.js, on a Unix socket in a directory that only its user may enter, and the relay before
// it.
func (c *chain) startWarehouse(ctx context.Context) error {
	own := filepath.Join(c.dir, "warehouse-app")
	if err := os.Mkdir(own, 0o700); err != nil {
		return err
	}
	socket := filepath.Join(own, "http.sock")
	if _, _, err := c.host.StartServer(ctx, "warehouse-app", "node", filepath.Join(c.Source, "warehouse/warehouse.mjs"), socket); err != nil {
		return err
	}
	if err := c.startRelay(ctx, warehouse, "warehouse/relay.yaml", map[string]string{"SOCKET": socket}); err != nil {
		return err
	}
	c.line(warehouse, "Node.js on a Unix socket, and countersign relay before it")
	return nil
}

// startGateway starts the relay with the listener for users.
func (c *chain) startGateway(ctx context.Context) error {
	err := c.startRelay(ctx, gateway, "gateway.yaml", map[string]string{
		"IDP": c.issuer, "IDP_CA": filepath.Join(c.dir, "idp-ca.pem"), "ORDERS_PORT": c.port(orders),
	})
	if err != nil {
		return err
	}
	c.line(gateway, "countersign relay, with a listener for users")
	return nil
}

func (c *chain) startRelay(ctx context.Context, name, template string, values map[string]string) error {
	ops, err := local.FreeAddress()
	if err != nil {
		return err
	}
	values["IDENTITY"], values["LISTEN"], values["OPS"] = c.identity(name), "127.0.0.1:"+c.port(name), ops
	config, err := c.fill(template, values)
	if err != nil {
		return err
	}
	_, err = c.host.StartReady(ctx, name, ops, c.Countersign, nil, "relay", "--config", config)
	return err
}

// startInventory builds the service in Go and starts it.
func (c *chain) startInventory(ctx context.Context) error {
	binary := filepath.Join(c.dir, "inventory-app")
	if err := c.build(ctx, "go", "build", "-o", binary, "./inventory"); err != nil {
		return err
	}
	process, _, err := c.host.StartServer(ctx, inventory, binary, "-listen", "127.0.0.1:"+c.port(inventory), "-identity", c.identity(inventory),
		"-join-file", c.identity(inventory)+".join", "-issuer", c.authority.Issuer, "-warehouse", c.addresses[warehouse]+paths[warehouse])
	if err != nil {
		return err
	}
	c.inventory = process
	c.line(inventory, "Go with the SDK: it joins and renews by itself")
	return nil
}

// startOrders compiles the service in Java and starts it with what the agent wrote for it.
func (c *chain) startOrders(ctx context.Context) error {
	sources, err := filepath.Glob(filepath.Join(c.Source, "orders/*.java"))
	if err != nil || len(sources) == 0 {
		return fmt.Errorf("there are no sources of orders in %s: %w", c.Source, err)
	}
	classes := filepath.Join(c.dir, "orders-app")
	if err := c.build(ctx, "javac", append([]string{"-d", classes}, sources...)...); err != nil {
		return err
	}
	own, err := c.fill("orders/application.yaml", map[string]string{"PORT": c.port(orders), "IDENTITY": c.identity(orders)})
	if err != nil {
		return err
	}
	// The names of the services are in no DNS: this JVM alone finds them on loopback, and holds the certificates to them.
	hosts := filepath.Join(c.dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost "+inventory+"."+trustDomain+"\n"), 0o600); err != nil {
		return err
	}
	_, _, err = c.host.StartServer(ctx, orders, "java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djdk.net.hosts.file="+hosts, "-cp", classes,
		"Orders", c.addresses[inventory]+paths[inventory], own, filepath.Join(c.identity(orders), "application-countersign.yaml"))
	if err != nil {
		return err
	}
	c.line(orders, "Java 17 and nothing else, on the key store of its directory and the file for Spring Boot that the agent writes")
	return nil
}

// build runs a compiler in the directory of the sources.
func (c *chain) build(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.Source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// await waits for a file.
func await(ctx context.Context, path string) error {
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
