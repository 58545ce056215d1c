package writer

import (
	"time"

	"tidegate/buffer"
)

// free works on the buffer with two goroutines, as the collector and the
// uplink of a gateway do, until the process ends or something fails.
func (w *work) free() error {
	if err := w.open(); err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- w.collect() }()
	go func() { failed <- w.send() }()
	return <-failed
}

// collect appends and commits.
func (w *work) collect() error {
	r := w.rng[0]
	sizes := []int{40, 300, 1000, 2500, 9000, 20000}
	for {
		for range 1 + r.IntN(8) {
			l := buffer.Data
			if r.IntN(10) == 0 {
				l = buffer.Event
			}
			if err := w.put(l, sizes[r.IntN(len(sizes))]); err != nil {
				return err
			}
		}
		switch r.IntN(12) {
		case 0:
			if err := w.sync(5 * time.Millisecond); err != nil {
				return err
			}
		case 1:
			if err := w.q.SaveMeta([]string{"a", "b", "c"}[r.IntN(3)], w.batch(r.IntN(4000)).Bytes); err != nil {
				return err
			}
		case 2, 3: // they wait a little longer
		default:
			if err := w.sync(0); err != nil {
				return err
			}
		}
	}
}

// send delivers. Some starts are offline, some online, some drain what was left.
func (w *work) send() error {
	r := w.rng[1]
	mood := r.IntN(4)
	for {
		time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
		l := buffer.Lane(r.IntN(2))
		switch {
		case mood <= 1: // offline, but for a moment now and then
			if r.IntN(40) > 0 {
				continue
			}
		case mood == 3 && r.IntN(40) == 0:
			if err := w.drain(l); err != nil {
				return err
			}
			continue
		}
		if r.IntN(20) == 0 {
			if err := w.tell(); err != nil {
				return err
			}
		}
		for range 1 + r.IntN(6) {
			it, ok, err := w.q.Next(l, w.q.Lowest(l)+uint64(r.IntN(3)))
			if r.IntN(3) == 0 {
				it, ok, err = w.q.Prev(l, 1<<60)
			}
			if err != nil {
				return err
			}
			switch {
			case !ok:
			case r.IntN(4) == 0: // the answer is lost on its way
				w.pen.Sent(it)
			case r.IntN(60) == 0:
				w.pen.Aside(l, it.Seq)
				if err := w.q.SetAside(l, it.Seq, buffer.WhyPoison); err != nil {
					return err
				}
			default:
				w.pen.Acked(it)
				w.q.Ack(l, it.Seq)
			}
		}
	}
}
