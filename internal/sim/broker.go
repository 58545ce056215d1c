package sim

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// BrokerOptions say how a Broker is set up. The zero value is a broker with
// a CA of its own on a free port of the loopback address.
type BrokerOptions struct {
	Addr string // host:port to listen on; "" is 127.0.0.1:0
	CA   *CA    // who signs; nil makes one
	// OnPublish is called for every message that the broker took, in the
	// order of each connection, and before its acknowledgement reaches the
	// sender. Calls for different connections may overlap. It must not keep
	// payload.
	OnPublish func(topic string, payload []byte)
}

// Broker is the demo's MQTT 3.1.1 broker: TLS 1.2 or better, client
// certificates demanded, nothing kept on disk, no sessions kept. Its link can
// be cut and restored.
type Broker struct {
	gate  *gate
	post  *post
	ca    *CA
	count atomic.Int64
}

// NewBroker starts a broker. Close it.
func NewBroker(o BrokerOptions) (*Broker, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	b := &Broker{ca: o.CA}
	var err error
	if b.ca == nil {
		if b.ca, err = NewCA("tidegate throw-away CA"); err != nil {
			return nil, err
		}
	}
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if h, _, err := net.SplitHostPort(o.Addr); err == nil && h != "" && h != "127.0.0.1" {
		hosts = append(hosts, h)
	}
	config, err := b.ca.ServerConfig(hosts...)
	if err != nil {
		return nil, err
	}
	b.post = &post{retained: map[string][]byte{}, members: map[*member]struct{}{}, took: func(topic string, payload []byte) {
		b.count.Add(1)
		if o.OnPublish != nil {
			o.OnPublish(topic, payload)
		}
	}}
	b.gate = &gate{addr: o.Addr, config: config, conns: map[net.Conn]struct{}{}, serve: b.post.serve}
	if err := b.gate.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// Addr returns host:port of the broker; it stays the same after Restore.
func (b *Broker) Addr() string {
	b.gate.mu.Lock()
	defer b.gate.mu.Unlock()
	return b.gate.addr
}

// URL returns the broker's address as the configuration writes it.
func (b *Broker) URL() string { return "mqtts://" + b.Addr() }

// CA returns who signed the broker's certificate and must sign the clients'.
func (b *Broker) CA() *CA { return b.ca }

// Published returns how many messages the broker took.
func (b *Broker) Published() int64 { return b.count.Load() }

// Connections returns how many connections are open and how many there were.
func (b *Broker) Connections() (open int, total int64) {
	b.gate.mu.Lock()
	defer b.gate.mu.Unlock()
	return len(b.gate.conns), b.gate.total
}

// Cut closes all connections and refuses new ones, as if the link were gone.
func (b *Broker) Cut() { b.gate.shut() }

// Restore accepts connections again, on the same address. It does nothing
// when the broker is not cut.
func (b *Broker) Restore() error { return b.gate.open() }

// Close ends the broker and everything it started.
func (b *Broker) Close() error {
	b.gate.close()
	return nil
}

// gate takes connections in and can be shut and opened.
type gate struct {
	config *tls.Config
	serve  func(net.Conn)
	wg     sync.WaitGroup

	mu     sync.Mutex
	addr   string
	ln     net.Listener // nil while shut
	conns  map[net.Conn]struct{}
	total  int64
	closed bool
}

func (g *gate) open() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ln != nil || g.closed {
		return nil
	}
	ln, err := net.Listen("tcp", g.addr)
	if err != nil {
		return fmt.Errorf("sim: broker: %w", err)
	}
	g.ln, g.addr = ln, ln.Addr().String()
	g.wg.Go(func() { g.accept(ln) })
	return nil
}

func (g *gate) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		shut := g.ln != ln
		if !shut {
			g.conns[c] = struct{}{}
			g.total++
		}
		g.mu.Unlock()
		if shut {
			c.Close()
			return
		}
		g.wg.Go(func() {
			g.serve(tls.Server(c, g.config))
			c.Close()
			g.mu.Lock()
			delete(g.conns, c)
			g.mu.Unlock()
		})
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ln != nil {
		g.ln.Close()
		g.ln = nil
	}
	for c := range g.conns {
		c.Close()
	}
}

// close shuts the gate for good and waits for all connections to end.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.shut()
	g.wg.Wait()
}
