// Package sim holds the other side of tidegate: instruments and a broker
// that behave, or misbehave on demand, for tests and for the demo.
//
// A Slave is a Modbus server model with many units, served on anything that
// reads and writes bytes (RTU, ASCII), on TCP and as RTU frames over TCP. A
// Talker is a device that speaks by itself. A Meter fills a unit's registers
// from a profile with values that look real, and knows the truth. A Broker is
// the demo's MQTT broker. A Link is a TCP connection that can be cut, held
// and swallowed.
package sim

import (
	"context"
	"io"
	"maps"
	"net"
	"sync"
	"time"
)

// Wire says how a serial line behaves. The zero Wire passes bytes as fast as
// they go.
type Wire struct {
	// Baud paces answers as a line of this speed would: the request's own
	// time on the wire, 3.5 characters of silence, then one character after
	// the other. 0 does not pace.
	Baud int
	// CharBits is the length of a character with start, parity and stop
	// bits; 0 means 10 (8N1), 8E1 has 11.
	CharBits int
	// Only is the line setting of the devices, such as 9600 8E1. On a pty
	// whoever has another one set hears and says nothing but garbage; "" and
	// elsewhere all settings are alike.
	Only string
}

func (w Wire) char() time.Duration {
	if w.Baud <= 0 {
		return 0
	}
	bits := w.CharBits
	if bits <= 0 {
		bits = 10
	}
	return time.Duration(bits) * time.Second / time.Duration(w.Baud)
}

// Exchange is one request and what was sent for it.
type Exchange struct {
	Request
	At     time.Time // when the values were taken
	Fault  Fault
	Answer []byte // the answer PDU before the fault touched it; nil if there was none
}

// Stats counts what a slave has seen and done.
type Stats struct {
	Requests   int64 // whole requests, for units here or not
	Answers    int64 // answers sent, exceptions and damaged ones included
	Exceptions int64 // refused requests
	Damaged    int64 // frames with a wrong checksum or header
	Foreign    int64 // requests for units that are not here or are off
	Faults     map[FaultKind]int64
}

// Slave is a Modbus server model: units with register memory behind one or
// more lines. Make one with NewSlave. It is safe for concurrent use.
type Slave struct {
	mu         sync.Mutex
	units      map[byte]*Unit
	plan       Plan
	observe    func(Exchange)
	turnaround time.Duration
	n          int
	stats      Stats
}

// NewSlave returns a slave without units.
func NewSlave() *Slave {
	return &Slave{units: map[byte]*Unit{}, stats: Stats{Faults: map[FaultKind]int64{}}}
}

// Unit returns the unit with this number (0 to 255) and adds it, with empty
// memory, if it is not there. On serial lines unit 0 is the broadcast address
// and never answers.
func (s *Slave) Unit(number byte) *Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.units[number]
	if u == nil {
		u = &Unit{}
		s.units[number] = u
	}
	return u
}

// SetPlan replaces the plan of faults; nil means none. Requests are numbered
// anew from 1.
func (s *Slave) SetPlan(p Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan, s.n = p, 0
}

// SetTurnaround sets how long a unit thinks before each answer.
func (s *Slave) SetTurnaround(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turnaround = d
}

// Observe calls f, under the slave's lock, for each request to a unit that is
// here; a test's history of what was truly sent.
func (s *Slave) Observe(f func(Exchange)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observe = f
}

// Stats returns the counters so far.
func (s *Slave) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Faults = maps.Clone(st.Faults)
	return st
}

// ServeRTU answers RTU frames on rw, for example the master end of a pty or a
// serial port, until ctx ends or reading fails. On a pty that nobody has open
// it waits for the next opener. It does not close rw unless that is the only
// way to end a Read under way.
func (s *Slave) ServeRTU(ctx context.Context, rw io.ReadWriter, w Wire) error {
	return s.serve(ctx, rw, rtu, w)
}

// ServeASCII is ServeRTU with ASCII frames.
func (s *Slave) ServeASCII(ctx context.Context, rw io.ReadWriter, w Wire) error {
	return s.serve(ctx, rw, ascii, w)
}

// ServeTCP answers Modbus TCP on every connection that ln accepts until ctx
// ends; it closes ln and all connections then. A request for a unit that is
// not here stays without an answer.
func (s *Slave) ServeTCP(ctx context.Context, ln net.Listener) error {
	return s.listen(ctx, ln, mbap, Wire{})
}

// ServeRTUOverTCP is ServeTCP with RTU frames, as from a serial server whose
// line is w.
func (s *Slave) ServeRTUOverTCP(ctx context.Context, ln net.Listener, w Wire) error {
	return s.listen(ctx, ln, rtu, w)
}

func (s *Slave) listen(ctx context.Context, ln net.Listener, k framing, w Wire) error {
	return acceptLoop(ctx, ln, func(ctx context.Context, c net.Conn) {
		// An error ends this connection only: the next one starts clean.
		_ = s.serve(ctx, c, k, w)
	})
}

// acceptLoop serves each connection in a goroutine of its own and waits for
// all of them. It returns nil when ctx has ended.
func acceptLoop(ctx context.Context, ln net.Listener, serve func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	var wg sync.WaitGroup
	defer func() { cancel(); stop(); ln.Close(); wg.Wait() }()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() {
			defer c.Close()
			serve(ctx, c)
		})
	}
}

type taken struct {
	n     int // number of the request
	think time.Duration
}

// take executes a request. A nil answer means that nobody here answers.
func (s *Slave) take(k framing, number byte, pdu []byte, now time.Time) (answer []byte, f Fault, t taken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Requests++
	if number == 0 && k != mbap {
		if fc := pdu[0]; fc == 5 || fc == 6 || fc == 15 || fc == 16 || fc == 22 {
			for _, u := range s.units {
				u.answer(pdu, now)
			}
		}
		return nil, Fault{}, taken{}
	}
	u := s.units[number]
	if u == nil || u.off.Load() {
		s.stats.Foreign++
		return nil, Fault{}, taken{}
	}
	u.served.Add(1)
	s.n++
	tab, addr, count := span(pdu)
	r := Request{N: s.n, Unit: number, Function: pdu[0], Address: uint16(addr), Count: uint16(count)}
	if s.plan != nil {
		f = s.plan(r)
	}
	if count > 0 {
		u.mu.Lock()
		if tf, ok := u.tables[tab].trapped(addr, count); ok {
			f = tf
		}
		u.mu.Unlock()
	}
	if f.Kind == WrongID && k != mbap {
		f = Fault{}
	}
	if f.Kind != None {
		s.stats.Faults[f.Kind]++
	}
	if f.Kind == Exception {
		code := f.Code
		if code == 0 {
			code = 4
		}
		answer = []byte{pdu[0] | 0x80, code}
	} else {
		answer = u.answer(pdu, now)
	}
	if f.Kind != Silent && f.Kind != Hangup {
		s.stats.Answers++
	}
	if answer[0]&0x80 != 0 {
		s.stats.Exceptions++
	}
	if s.observe != nil {
		s.observe(Exchange{Request: r, At: now, Fault: f, Answer: append([]byte(nil), answer...)})
	}
	return answer, f, taken{n: s.n, think: s.turnaround}
}

func (s *Slave) damaged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Damaged++
}
