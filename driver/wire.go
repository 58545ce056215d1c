package driver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/goburrow/modbus"
)

// counters are what a line has seen, since it was made.
type counters struct {
	Requests uint64 `json:"requests"`
	Answers  uint64 `json:"answers"`   // right answers and refusals
	Timeouts uint64 `json:"timeouts"`  // requests to which no byte came
	CRC      uint64 `json:"crc"`       // damaged answers
	Stray    uint64 `json:"stray"`     // whole frames that were not the answer
	Echoes   uint64 `json:"echoes"`    // our own requests come back
	Garbage  uint64 `json:"garbage"`   // bytes that belong to no frame
	BytesIn  uint64 `json:"bytes_in"`  // everything received
	BytesOut uint64 `json:"bytes_out"` // everything sent
}

// silent is the least silence that ends what a disturbed line may still say.
const silent = 20 * time.Millisecond

// babble is how long a line may talk without a break before it is given up.
const babble = time.Second

// wire carries one request at a time over a stream and finds its answer.
// Only the owner of the line may use it.
type wire struct {
	kind    kind
	st      stream
	pk      modbus.Packager // checks frames of any unit
	char    time.Duration   // one character, 0 on networks
	gap     time.Duration   // silence between frames
	echoing bool            // the adapter hears itself, as of the last answer
	dirty   bool            // something went wrong: wait for silence first
	last    time.Time       // of the last byte, either way
	id      uint16          // last transaction number; never starts over with a connection
	lo      int             // buf[lo:hi] has come and is not used up
	at      int             // no frame begins in buf[lo:at]
	hi      int
	buf     [1024]byte
	count   counters
	trace   []byte                       // everything received for this request, if not nil
	stray   func(f frame, now time.Time) // told of each whole frame that is not the answer
	result  result                       // of the last request
}

// attach takes a fresh stream into use.
func (w *wire) attach(st stream, now time.Time) {
	w.st, w.lo, w.at, w.hi, w.dirty, w.last = st, 0, 0, 0, true, now
}

// result is what came of a request. It is the wire's, and valid until the next
// one.
type result struct {
	data     []byte
	sent     time.Time // when the request was written
	got      time.Time // when the answer was whole, or the wait ended
	answered bool      // the unit spoke, if only to refuse, or damaged
	echoed   bool      // our own bytes came back
	bytes    int       // received, garbage and all
	torn     bool      // TCP: the stream of frames is out of step
}

// fresh returns the result of a request to come.
func (w *wire) fresh() *result {
	w.result = result{}
	return &w.result
}

// do sends a request and waits for its answer. gap is the silence this unit
// wants before it. Errors wrap ErrTimeout, ErrShort, ErrCRC, ErrMismatch,
// ErrEcho, ErrGone or are an Exception. After ErrGone the stream must be closed.
func (w *wire) do(a *ask, timeout, gap time.Duration) (*result, error) {
	if err := w.settle(max(gap, w.gap)); err != nil {
		return w.fresh(), err
	}
	return w.ask(a, timeout)
}

// wake sends bytes that wake a device. The silence before the request counts
// from when they have left.
func (w *wire) wake(b []byte, gap time.Duration) error {
	if err := w.settle(max(gap, w.gap)); err != nil || len(b) == 0 {
		return err
	}
	now := time.Now()
	length := w.char * time.Duration(len(b))
	if err := w.st.WriteAll(b, now.Add(babble+length)); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	w.count.BytesOut += uint64(len(b))
	w.last = now.Add(length)
	return nil
}

// ask is do on a line that is ready.
func (w *wire) ask(a *ask, timeout time.Duration) (r *result, err error) {
	r = w.fresh()
	if w.kind == kindTCP {
		w.id++
		binary.BigEndian.PutUint16(a.adu, w.id)
	}
	r.sent = time.Now()
	deadline := r.sent.Add(timeout + w.char*time.Duration(len(a.adu)+a.expect))
	w.count.Requests++
	both, _ := w.st.(asker)
	if w.lo < w.hi { // that is looked at first
		both = nil
	}
	if both == nil {
		if err := w.st.WriteAll(a.adu, deadline); err != nil {
			return r, halved(err)
		}
	}
	w.count.BytesOut += uint64(len(a.adu))
	before := w.count
	for quiet, over := false, false; ; {
		data, refused, ok := w.search(a, quiet, r)
		switch {
		case ok && refused != 0:
			w.dirty = true // some devices send the answer after the refusal
			err = refused
			fallthrough
		case ok:
			w.count.Answers++
			r.data, r.answered = data, true
			if !a.mirror {
				w.echoing = r.echoed
			}
			return r, err
		case r.torn:
			return r, fmt.Errorf("%w: the frames on this connection are out of step", ErrMismatch)
		case over:
			r.got = time.Now()
			return r, w.failed(a, r, &before)
		case quiet && w.kind != kindTCP:
			if x, ok := a.bare(w.kind, w.buf[w.lo:w.hi]); ok {
				w.use(0, 3)
				w.dirty = true
				w.count.Answers++
				r.answered = true
				return r, x
			}
			if full, _ := a.damage(w.kind, w.buf[w.lo:w.hi]); full {
				return r, w.failed(a, r, &before)
			}
		}
		until := deadline
		if w.lo < w.hi && !quiet {
			if q := w.last.Add(max(silent, w.char*7/2)); q.Before(until) {
				until = q
			}
		}
		var n int
		var err error
		if both != nil {
			n, err = w.took(both.Ask(a.adu, w.room(), until))
			both = nil
		} else {
			n, err = w.read(until)
		}
		r.got = w.last
		r.bytes += n
		quiet = n == 0
		switch {
		case n > 0:
		case !errors.Is(err, ErrTimeout):
			w.dirty = true
			return r, err
		default:
			over = until.Equal(deadline)
		}
	}
}

// halved is the error of a request that could not be written: half of it may
// have left, so the line is of no use.
func halved(err error) error {
	if errors.Is(err, ErrGone) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrGone, err)
}

// search cuts frames until one is the answer.
func (w *wire) search(a *ask, quiet bool, r *result) (data []byte, refused Exception, ok bool) {
	for w.at < w.hi {
		b := w.buf[w.at:w.hi]
		f, skip, n := cut(w.kind, w.pk, b, quiet)
		if i := w.echo(a, b); i >= 0 && (n == 0 || i <= skip) && (!a.mirror || w.echoing && !r.echoed) {
			w.count.Echoes++
			r.echoed = true
			w.use(i, len(a.adu))
			continue
		}
		if n == 0 {
			w.pass(skip, quiet)
			return nil, 0, false
		}
		w.use(skip, n)
		if w.kind != kindTCP || b[skip] == a.adu[0] && b[skip+1] == a.adu[1] {
			if data, refused, ok = a.answer(f); ok {
				w.behind(r)
				return data, refused, !r.torn
			}
		}
		w.count.Stray++
		if w.stray != nil {
			w.stray(f, w.last)
		}
	}
	return nil, 0, false
}

// behind looks at what has come behind the answer. Elsewhere it is late,
// foreign or garbage. On TCP, where nothing checks the content, it must be
// the beginning of a frame; if it is not, bytes are missing or too many, and
// the answer may have been completed with bytes of another.
func (w *wire) behind(r *result) {
	switch {
	case w.lo == w.hi:
	case w.kind != kindTCP:
		w.dirty = true
	default:
		_, n, more := headTCP(w.buf[w.lo:w.hi])
		r.torn = n == 0 && !more
	}
}

// echo returns where our own request stands in b, or -1: some adapters hear
// themselves. It is looked for before answers are, because a request can
// look like one.
func (w *wire) echo(a *ask, b []byte) int {
	if len(b) < len(a.adu) {
		return -1
	}
	return bytes.Index(b, a.adu)
}

// settle makes the line ready for a request: silent for gap, and after a
// disturbance silent for longer. Whole frames heard meanwhile are told to
// stray, the rest is thrown away. On TCP nothing is needed: answers are told
// apart by their number.
func (w *wire) settle(gap time.Duration) error {
	if w.kind == kindTCP {
		w.use(0, 0) // of the last answer only what may become a frame is kept
		w.compact()
		if gap > 0 {
			time.Sleep(time.Until(w.last.Add(gap)))
		}
		return nil
	}
	w.compact()
	now := time.Now()
	limit := now.Add(babble)
	if w.dirty {
		gap = max(gap, silent)
		w.last = now
	}
	for {
		n, err := w.read(w.last.Add(gap))
		if n == 0 && !errors.Is(err, ErrTimeout) {
			return err
		}
		quiet := n == 0
		w.strays(quiet)
		if quiet {
			break
		}
		gap = max(gap, silent) // nobody should have spoken
		if w.last.After(limit) {
			w.dirty = true
			return fmt.Errorf("%w: the line does not fall silent", ErrMismatch)
		}
	}
	w.count.Garbage += uint64(w.hi - w.lo)
	w.lo, w.at, w.hi, w.dirty = 0, 0, 0, false
	return nil
}

// hear listens to what nobody asked for, until a frame has come or the time
// is over: a late answer is noticed when it comes and not when the next
// request is due. Not for TCP.
func (w *wire) hear(until time.Time) error {
	for heard := w.count.Stray; w.count.Stray == heard; {
		n, err := w.read(until)
		if n > 0 {
			w.dirty = true
			w.strays(false)
			continue
		}
		w.strays(true)
		if errors.Is(err, ErrTimeout) {
			return nil
		}
		return err
	}
	return nil
}

// strays takes whole frames out of the buffer that nobody waits for.
func (w *wire) strays(quiet bool) {
	for w.at < w.hi {
		f, skip, n := cut(w.kind, w.pk, w.buf[w.at:w.hi], quiet)
		if n == 0 {
			w.pass(skip, quiet)
			return
		}
		w.use(skip, n)
		w.count.Stray++
		if w.stray != nil {
			w.stray(f, w.last)
		}
	}
}

// use takes skip bytes of garbage and a frame of n bytes out of the buffer.
func (w *wire) use(skip, n int) {
	w.count.Garbage += uint64(w.at - w.lo + skip)
	w.at += skip + n
	w.lo = w.at
}

// pass notes that no frame begins in the next bytes, so that noise is looked
// at once. What was passed over only because the line is quiet may still
// become whole.
func (w *wire) pass(skip int, quiet bool) {
	if !quiet {
		w.at += skip
	}
}

// compact moves what is not used up to the front. The data of the last
// answer is overwritten.
func (w *wire) compact() {
	w.hi = copy(w.buf[:], w.buf[w.lo:w.hi])
	w.lo, w.at = 0, w.at-w.lo
}

// read takes what comes until the deadline into the buffer.
func (w *wire) read(until time.Time) (int, error) {
	return w.took(w.st.ReadSome(w.room(), until))
}

// room is where what comes next belongs.
func (w *wire) room() []byte {
	if w.hi == len(w.buf) {
		w.compact()
		if w.hi == len(w.buf) { // nothing but garbage is that long
			w.at = max(w.at, len(w.buf)/2)
			w.use(0, 0)
			w.compact()
		}
	}
	return w.buf[w.hi:]
}

// took takes note of what has come into the room.
func (w *wire) took(n int, err error) (int, error) {
	if n == 0 {
		return 0, err
	}
	if w.trace != nil {
		w.trace = append(w.trace, w.buf[w.hi:w.hi+n]...)
	}
	w.hi += n
	w.count.BytesIn += uint64(n)
	w.last = time.Now()
	return n, nil
}

// failed says why there is no answer, from what has come.
func (w *wire) failed(a *ask, r *result, before *counters) error {
	w.dirty = true
	full, part := a.damage(w.kind, w.buf[w.lo:w.hi])
	switch {
	case full:
		w.count.CRC++
		r.answered = true
		return ErrCRC
	case part:
		r.answered = w.kind != kindTCP
		return ErrShort
	case w.count.Stray > before.Stray:
		return ErrMismatch
	case r.bytes == 0:
		w.count.Timeouts++
		return ErrTimeout
	case w.lo == w.hi && w.count.Echoes > before.Echoes && w.count.Garbage == before.Garbage:
		return ErrEcho
	case r.bytes < 4:
		return ErrShort
	}
	w.count.CRC++
	return ErrCRC
}
