package sts

import (
	"fmt"
	"sync"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// clientKeys keeps the parsed keys of the clients of the policy in force: of at most all its services, and of no other
// policy.
type clientKeys struct {
	mu     sync.Mutex
	policy *countersign.Policy
	sets   map[string]*jwt.Set // by the text that the policy holds
}

// set is that of client, a service of p that has keys.
func (c *clientKeys) set(p *countersign.Policy, client *countersign.Service) (*jwt.Set, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.policy != p {
		c.policy, c.sets = p, map[string]*jwt.Set{}
	}
	if set, ok := c.sets[client.ClientKeys]; ok {
		return set, nil
	}
	set, err := jwt.ParseSet([]byte(client.ClientKeys))
	if err != nil {
		return nil, fmt.Errorf("read the client keys of %s: %w", client.Name, err)
	}
	c.sets[client.ClientKeys] = set
	return set, nil
}
