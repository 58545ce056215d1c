// Package writer is the process that the rigs kill: it works on a buffer as
// a gateway does, and says on a pen what it does and what has happened.
package writer

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"tidegate/bench/history"
	"tidegate/buffer"
)

// Options say what a writer does.
type Options struct {
	Dir     string
	Size    int64
	Segment int64
	MaxLoss time.Duration
	Seed    uint64
	// Commits ends a run after so many commits, in one thread and the same
	// way each time; 0 goes on until something ends the process.
	Commits int
	// Abandon ends a run with commits without Close.
	Abandon bool
	// Stubborn: what fails is not tried again, the run goes on.
	Stubborn bool
	// Look only opens the buffer and says what is there.
	Look bool
}

// Args are the arguments that Main understands.
func (o Options) Args() []string {
	return []string{"-dir", o.Dir, "-size", fmt.Sprint(o.Size), "-segment", fmt.Sprint(o.Segment), "-max-loss", o.MaxLoss.String(),
		"-seed", fmt.Sprint(o.Seed), "-commits", fmt.Sprint(o.Commits), "-abandon=" + fmt.Sprint(o.Abandon), "-stubborn=" + fmt.Sprint(o.Stubborn), "-look=" + fmt.Sprint(o.Look)}
}

// Main is a writer process. It returns its exit code.
func Main(args []string) int {
	var o Options
	f := flag.NewFlagSet("writer", flag.ExitOnError)
	f.StringVar(&o.Dir, "dir", "", "")
	f.Int64Var(&o.Size, "size", 0, "")
	f.Int64Var(&o.Segment, "segment", 0, "")
	f.DurationVar(&o.MaxLoss, "max-loss", 0, "")
	f.Uint64Var(&o.Seed, "seed", 0, "")
	f.IntVar(&o.Commits, "commits", 0, "")
	f.BoolVar(&o.Abandon, "abandon", false, "")
	f.BoolVar(&o.Stubborn, "stubborn", false, "")
	f.BoolVar(&o.Look, "look", false, "")
	_ = f.Parse(args)
	w := &work{o: o, pen: history.NewPen(os.Stdout)}
	for l := range w.rng {
		w.rng[l] = rand.New(rand.NewPCG(o.Seed, uint64(l)))
	}
	run := w.free
	if o.Commits > 0 || o.Look {
		run = w.steady
	}
	if err := run(); err != nil {
		w.pen.Error("writer", err)
		return 1
	}
	return 0
}

type work struct {
	o    Options
	pen  *history.Pen
	q    *buffer.Queue
	rng  [2]*rand.Rand // the collector's and the sender's
	made uint64        // batches
}

// open opens the buffer and says what is there.
func (w *work) open() error {
	began := time.Now()
	q, err := buffer.Open(buffer.Options{Dir: w.o.Dir, Size: w.o.Size, Segment: w.o.Segment, MaxLoss: w.o.MaxLoss})
	if err != nil {
		return err
	}
	if trouble := q.Stats().LastError; trouble != "" { // it has no disk, and works in memory
		return errors.Join(errors.New(trouble), q.Close())
	}
	w.q = q
	w.pen.Opened(q, time.Since(began).Milliseconds())
	for l := range buffer.Lane(2) {
		for from := uint64(1); ; {
			it, ok, err := q.Next(l, from)
			if err != nil {
				return fmt.Errorf("reading what was found: %w", err)
			}
			if !ok {
				break
			}
			if it.Seq < from {
				return fmt.Errorf("%s: %d came after %d", l, it.Seq, from-1)
			}
			w.pen.Held(it)
			from = it.Seq + 1
		}
	}
	for _, l := range q.Losses() {
		w.pen.Ledger(l)
	}
	used, err := usage(w.o.Dir)
	if trouble := q.Stats().LastError; err == nil && trouble != "" { // Next goes past what it cannot read or repair now
		err = errors.New(trouble)
	}
	if err != nil {
		w.q = nil
		return fmt.Errorf("reading what was found: %w", errors.Join(err, q.Close()))
	}
	w.pen.Ready(q, used)
	return nil
}

// usage adds up what all files under a directory cost: their length or their
// blocks, whatever is more.
func usage(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		n := fi.Size()
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			n = max(n, st.Blocks*512)
		}
		sum += n
		return nil
	})
	return sum, err
}

// batch makes a batch of n bytes that no other start has made.
func (w *work) batch(n int) buffer.Batch {
	w.made++
	b := buffer.Batch{Bytes: make([]byte, max(n, 16)), Count: int(w.made%100) + 1, To: 1_700_000_000_000 + int64(w.made)}
	b.From = b.To - int64(n%900)
	binary.BigEndian.PutUint64(b.Bytes, w.o.Seed)
	binary.BigEndian.PutUint64(b.Bytes[8:], w.made)
	r := rand.New(rand.NewPCG(w.o.Seed, w.made))
	for i := 16; i+8 <= len(b.Bytes); i += 8 {
		binary.LittleEndian.PutUint64(b.Bytes[i:], r.Uint64())
	}
	return b
}

// put appends a batch. Only one goroutine may.
func (w *work) put(l buffer.Lane, n int) error {
	b := w.batch(n)
	w.pen.Intent(l, b)
	seq, err := w.q.Append(l, b)
	if err != nil && !errors.Is(err, buffer.ErrNotDurable) {
		return err
	}
	w.pen.Given(l, seq, err == nil && w.o.MaxLoss == 0)
	return err
}

// sync commits what waited for longer than old, and says what is durable then.
func (w *work) sync(old time.Duration) error {
	var upto [2]uint64
	for l := range upto {
		upto[l] = w.q.Given(buffer.Lane(l))
	}
	if err := w.q.Sync(old); err != nil {
		return err
	}
	if old == 0 {
		w.pen.Stored(buffer.Data, upto[buffer.Data])
	}
	w.pen.Stored(buffer.Event, upto[buffer.Event])
	return nil
}

// drain acknowledges everything that may leave.
func (w *work) drain(l buffer.Lane) error {
	for {
		it, ok, err := w.q.Next(l, 1)
		if err != nil || !ok {
			return err
		}
		w.pen.Acked(it)
		w.q.Ack(l, it.Seq)
	}
}

// tell delivers all losses.
func (w *work) tell() error {
	for _, l := range w.q.Losses() {
		w.pen.Told(l)
		if err := w.q.AckLoss(l); err != nil {
			return err
		}
	}
	return nil
}
