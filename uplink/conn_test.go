package uplink

import (
	"bytes"
	"errors"
	"io"
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

// TestWire: the connection counts bytes, and its guard sees packets in
// whatever pieces they come.
func TestWire(t *testing.T) {
	a, z := net.Pipe()
	raw := &rawConn{Conn: a, meter: &meter{}, limit: time.Second}
	w := newWire(raw, raw, broker{})
	go func() {
		for _, b := range []byte{0x20, 2, 0, 0, 0x40, 2, 0x99, 0x99, 0x40, 2, 0x12, 0x34, 0xd0, 0, 0x30, 0x05, 0, 1, 'a', 'x', 'y', 0x50} {
			z.Write([]byte{b})
		}
	}()
	go io.Copy(io.Discard, z)
	// PUBLISH "a" with number 0x1234
	if _, err := w.Write([]byte{0x32, 5, 0, 1, 'a', 0x12, 0x34}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Second, "written", func() bool { return !w.proofOf(0x1234).written.IsZero() })
	if p := w.proofOf(0x1234); !p.acked.IsZero() {
		t.Errorf("%+v", p)
	}
	n := 0
	buf := make([]byte, 64)
	for {
		k, err := w.Read(buf)
		n += k
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Error(err)
			}
			break
		}
	}
	if n != 21 || raw.meter.out.Load() != 7 || raw.meter.in.Load() != 22 {
		t.Errorf("%d bytes passed, %d out, %d in", n, raw.meter.out.Load(), raw.meter.in.Load())
	}
	if w.proofOf(0x1234).acked.IsZero() {
		t.Error("the PUBACK was not seen")
	}
	if p := w.proofOf(0x9999); !p.acked.IsZero() || !p.written.IsZero() {
		t.Error("a PUBACK for what was never written counts")
	}
	select {
	case <-w.dead:
	default:
		t.Error("the session was not woken")
	}
	z.Close()
}

// publishOf is a PUBLISH of quality 1 to "a" with a body of so many bytes.
func publishOf(id uint16, size int) []byte {
	n := size + 5
	p := []byte{0x32, byte(n&0x7f | 0x80), byte(n>>7&0x7f | 0x80), byte(n >> 14), 0, 1, 'a', byte(id >> 8), byte(id)}
	return append(p, make([]byte, size)...)
}

// TestWireAhead: a PUBLISH is taken while the one before is written, up to a
// bound; packets keep their order; a PUBACK for what has not begun to leave
// proves nothing; and a broken connection takes nothing more.
func TestWireAhead(t *testing.T) {
	a, z := net.Pipe() // a write takes as long as the other end does not read
	raw := &rawConn{Conn: a, meter: &meter{}, limit: 10 * time.Second}
	w := newWire(raw, raw, broker{})
	w.first = true // CONNACK has been
	const size = 20 << 10
	var want []byte
	id := uint16(0)
	for w.unwritten() < ahead {
		id++
		p := publishOf(id, size)
		want = append(want, p...)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if most := ahead + len(want)/int(id); w.unwritten() > most {
		t.Errorf("%d bytes wait, at most %d may", w.unwritten(), most)
	}
	// The first is on its way, or some; the last fits into no piece with them.
	eventually(t, 5*time.Second, "the first is being written", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, begun := w.proof[1]
		return begun
	})
	go z.Write([]byte{0x40, 2, byte(id >> 8), byte(id)})
	if _, err := io.ReadFull(w, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if !w.proofOf(id).acked.IsZero() {
		t.Errorf("a PUBACK before number %d left counts", id)
	}
	// Above the bound, and with a ping: written when Write returns.
	over := publishOf(id+1, size)
	want = append(append(want, over...), 0xc0, 0)
	done := make(chan error, 2)
	go func() {
		_, err := w.Write(over)
		done <- err
		_, err = w.Write([]byte{0xc0, 0})
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("above the bound a PUBLISH does not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(z, got); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the packets came in another order, or damaged")
	}
	if n := w.unwritten(); n != 0 {
		t.Errorf("%d bytes wait after a ping was written", n)
	}
	for n := uint16(1); n <= id+1; n++ {
		if w.proofOf(n).written.IsZero() {
			t.Errorf("number %d is not taken as written", n)
		}
	}
	// What waits while one is written goes in one piece.
	for n := id + 10; n < id+13; n++ {
		w.Write(publishOf(n, 10))
		eventually(t, 5*time.Second, "the first is being written", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			_, begun := w.proof[id+10]
			return begun
		})
	}
	one := len(publishOf(0, 10))
	for _, want := range []int{one, 2 * one} {
		if n, err := z.Read(got); n != want || err != nil {
			t.Errorf("a piece of %d bytes, %v, want %d", n, err, want)
		}
	}
	// Long messages share their memory; of one long one it is given back with
	// the next short one.
	go w.Write(publishOf(id+20, 4*ahead))
	if _, err := io.CopyN(io.Discard, z, int64(len(publishOf(0, 4*ahead)))); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "it is written", func() bool { return w.unwritten() == 0 })
	w.mu.Lock()
	if cap(w.out) < 4*ahead {
		t.Errorf("room for %d bytes is left after a long message", cap(w.out))
	}
	w.mu.Unlock()
	w.Write(publishOf(id+21, 10))
	if _, err := z.Read(got); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "its memory is given back", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.out) == 0 && cap(w.out) <= 2*ahead
	})
	z.Close()
	w.Write(publishOf(id+2, 10))
	select {
	case <-w.dead:
	case <-time.After(5 * time.Second):
		t.Fatal("a write that fails later is not noticed")
	}
	if _, err := w.Write(publishOf(id+3, 10)); err == nil {
		t.Error("a broken connection takes a PUBLISH")
	}
	if !w.proofOf(id + 2).written.IsZero() {
		t.Error("what could not be written counts as written")
	}
}

// TestWriteLimit: a write that nobody takes ends by itself, whatever the
// kernel does. Saying goodbye may take even less.
func TestWriteLimit(t *testing.T) {
	a, z := net.Pipe()
	defer z.Close()
	defer a.Close()
	raw := &rawConn{Conn: a, meter: &meter{}, limit: 50 * time.Millisecond}
	w := newWire(raw, raw, broker{})
	w.SetDeadline(time.Time{}) // as the MQTT library does after CONNACK
	w.SetWriteDeadline(time.Time{})
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := w.Write([]byte{0xc0, 0}) // a ping
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, errWrite) || !errors.Is(w.cause(), errWrite) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took < 40*time.Millisecond {
			t.Errorf("after %s", took)
		}
	case <-time.After(20 * time.Second):
		t.Error("a ping hangs")
		a.Close()
		<-done
	}
}
