package uplink

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// TestAppendPublish: the body that the connection puts in is what a reader of
// MQTT finds, at every size at which the length grows by a byte.
func TestAppendPublish(t *testing.T) {
	for _, qos := range []byte{0, 1} {
		for _, size := range []int{0, 1, 100, 127 - 4 - 2, 128, 16383 - 4 - 2, 16384, 2097151 - 4 - 2, 2097152} {
			p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			p.Qos, p.Retain, p.TopicName, p.Payload = qos, size%2 == 0, "up", make([]byte, tagSize)
			if qos > 0 {
				p.MessageID = 515
			}
			var bare bytes.Buffer
			if err := p.Write(&bare); err != nil {
				t.Fatal(err)
			}
			body := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
			whole := bytes.NewReader(appendPublish([]byte("before"), bare.Bytes(), body)[6:])
			got, err := packets.ReadPacket(whole)
			if err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			q, ok := got.(*packets.PublishPacket)
			if !ok || q.Qos != qos || q.Retain != p.Retain || q.TopicName != "up" || q.MessageID != p.MessageID || !bytes.Equal(q.Payload, body) || whole.Len() > 0 {
				t.Errorf("quality %d, %d bytes: got %v with %d bytes, %d left over", qos, size, got, len(q.Payload), whole.Len())
			}
		}
	}
}

// TestCarry: each PUBLISH has its own body, also when the library never wrote
// one before it, and what comes without a tag stays as it is.
func TestCarry(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	w := newWire(ours, &rawConn{Conn: ours, meter: &meter{}, limit: time.Second}, broker{})
	defer w.Close()
	come := make(chan *packets.PublishPacket)
	go func() {
		for {
			p, err := packets.ReadPacket(theirs)
			if err != nil {
				close(come)
				return
			}
			come <- p.(*packets.PublishPacket)
		}
	}()
	write := func(qos byte, payload []byte) {
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.Qos, p.TopicName, p.MessageID, p.Payload = qos, "up", 7, payload
		if err := p.Write(w); err != nil {
			t.Fatal(err)
		}
	}
	w.carry([]byte("refused by the library"))
	second, third := w.carry([]byte("second")), w.carry([]byte("third"))
	write(0, third)
	write(1, second)
	write(1, []byte("as it is: {}"))
	write(1, w.carry(nil))
	for _, want := range []string{"third", "second", "as it is: {}", ""} {
		if p := <-come; p == nil || string(p.Payload) != want {
			t.Errorf("got %v, want %q", p, want)
		}
	}
}
