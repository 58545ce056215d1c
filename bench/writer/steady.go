package writer

import (
	"fmt"
	"runtime"
	"time"

	"tidegate/buffer"
)

// retries is how often a step is tried that a single fault of the disk hit,
// and pause is how long the buffer leaves a failed disk alone.
const (
	retries = 4
	pause   = 1050 * time.Millisecond
)

// steady does a fixed number of commits and all that goes with them:
// segments change, are delivered and dropped, a batch is set aside, a catalog
// is saved. One thread makes all calls to the system, in the same order each
// time, so that the n-th of a kind is always the same one.
func (w *work) steady() error {
	runtime.LockOSThread()
	if err := w.again("open", w.open); err != nil {
		return err
	}
	for i := range w.o.Commits {
		if err := w.commit(i); err != nil {
			return fmt.Errorf("commit %d: %w", i, err)
		}
	}
	if w.o.Commits == 0 || w.o.Abandon {
		return nil
	}
	w.pen.Ending()
	if err := w.q.Close(); err != nil {
		w.pen.Note("close-failed")
		return nil
	}
	w.pen.Closed()
	return nil
}

// again tries a step until it succeeds.
func (w *work) again(what string, step func() error) (err error) {
	for range retries {
		if err = step(); err == nil {
			return nil
		}
		if w.o.Stubborn && w.q != nil {
			w.pen.Note("failed-" + what)
			return nil
		}
		w.pen.Note("retried-" + what)
		time.Sleep(pause)
	}
	return fmt.Errorf("%s failed %d times: %w", what, retries, err)
}

func (w *work) commit(i int) error {
	per, size := 3, 11_000
	if w.o.MaxLoss == 0 { // each Append is a commit
		per, size = 1, 30_000
	}
	for range per {
		if err := w.put(buffer.Data, size+i*100); err != nil {
			w.pen.Note("append-not-durable")
		}
	}
	if i%5 == 0 {
		if err := w.put(buffer.Event, 700); err != nil {
			w.pen.Note("append-not-durable")
		}
	}
	if err := w.again("sync", func() error { return w.sync(0) }); err != nil {
		return err
	}
	switch i {
	case 4:
		return w.again("meta", func() error { return w.q.SaveMeta("catalog", w.batch(3000).Bytes) })
	case 6:
		return w.again("aside", func() error { return w.q.SetAside(buffer.Data, w.q.Lowest(buffer.Data), buffer.WhyPoison) })
	case 8, 9: // out of order, of what is on disk
		return w.again("send", func() error {
			it, ok, err := w.q.Next(buffer.Data, w.q.Lowest(buffer.Data)+2)
			if err == nil && ok {
				w.pen.Acked(it)
				w.q.Ack(buffer.Data, it.Seq)
			}
			return err
		})
	case 12: // the link is back: segments are delivered
		return w.again("drain", func() error { return w.drain(buffer.Data) })
	case 26: // after the first were dropped
		return w.again("tell", w.tell)
	}
	return nil
}
