// Package history keeps what a buffer promised over many starts, and checks
// at every start that it was kept.
//
// A writer process says on its standard output what it is about to do and
// what has happened, one line each. The rig reads the lines, and when the
// writer is killed or its disk loses power, the lines are the witness.
package history

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"

	"tidegate/buffer"
)

// The kinds of lines.
const (
	KindOpened = 'O' // the buffer is open: epoch, boot, milliseconds
	KindHeld   = 'H' // found at start: a batch
	KindLedger = 'L' // found at start: a loss
	KindReady  = 'E' // the end of what was found: last number given in each lane, bytes of all files, cap, quarantined
	KindIntent = 'W' // about to be appended: a batch without its number
	KindGiven  = 'A' // Append gave a number: lane, number, 1 if it is durable
	KindStored = 'S' // everything up to a number is durable: lane, number
	KindSent   = 'N' // seen by the receiver: lane, number, sum
	KindAcked  = 'K' // seen by the receiver and about to be acknowledged: lane, number, sum
	KindAside  = 'D' // about to be set aside: lane, number
	KindTold   = 'T' // seen by the receiver: a loss
	KindEnding = 'Z' // about to be closed
	KindClosed = 'C' // Close returned without error
	KindError  = 'X' // something failed: free text
	KindNote   = 'I' // something that is worth counting: one word
)

// Batch is what is remembered of a batch.
type Batch struct {
	Lane     buffer.Lane
	Seq      uint64
	Sum      uint64 // of the bytes; SHA-256, so that it owes nothing to the checksums of the buffer
	Count    int
	From, To int64
}

// Sum is the sum of the bytes of a batch.
func Sum(b []byte) uint64 {
	h := sha256.Sum256(b)
	return binary.BigEndian.Uint64(h[:])
}

// Pen writes lines. Each is one write, so a killed writer leaves whole lines
// but for the last. Safe for concurrent use.
type Pen struct {
	mu sync.Mutex
	w  io.Writer
}

// NewPen returns a pen that writes to w.
func NewPen(w io.Writer) *Pen { return &Pen{w: w} }

func (p *Pen) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A reader that is gone is noticed by the writer's death, not here.
	_, _ = fmt.Fprintf(p.w, format+"\n", args...)
}

// Opened says that the buffer is open after ms milliseconds.
func (p *Pen) Opened(q *buffer.Queue, ms int64) {
	p.line("%c %s %d %d %s", KindOpened, q.Epoch(), q.Boot(), ms, q.Stopped())
}

// Held says that a batch was found at start.
func (p *Pen) Held(it buffer.Item) { p.batch(KindHeld, it) }

// Intent says that a batch is about to be appended.
func (p *Pen) Intent(l buffer.Lane, b buffer.Batch) {
	p.batch(KindIntent, buffer.Item{Lane: l, Batch: b})
}

func (p *Pen) batch(kind rune, it buffer.Item) {
	p.line("%c %d %d %x %d %d %d", kind, it.Lane, it.Seq, Sum(it.Bytes), it.Count, it.From, it.To)
}

// Ledger says that a loss was found at start.
func (p *Pen) Ledger(l buffer.Loss) { p.loss(KindLedger, l) }

// Told says that the receiver has seen a loss.
func (p *Pen) Told(l buffer.Loss) { p.loss(KindTold, l) }

func (p *Pen) loss(kind rune, l buffer.Loss) {
	p.line("%c %d %d %d %d %d %s", kind, l.Lane, l.From, l.To, l.Batches, l.Readings, l.Why)
}

// Ready ends what was found at start. used is the sum of all files.
func (p *Pen) Ready(q *buffer.Queue, used int64) {
	s := q.Stats()
	p.line("%c %d %d %d %d %d %d", KindReady, q.Given(buffer.Data), q.Given(buffer.Event), used, s.Limit, s.Quarantined, s.Salvaged)
}

// Given says that Append gave a number.
func (p *Pen) Given(l buffer.Lane, seq uint64, durable bool) {
	d := 0
	if durable {
		d = 1
	}
	p.line("%c %d %d %d", KindGiven, l, seq, d)
}

// Stored says that all numbers up to seq are durable.
func (p *Pen) Stored(l buffer.Lane, seq uint64) { p.line("%c %d %d", KindStored, l, seq) }

// Sent says that the receiver has seen a batch.
func (p *Pen) Sent(it buffer.Item) {
	p.line("%c %d %d %x", KindSent, it.Lane, it.Seq, Sum(it.Bytes))
}

// Acked says that the receiver has seen a batch and that it is going to be
// acknowledged.
func (p *Pen) Acked(it buffer.Item) {
	p.line("%c %d %d %x", KindAcked, it.Lane, it.Seq, Sum(it.Bytes))
}

// Aside says that a batch is going to be set aside.
func (p *Pen) Aside(l buffer.Lane, seq uint64) { p.line("%c %d %d", KindAside, l, seq) }

// Ending says that Close is about to be called.
func (p *Pen) Ending() { p.line("%c", KindEnding) }

// Closed says that Close returned without error.
func (p *Pen) Closed() { p.line("%c", KindClosed) }

// Error says that something failed.
func (p *Pen) Error(what string, err error) {
	p.line("%c %s: %s", KindError, what, strings.ReplaceAll(err.Error(), "\n", " "))
}

// Note counts something.
func (p *Pen) Note(word string) { p.line("%c %s", KindNote, word) }

// Read hands the lines of a writer to fn until the writer is gone. The line
// that its death cut short is left out.
func Read(r io.Reader, fn func(line string)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		fn(line[:len(line)-1])
	}
}

// Found returns the batch that a line says was found at start.
func Found(line string) (Batch, bool) {
	if line == "" || line[0] != KindHeld {
		return Batch{}, false
	}
	b, err := parseBatch(line)
	return b, err == nil
}

func parseBatch(line string) (b Batch, err error) {
	var kind string
	_, err = fmt.Sscanf(line, "%s %d %d %x %d %d %d", &kind, &b.Lane, &b.Seq, &b.Sum, &b.Count, &b.From, &b.To)
	return b, err
}

func parseLoss(line string) (l buffer.Loss, err error) {
	var kind string
	_, err = fmt.Sscanf(line, "%s %d %d %d %d %d %s", &kind, &l.Lane, &l.From, &l.To, &l.Batches, &l.Readings, &l.Why)
	return l, err
}
