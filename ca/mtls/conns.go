package mtls

import (
	"crypto/tls"
	"net"
	"runtime"
	"sync"
)

// conns are the kept connections of a server whose peers may lose their admission.
//
// When a connection is closed nobody tells: its config is what tells. crypto/tls holds the config of a connection exactly
// as long as the connection itself is held, so when the config is collected the entry goes. Entries hold the connection
// below, which does not hold the one above.
type conns struct {
	mu   sync.Mutex
	next uint64
	open map[uint64]kept
}

type kept struct {
	conn  net.Conn
	peer  peer
	judge func(peer) error
}

func newConns() *conns { return &conns{open: map[uint64]kept{}} }

// watch gives the VerifyConnection of a connection with this config: judge, and if it admits, an entry.
func (c *conns) watch(config *tls.Config, conn net.Conn, judge func(tls.ConnectionState) (peer, error), again func(peer) error) func(tls.ConnectionState) error {
	c.mu.Lock()
	c.next++
	id := c.next
	c.mu.Unlock()
	runtime.AddCleanup(config, c.forget, id)
	return func(state tls.ConnectionState) error {
		p, err := judge(state)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.open[id] = kept{conn, p, again}
		c.mu.Unlock()
		return nil
	}
}

func (c *conns) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, id)
}

// sweep closes the connections whose peers are not admitted any more, and tells how many.
func (c *conns) sweep() int {
	var out []net.Conn
	c.mu.Lock()
	for id, k := range c.open {
		if k.judge(k.peer) != nil {
			out = append(out, k.conn)
			delete(c.open, id)
		}
	}
	c.mu.Unlock()
	for _, conn := range out {
		conn.Close()
	}
	return len(out)
}

func (c *conns) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}
