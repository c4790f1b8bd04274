package limit

import (
	"errors"
	"fmt"
)

// What buckets are told apart by.
const (
	User    = "user"    // the user behind the request
	Client  = "client"  // the service or client application that asks
	Address = "address" // the address of the connection; IPv6 by /64, which one host changes at will
)

// Config is one token bucket per key, in the words of Spring Cloud Gateway's RequestRateLimiter.
type Config struct {
	Key             string `yaml:"key"`              // user, client or address
	ReplenishRate   int    `yaml:"replenish_rate"`   // tokens a second, 1 to 1,000,000
	Burst           int    `yaml:"burst"`            // what a bucket holds; default: the larger of the other two, never less than each
	RequestedTokens int    `yaml:"requested_tokens"` // what a request costs; default 1. Above the rate: less than one request a second
}

const most = 1_000_000

// withDefaults checks the configuration. Faults name the field.
func (c Config) withDefaults() (Config, error) {
	if c.RequestedTokens == 0 {
		c.RequestedTokens = 1
	}
	if c.Burst == 0 {
		c.Burst = max(c.ReplenishRate, c.RequestedTokens)
	}
	switch {
	case c.Key != User && c.Key != Client && c.Key != Address:
		return c, fmt.Errorf("key is %q: it must be %s, %s or %s", c.Key, User, Client, Address)
	case c.ReplenishRate < 1 || c.ReplenishRate > most:
		return c, fmt.Errorf("replenish_rate is %d: it must be 1 to %d tokens a second", c.ReplenishRate, most)
	case c.RequestedTokens < 1 || c.RequestedTokens > most:
		return c, fmt.Errorf("requested_tokens is %d: it must be 1 to %d", c.RequestedTokens, most)
	case c.Burst < c.RequestedTokens:
		return c, errors.New("burst is less than requested_tokens: no request would ever pass")
	case c.Burst < c.ReplenishRate || c.Burst > most:
		return c, fmt.Errorf("burst is %d: it must be replenish_rate to %d", c.Burst, most)
	}
	return c, nil
}

// Validate tells the first fault; nil: there is none.
func (c Config) Validate() error { _, err := c.withDefaults(); return err }
