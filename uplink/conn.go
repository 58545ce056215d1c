package uplink

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tidegate/internal/tcp"
)

// maxIncoming is the largest packet a broker may send us. Five bytes of
// header are enough to announce 256 MB, and the MQTT library allocates what
// is announced.
const maxIncoming = 256 << 10

// tcpUserTimeout is TCP_USER_TIMEOUT of tcp(7); package syscall does not
// have it on every architecture.
const tcpUserTimeout = 18

// meter counts the bytes on the wire, TLS included: what the data plan sees.
type meter struct{ in, out atomic.Int64 }

// rawConn is the TCP connection. Every write has a deadline: the MQTT
// library sets none for pings, and a dead link would hold it for ever.
type rawConn struct {
	net.Conn
	meter   *meter
	limit   time.Duration
	closing atomic.Bool // a write may only take lastWord now
}

const (
	lastWord   = 200 * time.Millisecond
	writeChunk = 17 << 10 // so many bytes may take the limit: a whole record of TLS
)

func (c *rawConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.meter.in.Add(int64(n))
	return n, err
}

func (c *rawConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		limit := c.limit
		if c.closing.Load() {
			limit = lastWord
		}
		if err = c.Conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
			return n, err
		}
		k := 0
		k, err = c.Conn.Write(p[:min(len(p), writeChunk)])
		n += k
		p = p[k:]
	}
	c.meter.out.Add(int64(n))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", errWrite, err)
	}
	return n, err
}

// SetWriteDeadline does nothing: Write has its own.
func (c *rawConn) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline sets the read deadline only.
func (c *rawConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// openTCP dials. The context and the limit bound it.
func openTCP(ctx context.Context, addr string, timeout, write time.Duration, m *meter) (*rawConn, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: -1, // MQTT has its own keep-alive
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(write.Milliseconds()))
			}); e != nil {
				return e
			}
			return err
		}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	s, err := tcp.New(c.(*net.TCPConn))
	if err != nil {
		c.Close()
		return nil, err
	}
	return &rawConn{Conn: s, meter: m, limit: write}, nil
}

// openTLS makes the handshake on a TCP connection. The connection is closed
// when it fails.
func openTLS(ctx context.Context, raw *rawConn, c *tls.Config, timeout time.Duration) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	t := tls.Client(raw, c)
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return t, nil
}

// wire is the connection as the MQTT library sees it. It looks at every
// packet on its way: what no broker may send ends the connection before the
// library sees it, and it keeps the proof of delivery, which PUBLISH was
// written and which PUBACK came for it on this very connection.
//
// It takes a PUBLISH at once and writes it by itself, several in one piece
// if they wait: while one is written the session makes the next.
type wire struct {
	net.Conn // TCP, TLS or WebSocket
	raw      *rawConn
	broker   broker
	r        *bufio.Reader
	most     int // largest packet that the peer may send

	// of the reader's goroutine
	first   bool // CONNACK has been seen
	step    readStep
	kind    byte
	length  int // remaining length so far
	shift   uint
	left    int     // bytes of the body to come
	id      [2]byte // message number of a PUBACK
	idBytes int

	notify chan struct{} // 1-buffered: something was written or acknowledged

	writing sync.Mutex // held while a piece is written

	mu     sync.Mutex
	out    []byte            // packets that are not written, one behind the other
	ends   []packet          // where they end
	gone   uint64            // bytes of packets that left out
	bodies map[uint64][]byte // of PUBLISH packets, by the tag that the library writes in their place
	tag    uint64            // the last one
	writer bool              // a goroutine writes what is in out
	broken error             // of a write: nothing more is written
	proof  map[uint16]proof
	err    error
	dead   chan struct{} // closed with the first error
	closed bool
}

// packet is one that waits to be written.
type packet struct {
	end int    // in wire.out
	id  uint16 // of a PUBLISH of quality 1, else 0
}

// ahead is how many bytes may wait to be written: enough to make the next
// messages meanwhile. What is under way as a whole is bounded by the window.
const ahead = 64 << 10

// proof is what is known of one PUBLISH of quality 1, from the moment on in
// which its writing begins.
type proof struct {
	written time.Time // zero while it is being written
	acked   time.Time // zero before the PUBACK
}

type readStep uint8

const (
	readHeader readStep = iota
	readLength
	readBody
)

func newWire(c net.Conn, raw *rawConn, b broker) *wire {
	return &wire{Conn: c, raw: raw, broker: b, r: bufio.NewReaderSize(c, 4<<10), most: maxIncoming, notify: make(chan struct{}, 1),
		proof: map[uint16]proof{}, bodies: map[uint64][]byte{}, dead: make(chan struct{})}
}

// fail keeps the first error and wakes the session.
func (w *wire) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && !w.closed {
		w.err = err
		close(w.dead)
	}
	return err
}

// lose takes note that the client gave the connection up, and closed it.
func (w *wire) lose(err error) {
	if err == nil || err.Error() == "pingresp not received, disconnecting" {
		err = errPing
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		close(w.dead)
	}
}

// cause returns the first error of the connection, nil while it lives.
func (w *wire) cause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// abort closes at once, without a word to the peer.
func (w *wire) abort() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.raw.Close()
}

// Close says goodbye in TLS if that is quick, and closes.
func (w *wire) Close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.raw.closing.Store(true)
	return w.Conn.Close()
}

// SetDeadline bounds reading only: writing has its own limit.
func (w *wire) SetDeadline(t time.Time) error { return w.raw.SetReadDeadline(t) }

// SetWriteDeadline does nothing: the MQTT library takes its deadline away
// after each PUBLISH, and pings would have none.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// Read hands over what belongs to the packet under way, and never the last
// byte of a header that announces what we do not want.
func (w *wire) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if w.step != readBody {
		b, err := w.r.ReadByte()
		if err != nil {
			return 0, w.fail(err)
		}
		if err := w.header(b); err != nil {
			w.fail(err) // before closing, which makes errors of its own
			w.raw.Close()
			return 0, err
		}
		p[0] = b
		return 1, nil
	}
	n, err := w.r.Read(p[:min(len(p), w.left)])
	for i := 0; w.kind == pubackType && i < n && w.idBytes < 2; i++ {
		w.id[w.idBytes] = p[i]
		w.idBytes++
	}
	if w.left -= n; w.left == 0 {
		w.finished()
	}
	if err != nil {
		w.fail(err)
	}
	return n, err
}

// The packet types of MQTT 3.1.1 that matter here.
const (
	connectType  = 1
	connackType  = 2
	publishType  = 3
	pubackType   = 4
	subackType   = 9
	unsubackType = 11
	pingrespType = 13
)

// header takes one byte of a fixed header.
func (w *wire) header(b byte) error {
	if w.step == readHeader {
		w.kind, w.length, w.shift, w.idBytes = b>>4, 0, 0, 0
		if w.first == (w.kind == connackType) {
			return fmt.Errorf("%w: packet type %d, first %v", errMalformed, w.kind, !w.first)
		}
		w.first = true
		switch w.kind {
		case connackType, publishType, pubackType, subackType, unsubackType, pingrespType:
		default:
			return fmt.Errorf("%w: packet type %d", errMalformed, w.kind)
		}
		if w.kind == publishType && b>>1&3 > 1 {
			return fmt.Errorf("%w: a message of quality %d, we subscribe with 1", errMalformed, b>>1&3)
		}
		w.step = readLength
		return nil
	}
	w.length |= int(b&0x7f) << w.shift
	w.shift += 7
	if w.length > w.most || w.shift > 28 {
		return fmt.Errorf("%w: packet type %d announces %d bytes or more, limit %d", errMalformed, w.kind, w.length, w.most)
	}
	if b&0x80 != 0 {
		if w.shift == 28 {
			return fmt.Errorf("%w: a length of five bytes", errMalformed)
		}
		return nil
	}
	ok := false
	switch w.kind {
	case connackType, pubackType, unsubackType:
		ok = w.length == 2
	case subackType:
		ok = w.length == 3 // one topic per SUBSCRIBE; more codes make the library panic
	case pingrespType:
		ok = w.length == 0
	case publishType:
		ok = w.length >= 2
	}
	if !ok {
		return fmt.Errorf("%w: packet type %d of %d bytes", errMalformed, w.kind, w.length)
	}
	w.left, w.step = w.length, readBody
	if w.left == 0 {
		w.finished()
	}
	return nil
}

// finished takes note of a whole packet.
func (w *wire) finished() {
	w.step = readHeader
	if w.kind != pubackType {
		return
	}
	id := binary.BigEndian.Uint16(w.id[:])
	w.mu.Lock()
	if p, ok := w.proof[id]; ok && p.acked.IsZero() {
		p.acked = time.Now()
		w.proof[id] = p
	}
	w.mu.Unlock()
	w.wake()
}

func (w *wire) wake() {
	select {
	case w.notify <- struct{}{}:
	default:
	}
}

// Write takes a whole packet: the MQTT library writes each in one piece. A
// PUBLISH or PUBACK is written soon if there is room for it. All else is
// written when Write returns: the library begins to wait for an answer then.
func (w *wire) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	id, _ := publishID(p)
	kind := p[0] >> 4
	w.mu.Lock()
	if err := w.broken; err != nil {
		w.mu.Unlock()
		return 0, err
	}
	soon := (kind == publishType || kind == pubackType) && len(w.out) < ahead
	if tag, tagged := publishTag(p); tagged && w.bodies[tag] != nil {
		w.out = appendPublish(w.out, p, w.bodies[tag])
		delete(w.bodies, tag)
	} else {
		w.out = append(w.out, p...)
	}
	w.ends = append(w.ends, packet{len(w.out), id})
	upto := w.gone + uint64(len(w.out))
	if soon && !w.writer {
		w.writer = true
		go w.drain()
	}
	w.mu.Unlock()
	for !soon && !w.past(upto) {
		if err := w.piece(); err != nil {
			if kind == connectType && peerClosed(err) {
				err = w.lastAlert(err)
			}
			return 0, w.fail(err)
		}
	}
	return len(p), nil
}

// carry keeps body and returns a tag that is given to the library in its
// place: the library would copy it twice, into memory made anew for each
// message. A tag tells which PUBLISH it belongs to, whatever became of those
// before.
func (w *wire) carry(body []byte) []byte {
	if len(body) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tag++
	w.bodies[w.tag] = body
	return binary.BigEndian.AppendUint64(nil, w.tag)
}

const tagSize = 8

// publishTag returns what stands in a PUBLISH where a tag would: in the last
// bytes. No message of ours that comes without a tag looks like one: JSON has
// no zeros.
func publishTag(p []byte) (tag uint64, ok bool) {
	if len(p) < tagSize || p[0]>>4 != publishType {
		return 0, false
	}
	return binary.BigEndian.Uint64(p[len(p)-tagSize:]), true
}

// appendPublish appends a PUBLISH that has a tag, with a body instead.
func appendPublish(dst, p, body []byte) []byte {
	length, n := binary.Uvarint(p[1:]) // MQTT writes lengths as this does
	dst = append(dst, p[0])
	dst = binary.AppendUvarint(dst, length+uint64(len(body))-tagSize)
	return append(append(dst, p[1+n:len(p)-tagSize]...), body...)
}

// drain writes until nothing waits.
func (w *wire) drain() {
	for {
		w.mu.Lock()
		if len(w.out) == 0 {
			w.writer = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		if err := w.piece(); err != nil {
			w.fail(err)
			return
		}
	}
}

// piece writes what waits, but no more than ahead if that is several packets.
func (w *wire) piece() error {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	n, end := 0, 0
	for ; n < len(w.ends) && (n == 0 || w.ends[n].end <= ahead); n++ {
		end = w.ends[n].end
		if id := w.ends[n].id; id != 0 {
			w.proof[id] = proof{}
		}
	}
	out, err := w.out[:end], w.broken // what comes meanwhile is put behind
	w.mu.Unlock()
	if n == 0 || err != nil {
		return err
	}
	_, err = w.Conn.Write(out)
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken = err; err != nil {
		return err
	}
	for _, p := range w.ends[:n] {
		if x, ok := w.proof[p.id]; ok {
			x.written = now
			w.proof[p.id] = x
		}
	}
	w.ends = append(w.ends[:0], w.ends[n:]...)
	for i := range w.ends {
		w.ends[i].end -= end
	}
	w.out = append(w.out[:0], w.out[end:]...)
	if len(w.out) == 0 && cap(w.out) > max(2*ahead, 4*end) { // of one long message, such as the metadata, nothing stays
		w.out = nil
	}
	w.gone += uint64(end)
	w.wake()
	return nil
}

// past tells whether all bytes up to this one are written.
func (w *wire) past(upto uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone >= upto
}

// unwritten is how many bytes wait to be written, or are being written.
func (w *wire) unwritten() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.out)
}

// lastAlert reads what the peer said before it reset the connection. In TLS
// 1.3 it judges our certificate after the handshake, and CONNECT may meet
// the reset before the reason was read. Nobody else reads before CONNACK.
func (w *wire) lastAlert(err error) error {
	w.raw.SetReadDeadline(time.Now().Add(lastWord))
	if _, said := w.Conn.Read(make([]byte, 1)); said != nil && !peerClosed(said) && !isTimeout(said) {
		return said
	}
	return err
}

// publishID returns the message number of a PUBLISH of quality 1.
func publishID(p []byte) (uint16, bool) {
	if len(p) < 2 || p[0]>>4 != publishType || p[0]>>1&3 != 1 {
		return 0, false
	}
	i := 1
	for i < len(p) && p[i]&0x80 != 0 {
		i++
	}
	i++
	if len(p) < i+2 {
		return 0, false
	}
	i += 2 + int(binary.BigEndian.Uint16(p[i:]))
	if len(p) < i+2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(p[i:]), true
}

// proofOf returns what is known of a message number.
func (w *wire) proofOf(id uint16) proof {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.proof[id]
}

// forget drops a message number that is done with.
func (w *wire) forget(id uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.proof, id)
}

var _ io.ReadWriteCloser = (*wire)(nil)
