package sim

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// BrokerOptions say how a Broker is set up. The zero value is a broker with
// a CA of its own on a free port of the loopback address.
type BrokerOptions struct {
	Addr string // host:port to listen on; "" is 127.0.0.1:0
	CA   *CA    // who signs; nil makes one
	// OnPublish is called for every message that the broker took, in the
	// order of each connection, and before or after its acknowledgement
	// reaches the sender. It must not keep payload.
	OnPublish func(topic string, payload []byte)
}

// Broker is the demo's MQTT broker: TLS 1.2 or better, client certificates
// demanded, nothing kept on disk. Its link can be cut and restored.
type Broker struct {
	server *mqtt.Server
	gate   *gate
	ca     *CA
	count  atomic.Int64
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
	if b.gate, err = newGate(o.Addr, config); err != nil {
		return nil, err
	}
	b.server = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	err = b.server.AddHook(&allow{}, nil)
	if err == nil {
		err = b.server.Subscribe("#", 1, func(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
			b.count.Add(1)
			if o.OnPublish != nil {
				o.OnPublish(pk.TopicName, pk.Payload)
			}
		})
	}
	if err == nil {
		err = b.server.AddListener(listeners.NewNet("tls", b.gate))
	}
	if err == nil {
		err = b.server.Serve()
	}
	if err != nil {
		b.gate.Close()
		return nil, fmt.Errorf("sim: broker: %w", err)
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
	err := b.server.Close() // closes the gate, too
	b.gate.Close()
	return err
}

// allow lets every client with a good certificate do everything.
type allow struct{ mqtt.HookBase }

func (*allow) ID() string { return "allow" }

func (*allow) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}

func (*allow) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (*allow) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// gate is a listener that can be shut and opened while Accept waits.
type gate struct {
	addr   string
	config *tls.Config
	in     chan net.Conn
	done   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	ln     net.Listener // nil while shut
	conns  map[net.Conn]struct{}
	total  int64
	closed bool
}

func newGate(addr string, config *tls.Config) (*gate, error) {
	g := &gate{addr: addr, config: config, in: make(chan net.Conn), done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	return g, g.open()
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
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		c := &gateConn{Conn: raw, gate: g}
		g.mu.Lock()
		shut := g.ln != ln
		if !shut {
			g.conns[c] = struct{}{}
			g.total++
		}
		g.mu.Unlock()
		if shut {
			raw.Close()
			return
		}
		select {
		case g.in <- tls.Server(c, g.config):
		case <-g.done:
			c.Close()
			return
		}
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
		c.(*gateConn).Conn.Close()
	}
	clear(g.conns)
}

// Accept implements net.Listener; while the gate is shut it waits.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.in:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called again.
func (g *gate) Close() error {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	g.mu.Unlock()
	if first {
		close(g.done)
	}
	g.shut()
	g.wg.Wait()
	return nil
}

// Addr implements net.Listener.
func (g *gate) Addr() net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ln != nil {
		return g.ln.Addr()
	}
	return &net.TCPAddr{}
}

// gateConn tells its gate when it is closed.
type gateConn struct {
	net.Conn
	gate *gate
}

func (c *gateConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
