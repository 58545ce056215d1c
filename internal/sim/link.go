package sim

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link is a TCP connection in the middle of a network that can fail: clients
// dial Addr, and what they send goes to the target and back. Make one with
// NewLink. It is safe for concurrent use.
type Link struct {
	target   string
	addr     string
	up, down atomic.Int64
	lost     atomic.Int64
	total    atomic.Int64
	wg       sync.WaitGroup

	mu      sync.Mutex
	ln      net.Listener // nil while refusing
	mode    linkMode
	delay   time.Duration
	rate    int
	changed chan struct{} // closed and replaced when any of the above changes
	conns   map[*linkConn]struct{}
	closed  bool
}

type linkMode uint8

const (
	passing linkMode = iota
	holding
	swallowing
)

// LinkStats counts what went over a Link.
type LinkStats struct {
	Up, Down    int64 // bytes passed on to the target and back
	Swallowed   int64 // bytes that vanished in the black hole
	Connections int64 // accepted so far
	Open        int   // not yet closed on both ends
}

// linkConn is one client's connection and the one to the target.
type linkConn struct {
	client net.Conn
	target net.Conn // nil if the black hole was there before
	dead   atomic.Bool
}

// NewLink listens on a free port of the loopback address and passes
// everything to target (host:port). Close it.
func NewLink(target string) (*Link, error) {
	l := &Link{target: target, addr: "127.0.0.1:0", changed: make(chan struct{}), conns: map[*linkConn]struct{}{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l, l.listen()
}

// Addr returns host:port to dial; it stays the same for the link's life.
func (l *Link) Addr() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

// Stats returns the counters so far.
func (l *Link) Stats() LinkStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LinkStats{l.up.Load(), l.down.Load(), l.lost.Load(), l.total.Load(), len(l.conns)}
}

// Pass lets everything through again. Connections that the black hole has
// touched stay dead: their streams have holes.
func (l *Link) Pass() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(passing)
	return l.listen()
}

// Hold stops all bytes in both directions and keeps them; Pass lets them go
// on. New connections are accepted and wait.
func (l *Link) Hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(holding)
}

// BlackHole swallows all bytes in both directions without closing anything,
// and hides from each end that the other has closed: a link cut without FIN
// or RST. New connections are accepted and swallowed, too.
func (l *Link) BlackHole() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(swallowing)
	for c := range l.conns {
		c.dead.Store(true)
	}
}

// Cut resets all connections there are; new ones are welcome.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reset()
}

// Refuse resets all connections and refuses new ones until Pass.
func (l *Link) Refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ln != nil {
		l.ln.Close()
		l.ln = nil
	}
	l.reset()
}

// SetDelay sets how long each byte travels, each way.
func (l *Link) SetDelay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
	l.set(l.mode)
}

// SetRate limits each direction of each connection to so many bytes a
// second; 0 does not.
func (l *Link) SetRate(bytesPerSecond int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = bytesPerSecond
	l.set(l.mode)
}

// Close resets everything and waits for all that the link started.
func (l *Link) Close() error {
	l.Refuse()
	l.mu.Lock()
	l.closed = true
	l.set(passing)
	l.mu.Unlock()
	l.wg.Wait()
	return nil
}

func (l *Link) set(m linkMode) {
	l.mode = m
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Link) listen() error {
	if l.ln != nil || l.closed {
		return nil
	}
	ln, err := net.Listen("tcp", l.addr)
	if err != nil {
		return fmt.Errorf("sim: link: %w", err)
	}
	l.ln, l.addr = ln, ln.Addr().String()
	l.wg.Go(func() { l.accept(ln) })
	return nil
}

// reset ends all connections with a RST at both ends.
func (l *Link) reset() {
	for c := range l.conns {
		c.close(0)
	}
	clear(l.conns)
	l.set(l.mode) // wakes those that wait
}

func (c *linkConn) close(linger int) {
	for _, n := range []net.Conn{c.client, c.target} {
		if t, ok := n.(*net.TCPConn); ok {
			// The connection may be closed already: nothing to linger then.
			_ = t.SetLinger(linger)
			t.Close()
		}
	}
}

func (l *Link) accept(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		l.total.Add(1)
		c := &linkConn{client: client}
		small(client)
		l.mu.Lock()
		c.dead.Store(l.mode == swallowing)
		l.mu.Unlock()
		if !c.dead.Load() {
			target, err := net.Dial("tcp", l.target)
			if err != nil {
				c.close(0)
				continue
			}
			small(target)
			c.target = target
		}
		l.mu.Lock()
		stale := l.ln != ln
		if !stale {
			l.conns[c] = struct{}{}
		}
		l.mu.Unlock()
		if stale {
			c.close(0)
			return
		}
		l.wg.Go(func() { l.carry(c) })
	}
}

// small keeps the kernel from taking in much more than the link passes on, so
// that a slow link is felt by the sender.
func small(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		// A connection that is gone already needs no buffer.
		_ = t.SetReadBuffer(32 << 10)
	}
}

// carry moves bytes both ways until both ends have closed.
func (l *Link) carry(c *linkConn) {
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(c, c.client, c.target, &l.up) })
	if c.target != nil {
		wg.Go(func() { l.pump(c, c.target, c.client, &l.down) })
	}
	wg.Wait()
	if c.dead.Load() {
		return // half open until Cut, Refuse or Close
	}
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	c.close(-1)
}

type parcel struct {
	b   []byte
	due time.Time
}

// pump moves bytes one way: one goroutine reads, so that a delay does not
// limit the rate, the caller's writes.
func (l *Link) pump(c *linkConn, from, to net.Conn, count *atomic.Int64) {
	queue := make(chan parcel, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(queue)
		for {
			b := make([]byte, 4<<10)
			n, err := from.Read(b)
			if n > 0 {
				l.mu.Lock()
				delay := l.delay
				l.mu.Unlock()
				queue <- parcel{b[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	})
	defer wg.Wait()
	for p := range queue {
		if !l.pass(c, p) {
			l.lost.Add(int64(len(p.b)))
			continue
		}
		if n, err := to.Write(p.b); err != nil {
			from.Close()
			for range queue { // the reader must not hang
			}
			return
		} else {
			count.Add(int64(n))
		}
	}
	if t, ok := to.(*net.TCPConn); ok && l.pass(c, parcel{}) {
		// The other end learns that no more will come.
		if err := t.CloseWrite(); err != nil && err != io.EOF {
			t.Close()
		}
	}
}

// pass waits until the parcel may be written; false swallows it.
func (l *Link) pass(c *linkConn, p parcel) bool {
	start := time.Now()
	for {
		l.mu.Lock()
		mode, rate, changed, open := l.mode, l.rate, l.changed, !l.closed
		_, known := l.conns[c]
		l.mu.Unlock()
		if c.dead.Load() || !known {
			return false
		}
		due := p.due
		if rate > 0 {
			if t := start.Add(time.Duration(len(p.b)) * time.Second / time.Duration(rate)); t.After(due) {
				due = t
			}
		}
		wait := time.Until(due)
		if mode == holding && open {
			wait = time.Hour
		}
		if wait <= 0 {
			return true
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		}
	}
}
