package bolt

import "sync"

// changes wakes those who wait for a table.
type changes struct {
	mu     sync.Mutex
	tables map[string]chan struct{}
	closed bool
}

func (c *changes) next(table string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, ok := c.tables[table]
	if !ok {
		ch = make(chan struct{})
		if c.closed {
			close(ch)
			return ch
		}
		if c.tables == nil {
			c.tables = map[string]chan struct{}{}
		}
		c.tables[table] = ch
	}
	return ch
}

func (c *changes) announce(tables map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for table := range tables {
		if ch, ok := c.tables[table]; ok {
			close(ch)
			delete(c.tables, table)
		}
	}
}

// close wakes everybody: who then reads finds the store closed.
func (c *changes) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for table, ch := range c.tables {
		close(ch)
		delete(c.tables, table)
	}
}
