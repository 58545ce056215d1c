package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// framing says how requests and answers are wrapped on the wire.
type framing uint8

const (
	rtu   framing = iota // unit, PDU, CRC-16
	ascii                // colon, hexadecimal unit, PDU and LRC, CR LF
	mbap                 // seven bytes of header, PDU
)

var errHangup = errors.New("sim: hung up")

// session is one line or connection of a slave. One goroutine reads, the
// caller's does everything else, so that a late answer of one unit does not
// hold up the others.
type session struct {
	s    *Slave
	kind framing
	wire Wire
	w    io.Writer
	conn bool // w is a connection that can be closed
	buf  []byte
	last time.Time          // when the last byte came
	busy map[byte]time.Time // until when a unit thinks
	out  []pending          // in order of due
}

type pending struct {
	due    time.Time
	parts  [][]byte // with pause between them
	pause  time.Duration
	hangup bool
}

type chunk struct {
	b  []byte
	at time.Time
}

func (s *Slave) serve(ctx context.Context, rw io.ReadWriter, k framing, w Wire) error {
	_, conn := rw.(net.Conn)
	ses := &session{s: s, kind: k, wire: w, w: rw, conn: conn, busy: map[byte]time.Time{}}
	in, end := readAll(ctx, rw)
	err := ses.run(ctx, in)
	if rerr := end(); err == nil {
		err = rerr
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errHangup) || ctx.Err() != nil {
		return nil
	}
	return err
}

// converse speaks on rw, and answers what is read from it, until ctx ends, the other side has
// gone or writing fails.
func converse(ctx context.Context, rw io.ReadWriter, answer func(context.Context, io.Writer, <-chan chunk) error) error {
	in, end := readAll(ctx, rw)
	err := answer(ctx, rw, in)
	if rerr := end(); err == nil {
		err = rerr
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return err
}

// readAll reads in a goroutine of its own until ctx ends, end is called or
// reading fails; end waits for it and returns why it ended. A pty that nobody
// has open gives EIO: that is a wait, not an end.
func readAll(ctx context.Context, r io.Reader) (in <-chan chunk, end func() error) {
	ctx, cancel := context.WithCancel(ctx)
	c := make(chan chunk, 64)
	var rerr error
	alone := false
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		unblock(r)
	})
	wg.Go(func() {
		defer close(c)
		for {
			b := make([]byte, 512)
			n, err := r.Read(b)
			if n > 0 {
				select {
				case c <- chunk{b[:n], time.Now()}:
				case <-ctx.Done():
					return
				}
			}
			switch {
			case err == nil:
				alone = false
			case errors.Is(err, syscall.EIO) && sleep(ctx, 5*time.Millisecond):
				if !alone {
					forget(r)
				}
				alone = true
			default:
				rerr = err
				return
			}
		}
	})
	return c, func() error {
		cancel()
		wg.Wait()
		reblock(r)
		return rerr
	}
}

type deadliner interface{ SetReadDeadline(time.Time) error }

// unblock ends a Read under way, without closing where that can be done.
func unblock(r io.Reader) {
	if d, ok := r.(deadliner); ok && d.SetReadDeadline(time.Unix(1, 0)) == nil {
		return
	}
	if c, ok := r.(io.Closer); ok {
		c.Close()
	}
}

func reblock(r io.Reader) {
	if d, ok := r.(deadliner); ok {
		// A closed file has no deadline to take back.
		_ = d.SetReadDeadline(time.Time{})
	}
}

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// gap is the silence after which an unfinished frame is thrown away. It is
// longer than 3.5 characters because a pty and a loaded machine add pauses.
func (e *session) gap() time.Duration {
	return max(20*time.Millisecond, 4*e.wire.char())
}

func (e *session) run(ctx context.Context, in <-chan chunk) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		for len(e.out) > 0 && !e.out[0].due.After(now) {
			p := e.out[0]
			e.out = e.out[1:]
			if p.hangup {
				return errHangup
			}
			if err := e.send(ctx, p); err != nil {
				return err
			}
			now = time.Now()
		}
		wait := time.Hour
		if len(e.out) > 0 {
			wait = e.out[0].due.Sub(now)
		}
		if len(e.buf) > 0 {
			wait = min(wait, e.last.Add(e.gap()).Sub(now))
		}
		timer.Reset(max(wait, 0))
		select {
		case c, ok := <-in:
			if !ok {
				return nil
			}
			if e.wire.deaf(e.w) {
				garble(c.b)
			}
			e.buf, e.last = append(e.buf, c.b...), c.at
			if err := e.scan(false); err != nil {
				return err
			}
		case now := <-timer.C:
			if len(e.buf) > 0 && now.Sub(e.last) >= e.gap() && len(in) == 0 {
				if err := e.scan(true); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// scan cuts requests out of the bytes that came. With silence set, the line
// has been quiet: what is left over is no frame.
func (e *session) scan(silence bool) error {
	for len(e.buf) > 0 {
		var n int
		var unit byte
		var pdu []byte
		switch e.kind {
		case rtu:
			n, unit, pdu = cutRTU(e.buf, silence)
		case ascii:
			n, unit, pdu = cutASCII(e.buf)
		case mbap:
			var err error
			if n, unit, pdu, err = cutMBAP(e.buf); err != nil {
				e.s.damaged()
				return err
			}
		}
		if n == 0 {
			if silence && e.kind == rtu {
				e.s.damaged()
				e.buf = nil
			}
			return nil
		}
		raw := e.buf[:n:n]
		e.buf = e.buf[n:]
		if pdu == nil {
			e.s.damaged()
			continue
		}
		e.handle(raw, unit, pdu)
	}
	return nil
}

// cutRTU returns the length of the request at the start of b, 0 while there
// is none. Lengths follow from the function; a frame of an unknown function
// ends with silence.
func cutRTU(b []byte, silence bool) (n int, unit byte, pdu []byte) {
	if len(b) < 4 {
		return 0, 0, nil
	}
	n = lengthOf(b)
	// The quiet line may also have ended a frame of another length than the
	// function has: the unit then refuses it.
	whole := n
	if silence {
		whole = len(b)
	}
	for _, n := range []int{n, whole} {
		if n >= 4 && n <= len(b) && n <= 256 &&
			binary.LittleEndian.Uint16(b[n-2:]) == crc16(b[:n-2]) {
			return n, b[0], b[1 : n-2]
		}
	}
	return 0, 0, nil
}

// lengthOf returns how long the request that begins with b is by its
// function, 0 if that cannot be told.
func lengthOf(b []byte) int {
	switch {
	case b[1] >= 1 && b[1] <= 6:
		return 8
	case b[1] == 22:
		return 10
	case (b[1] == 15 || b[1] == 16) && len(b) > 6:
		return 9 + int(b[6])
	case b[1] == 23 && len(b) > 10:
		return 13 + int(b[10])
	}
	return 0
}

func cutASCII(b []byte) (n int, unit byte, pdu []byte) {
	if b[0] != ':' {
		if i := bytes.IndexByte(b, ':'); i > 0 {
			return i, 0, nil
		}
		return len(b), 0, nil
	}
	end := bytes.Index(b, []byte("\r\n"))
	if end < 0 {
		if len(b) > 600 {
			return len(b), 0, nil
		}
		return 0, 0, nil
	}
	raw := make([]byte, hex.DecodedLen(end-1))
	if _, err := hex.Decode(raw, b[1:end]); err != nil || len(raw) < 3 || lrc(raw) != 0 {
		return end + 2, 0, nil
	}
	return end + 2, raw[0], raw[1 : len(raw)-1]
}

func cutMBAP(b []byte) (n int, unit byte, pdu []byte, err error) {
	if len(b) < 8 {
		return 0, 0, nil, nil
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if b[2] != 0 || b[3] != 0 || length < 2 || length > 254 {
		return 0, 0, nil, errHangup
	}
	if len(b) < 6+length {
		return 0, 0, nil, nil
	}
	return 6 + length, b[6], b[7 : 6+length], nil
}

// handle executes a request and plans its answer.
func (e *session) handle(raw []byte, unit byte, pdu []byte) {
	now := time.Now()
	answer, f, t := e.s.take(e.kind, unit, pdu, now)
	if answer == nil {
		return
	}
	due := e.last
	if char := e.wire.char(); char > 0 {
		due = due.Add(time.Duration(len(raw))*char + 7*char/2)
	}
	if b := e.busy[unit]; b.After(due) {
		due = b
	}
	due = due.Add(t.think)
	if f.Kind == Late {
		due = due.Add(f.Delay)
	}
	p := pending{due: due, parts: [][]byte{e.wrap(raw, unit, answer)}}
	switch f.Kind {
	case Silent:
		return
	case Hangup:
		if !e.conn {
			return
		}
		p.hangup = true
	default:
		e.spoil(&p, f, t.n, raw, unit, answer)
	}
	e.busy[unit] = due
	e.plan(p)
	if f.Kind == Doubled {
		again := p
		again.due = due.Add(f.Delay)
		e.plan(again)
	}
}

func (e *session) plan(p pending) {
	i, _ := slices.BinarySearchFunc(e.out, p, func(a, b pending) int {
		if a.due.After(b.due) {
			return 1
		}
		return -1 // what is due at the same time keeps its order
	})
	e.out = slices.Insert(e.out, i, p)
}

// wrap frames an answer PDU; raw is the request, whose transaction number a
// TCP answer repeats.
func (e *session) wrap(raw []byte, unit byte, pdu []byte) []byte {
	adu := append([]byte{unit}, pdu...)
	switch e.kind {
	case ascii:
		adu = append(adu, lrc(adu))
		return append(append([]byte{':'}, bytes.ToUpper([]byte(hex.EncodeToString(adu)))...), '\r', '\n')
	case mbap:
		head := []byte{raw[0], raw[1], 0, 0, 0, 0}
		binary.BigEndian.PutUint16(head[4:], uint16(len(adu)))
		return append(head, adu...)
	}
	return binary.LittleEndian.AppendUint16(adu, crc16(adu))
}

// spoil makes the fault of the plan in the answer to the n-th request. What
// it picks at random depends on n and the request only, so that a seed of a
// plan repeats to the byte.
func (e *session) spoil(p *pending, f Fault, n int, raw []byte, unit byte, pdu []byte) {
	b := p.parts[0]
	rng := rand.New(rand.NewPCG(uint64(n), uint64(crc16(pdu))))
	noise := func() []byte {
		n := make([]byte, 1+rng.IntN(8))
		for i := range n {
			n[i] = byte(rng.Uint32())
		}
		return n
	}
	switch f.Kind {
	case Garbled:
		i := rng.IntN(len(b))
		if e.kind == mbap {
			i = []int{2, 3, 4, 6, 7}[rng.IntN(5)]
		}
		b[i] ^= byte(1 + rng.IntN(255))
	case Split:
		p.pause = f.Delay
		if p.pause <= 0 {
			p.pause = 5 * time.Millisecond
		}
		p.parts = nil
		for len(b) > 1 && len(p.parts) < 3 {
			n := 1 + rng.IntN(len(b)-1)
			p.parts = append(p.parts, b[:n])
			b = b[n:]
		}
		p.parts = append(p.parts, b)
	case NoiseBefore:
		p.parts = [][]byte{noise(), b}
	case NoiseAfter:
		p.parts = [][]byte{b, noise()}
	case OtherUnit:
		p.parts[0] = e.wrap(raw, unit%247+1, pdu)
	case OtherFunction:
		other := slices.Clone(pdu)
		other[0] = map[byte]byte{1: 2, 2: 1, 3: 4, 4: 3}[pdu[0]&0x7F] | pdu[0]&0x80
		if other[0]&0x7F == 0 {
			other[0] = 3
		}
		p.parts[0] = e.wrap(raw, unit, other)
	case OtherCount:
		if pdu[0] <= 4 && len(pdu) > 2 {
			cut := min(2, len(pdu)-2)
			if pdu[0] <= 2 {
				cut = 1
			}
			other := slices.Clone(pdu[:len(pdu)-cut])
			other[1] -= byte(cut)
			p.parts[0] = e.wrap(raw, unit, other)
		}
	case Echo:
		p.parts = [][]byte{raw, b}
	case WrongID:
		b[1]++
	case Short:
		p.parts[0] = b[:len(b)/2]
	}
}

// send writes the parts of an answer, at the pace of the wire. Nobody at the
// other end of a pty is no error: the bytes are lost, as on a real line.
func (e *session) send(ctx context.Context, p pending) error {
	for i, part := range p.parts {
		if i > 0 && !sleep(ctx, p.pause) {
			return nil
		}
		if e.wire.deaf(e.w) {
			garble(part)
		}
		if err := paced(ctx, &mouth{w: e.w}, part, e.wire.char()); err != nil {
			return err
		}
	}
	return nil
}

// deaf tells whether the other end of a pty has another line setting than
// the devices.
func (w Wire) deaf(line io.Writer) bool {
	f, ok := line.(*os.File)
	if !ok || w.Only == "" {
		return false
	}
	set := ptySetting(f)
	return set != "" && set != strings.Replace(w.Only, " 7", " 8", 1) // a pty has 8 bits
}

// garble makes of bytes what a receiver at another speed makes of them: no
// byte stays what it was.
func garble(b []byte) {
	for i := range b {
		b[i] = b[i]>>3 | b[i]<<5 ^ 0xA5
	}
}

// paced writes b so that each byte arrives when its last bit would.
func paced(ctx context.Context, w io.Writer, b []byte, char time.Duration) error {
	step := len(b)
	if char > 0 {
		step = max(1, int(2*time.Millisecond/char))
	}
	start := time.Now()
	for done := 0; done < len(b); {
		n := min(step, len(b)-done)
		if char > 0 && !sleep(ctx, time.Until(start.Add(time.Duration(done+n)*char))) {
			return nil
		}
		if _, err := w.Write(b[done : done+n]); err != nil {
			return err
		}
		done += n
	}
	return nil
}
