package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Move is what a Script does with one PUBLISH of quality 1.
type Move uint8

// The moves. Pass is the zero value: keep the message, acknowledge it.
const (
	Pass       Move = iota
	DropBefore      // close the connection, the message is not kept
	DropUnread      // keep the message, close the connection without a PUBACK
	DropAfter       // keep it, send the PUBACK, close
	Swallow         // keep it, never send the PUBACK
	Twice           // keep it, send the PUBACK two times
	Stranger        // send PUBACKs of numbers nobody used, then as Pass
	Early           // send the PUBACKs of the next 16 message numbers ahead, then Swallow
	WrongAck        // keep it, answer with SUBACK, UNSUBACK and PUBCOMP of its number, then close
	Stall           // stop reading for good, keep the connection open
	Oversize        // send a PUBLISH header that announces 256 MB, then read on
)

// Arrival is one PUBLISH as a Script received it.
type Arrival struct {
	Conn     int // number of the connection, from 1
	N        int // number of this PUBLISH on its connection, from 1
	Total    int // number of this PUBLISH over all connections, from 1
	Topic    string
	Payload  []byte
	QoS      byte
	Dup      bool
	Retained bool
	At       time.Time
	Acked    bool // a PUBACK was sent
	Kept     bool // a Script that drops before keeping has not received it
}

// ScriptOptions say how a Script behaves. The zero value is a good broker.
type ScriptOptions struct {
	// Play chooses the move for each PUBLISH of quality 1; nil is Pass. It
	// may sleep: that delays the acknowledgement and all that follows on
	// the connection. It is called by one connection at a time.
	Play func(Arrival) Move
	// SessionPresent is the lie in every CONNACK that an old session was found.
	SessionPresent bool
	// Refuse is the return code of every CONNACK; 0 accepts.
	Refuse byte
	// Judge chooses the return code of each CONNACK; nil is Refuse.
	Judge func(Hello) byte
	// Silent never answers a CONNECT.
	Silent bool
	// Greeting is sent as it is after each CONNACK.
	Greeting []byte
	// Suback is the return code of every SUBACK: 0, 1, or 0x80 to refuse.
	Suback byte
	// SubackCodes is how many codes a SUBACK carries; 0 is one.
	SubackCodes int
	// Echo sends a message back on a connection that has subscribed to its topic.
	Echo bool
}

// Hello is what a CONNECT said.
type Hello struct {
	ClientID string
	Username string
	Clean    bool // clean session
	Version  byte // of the protocol: 4 is MQTT 3.1.1
	Password string
}

// Subscription is a topic filter that a client asked for.
type Subscription struct {
	Conn   int // number of the connection, from 1
	After  int // how many PUBLISHes had come on it
	Filter string
	QoS    byte
}

// Script is an MQTT 3.1.1 broker of a few lines that misbehaves on demand
// and keeps what it received. It delivers nothing to others.
type Script struct {
	ln   net.Listener
	opts ScriptOptions

	mu     sync.Mutex
	play   sync.Mutex
	conns  map[net.Conn]struct{}
	kept   []Arrival
	wills  []Arrival
	hellos []Hello
	vows   []Arrival // the will of each CONNECT, without a topic for none
	asked  []Subscription
	count  int
	nconn  int
	clean  int // sessions that ended with DISCONNECT
	closed chan struct{}
	wg     sync.WaitGroup
}

// NewScript serves MQTT on ln, which may be a TLS listener, until Close.
func NewScript(ln net.Listener, o ScriptOptions) *Script {
	s := &Script{ln: ln, opts: o, conns: map[net.Conn]struct{}{}, closed: make(chan struct{})}
	s.wg.Go(s.accept)
	return s
}

// Addr returns host:port.
func (s *Script) Addr() string { return s.ln.Addr().String() }

// Received returns the messages that were kept, in order of arrival.
func (s *Script) Received() []Arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Arrival(nil), s.kept...)
}

// Wills returns the will of every connection that ended without DISCONNECT.
func (s *Script) Wills() []Arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Arrival(nil), s.wills...)
}

// Hellos returns every CONNECT, refused ones too.
func (s *Script) Hellos() []Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Hello(nil), s.hellos...)
}

// Connections returns how many CONNECTs were accepted, and how many
// connections ended with a DISCONNECT.
func (s *Script) Connections() (accepted, clean int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nconn, s.clean
}

// Promises returns the will that each CONNECT named, without a topic for none.
func (s *Script) Promises() []Arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Arrival(nil), s.vows...)
}

// Subscriptions returns every topic filter that was asked for.
func (s *Script) Subscriptions() []Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Subscription(nil), s.asked...)
}

// Say sends a message of quality 0 to every open connection.
func (s *Script) Say(topic string, retained bool, body []byte) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Retain, p.Payload = topic, retained, body
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		p.Write(c)
	}
}

// Cut closes every open connection.
func (s *Script) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Close closes listener and connections and waits until all has ended.
func (s *Script) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	err := s.ln.Close()
	s.Cut()
	s.wg.Wait()
	return err
}

func (s *Script) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		select {
		case <-s.closed:
			c.Close()
		default:
			s.conns[c] = struct{}{}
		}
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serve(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// errLeave ends a connection on purpose.
var errLeave = errors.New("sim: the script closes the connection")

func (s *Script) serve(c net.Conn) {
	first, err := packets.ReadPacket(c)
	if err != nil {
		return
	}
	hello, ok := first.(*packets.ConnectPacket)
	if !ok {
		return
	}
	said := Hello{hello.ClientIdentifier, hello.Username, hello.CleanSession, hello.ProtocolVersion, string(hello.Password)}
	s.mu.Lock()
	s.hellos = append(s.hellos, said)
	s.vows = append(s.vows, Arrival{Topic: hello.WillTopic, Payload: hello.WillMessage, QoS: hello.WillQos, Retained: hello.WillRetain, At: time.Now()})
	s.mu.Unlock()
	if s.opts.Silent {
		io.Copy(io.Discard, c)
		return
	}
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.ReturnCode = s.opts.Refuse
	if s.opts.Judge != nil {
		ack.ReturnCode = s.opts.Judge(said)
	}
	ack.SessionPresent = s.opts.SessionPresent && ack.ReturnCode == 0
	if ack.Write(c) != nil || ack.ReturnCode != 0 {
		return
	}
	s.mu.Lock()
	s.nconn++
	conn := s.nconn
	s.mu.Unlock()
	if len(s.opts.Greeting) > 0 {
		c.Write(s.opts.Greeting)
	}
	topics := map[string]bool{}
	n := 0
	for err == nil {
		var p packets.ControlPacket
		if p, err = packets.ReadPacket(c); err != nil {
			break
		}
		switch p := p.(type) {
		case *packets.PublishPacket:
			n++
			err = s.publish(c, conn, n, p, topics)
		case *packets.SubscribePacket:
			s.mu.Lock()
			for i, t := range p.Topics {
				topics[t] = s.opts.Suback != 0x80
				s.asked = append(s.asked, Subscription{conn, n, t, p.Qoss[i]})
			}
			s.mu.Unlock()
			a := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			a.MessageID = p.MessageID
			for range max(1, s.opts.SubackCodes) {
				a.ReturnCodes = append(a.ReturnCodes, s.opts.Suback)
			}
			err = a.Write(c)
		case *packets.UnsubscribePacket:
			a := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
			a.MessageID = p.MessageID
			err = a.Write(c)
		case *packets.PingreqPacket:
			err = packets.NewControlPacket(packets.Pingresp).Write(c)
		case *packets.DisconnectPacket:
			s.mu.Lock()
			s.clean++
			s.mu.Unlock()
			return
		}
	}
	if hello.WillFlag {
		s.mu.Lock()
		s.wills = append(s.wills, Arrival{Conn: conn, Topic: hello.WillTopic,
			Payload: hello.WillMessage, QoS: hello.WillQos, Retained: hello.WillRetain, At: time.Now()})
		s.mu.Unlock()
	}
}

// publish plays one PUBLISH. An error ends the connection.
func (s *Script) publish(c net.Conn, conn, n int, p *packets.PublishPacket, topics map[string]bool) error {
	s.mu.Lock()
	s.count++
	a := Arrival{Conn: conn, N: n, Total: s.count, Topic: p.TopicName, Payload: p.Payload,
		QoS: p.Qos, Dup: p.Dup, Retained: p.Retain, At: time.Now()}
	s.mu.Unlock()
	move := Pass
	if p.Qos == 1 && s.opts.Play != nil {
		s.play.Lock()
		move = s.opts.Play(a)
		s.play.Unlock()
	}
	if move == DropBefore {
		return errLeave
	}
	a.Kept = true
	a.Acked = p.Qos == 1 && (move == Pass || move == DropAfter || move == Twice || move == Stranger || move == Oversize)
	s.mu.Lock()
	s.kept = append(s.kept, a)
	s.mu.Unlock()
	if s.opts.Echo && topics[p.TopicName] {
		echo := p.Copy()
		if err := echo.Write(c); err != nil {
			return err
		}
	}
	if p.Qos != 1 {
		return nil
	}
	switch move {
	case DropUnread:
		return errLeave
	case Stall:
		<-s.closed
		return errLeave
	case WrongAck:
		id := binary.BigEndian.AppendUint16(nil, p.MessageID)
		c.Write([]byte{0x90, 3, id[0], id[1], 0})
		c.Write([]byte{0xB0, 2, id[0], id[1]})
		c.Write([]byte{0x70, 2, id[0], id[1]})
		time.Sleep(20 * time.Millisecond) // let it be read before the reset
		return errLeave
	case Stranger:
		if err := puback(c, 60001, 60002); err != nil {
			return err
		}
	case Early:
		for i := range uint16(16) {
			if err := puback(c, p.MessageID+1+i); err != nil {
				return err
			}
		}
	case Oversize:
		if _, err := c.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}); err != nil {
			return err
		}
	}
	if !a.Acked {
		return nil
	}
	ids := []uint16{p.MessageID}
	if move == Twice {
		ids = append(ids, p.MessageID)
	}
	if err := puback(c, ids...); err != nil {
		return err
	}
	if move == DropAfter {
		return errLeave
	}
	return nil
}

func puback(w io.Writer, ids ...uint16) error {
	for _, id := range ids {
		a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		a.MessageID = id
		if err := a.Write(w); err != nil {
			return fmt.Errorf("sim: puback: %w", err)
		}
	}
	return nil
}
