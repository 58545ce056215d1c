package sim

import (
	"net"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// post hands messages from publishers to subscribers: what a broker does
// behind its door. Quality 1 is acknowledged after the message was taken and
// queued for everybody who is there; quality 2 is refused by closing.
type post struct {
	took func(topic string, payload []byte)

	mu       sync.Mutex
	retained map[string][]byte
	members  map[*member]struct{}
}

// member is one connected client.
type member struct {
	id   string
	conn net.Conn
	out  chan packets.ControlPacket

	// guarded by post.mu
	filters map[string]byte // subscribed, and the quality granted
	next    uint16          // message number of the next delivery
}

// postBacklog is how many packets may wait for a reader. One that reads
// slower is thrown out: a broker without memory cannot wait for it.
const postBacklog = 4096

// serve is the life of one connection. It returns when the connection has
// ended and everything it started has, too.
func (p *post) serve(c net.Conn) {
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	first, err := packets.ReadPacket(c)
	if err != nil {
		return
	}
	hello, ok := first.(*packets.ConnectPacket)
	if !ok {
		return
	}
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.ReturnCode = hello.Validate()
	if ack.Write(c) != nil || ack.ReturnCode != packets.Accepted {
		return
	}
	m := &member{id: hello.ClientIdentifier, conn: c, out: make(chan packets.ControlPacket, postBacklog), filters: map[string]byte{}}
	p.join(m)
	var wg sync.WaitGroup
	wg.Go(func() { m.write() })
	clean := p.listen(m, time.Duration(hello.Keepalive)*time.Second*3/2)
	p.leave(m)
	close(m.out)
	c.Close()
	wg.Wait()
	if hello.WillFlag && !clean {
		p.publish(hello.WillTopic, hello.WillMessage, hello.WillQos, hello.WillRetain)
	}
}

// write sends what is queued. After an error it only empties the queue.
func (m *member) write() {
	var err error
	for packet := range m.out {
		if err != nil {
			continue
		}
		m.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if err = packet.Write(m.conn); err != nil {
			m.conn.Close()
		}
	}
}

// listen takes what a client says until it ends; clean tells that it said so.
func (p *post) listen(m *member, silence time.Duration) (clean bool) {
	for {
		var limit time.Time
		if silence > 0 {
			limit = time.Now().Add(silence)
		}
		m.conn.SetReadDeadline(limit)
		packet, err := packets.ReadPacket(m.conn)
		if err != nil {
			return false
		}
		switch packet := packet.(type) {
		case *packets.PublishPacket:
			if packet.Qos > 1 || strings.ContainsAny(packet.TopicName, "+#") || packet.TopicName == "" {
				return false
			}
			p.publish(packet.TopicName, packet.Payload, packet.Qos, packet.Retain)
			if packet.Qos == 1 {
				a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
				a.MessageID = packet.MessageID
				m.send(a)
			}
		case *packets.SubscribePacket:
			p.subscribe(m, packet)
		case *packets.UnsubscribePacket:
			p.mu.Lock()
			for _, t := range packet.Topics {
				delete(m.filters, t)
			}
			p.mu.Unlock()
			a := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
			a.MessageID = packet.MessageID
			m.send(a)
		case *packets.PingreqPacket:
			m.send(packets.NewControlPacket(packets.Pingresp))
		case *packets.PubackPacket:
		case *packets.DisconnectPacket:
			return true
		default:
			return false
		}
	}
}

// send queues a packet; a client that does not read is thrown out.
func (m *member) send(packet packets.ControlPacket) {
	select {
	case m.out <- packet:
	default:
		m.conn.Close()
	}
}

// join lets a client in; whoever had its id is thrown out, as the standard
// demands.
func (p *post) join(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for o := range p.members {
		if o.id == m.id && m.id != "" {
			o.conn.Close()
		}
	}
	p.members[m] = struct{}{}
}

func (p *post) leave(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.members, m)
}

// subscribe grants what is asked, at most quality 1, and sends what was
// retained for it.
func (p *post) subscribe(m *member, s *packets.SubscribePacket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	a.MessageID = s.MessageID
	for i, t := range s.Topics {
		m.filters[t] = min(s.Qoss[i], 1)
		a.ReturnCodes = append(a.ReturnCodes, m.filters[t])
	}
	m.send(a)
	for i, t := range s.Topics {
		for topic, payload := range p.retained {
			if matches(t, topic) {
				m.deliver(topic, payload, min(s.Qoss[i], 1), true)
			}
		}
	}
}

// publish takes a message and queues it for everybody who wants it.
func (p *post) publish(topic string, payload []byte, qos byte, retain bool) {
	p.took(topic, payload)
	p.mu.Lock()
	defer p.mu.Unlock()
	if retain {
		if len(payload) == 0 {
			delete(p.retained, topic)
		} else {
			p.retained[topic] = payload
		}
	}
	for m := range p.members {
		granted, wanted := byte(0), false
		for f, q := range m.filters {
			if matches(f, topic) {
				granted, wanted = max(granted, q), true
			}
		}
		if wanted {
			m.deliver(topic, payload, min(qos, granted), false)
		}
	}
}

// deliver queues one message. The caller holds post.mu.
func (m *member) deliver(topic string, payload []byte, qos byte, retained bool) {
	d := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	d.TopicName, d.Payload, d.Qos, d.Retain = topic, payload, qos, retained
	if qos > 0 {
		if m.next++; m.next == 0 {
			m.next = 1
		}
		d.MessageID = m.next
	}
	m.send(d)
}

// matches says whether a topic filter of MQTT 3.1.1 (4.7) covers a topic.
func matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		switch {
		case !fmore && !tmore:
			return true
		case fmore && !tmore:
			return frest == "#" // the parent level belongs to it
		case !fmore:
			return false
		}
		filter, topic = frest, trest
	}
}
