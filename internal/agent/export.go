package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/buffer"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
)

// maxShown is how many runs of numbers of a kind a check names.
const maxShown = 20

// maxFailures is how many numbers in a row may fail on the disk of a running
// agent before a walk gives up.
const maxFailures = 1000

// neverBefore is a time, Unix ms, before which no clock that is set can be: 2020.
const neverBefore = 1_577_836_800_000

// Export walks what waits in the buffer, as the uplink would send it.
func (a *Agent) Export(ctx context.Context, q status.ExportQuery, line func(status.ExportLine) error) error {
	w := walker{queue: a.queue, src: newSource(a.queue, a.catalog), gateway: a.cfg.Gateway.ID, resolve: a.clock.Resolve}
	return w.export(ctx, q, line)
}

// CheckBuffer reads and decodes every batch that waits.
func (a *Agent) CheckBuffer(ctx context.Context) (status.BufferCheck, error) {
	w := walker{queue: a.queue, src: newSource(a.queue, a.catalog)}
	return w.check(ctx)
}

// Export walks what waits in the buffer, as the uplink would send it.
func (s *Stopped) Export(ctx context.Context, q status.ExportQuery, line func(status.ExportLine) error) error {
	w := walker{queue: s.queue, src: s.src, gateway: s.gateway, resolve: s.clock.Resolve}
	return w.export(ctx, q, line)
}

// CheckBuffer reads and decodes every batch that waits.
func (s *Stopped) CheckBuffer(ctx context.Context) (status.BufferCheck, error) {
	w := walker{queue: s.queue, src: s.src}
	return w.check(ctx)
}

// walker goes through the queue beside the uplink. It removes nothing and
// holds one batch at a time.
type walker struct {
	queue   *buffer.Queue
	src     *source
	gateway string
	resolve payload.Resolve

	batch telemetry.Tables
}

// walk calls each for every batch of a lane that waits, up to a number, and
// bad for numbers that cannot be read.
func (w *walker) walk(ctx context.Context, l buffer.Lane, upto uint64, each func(buffer.Item) error, bad func(n uint64, err error) error) error {
	failures := 0
	for n := max(w.queue.Lowest(l), 1); n <= upto; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		item, ok, err := w.queue.Look(l, n)
		if err != nil {
			// A buffer opened for reading only is not repaired: each of its damaged numbers is told.
			if failures++; errors.Is(err, buffer.ErrClosed) || failures > maxFailures && !errors.Is(err, buffer.ErrReadOnly) {
				return err
			}
			if err := bad(n, readError(err)); err != nil {
				return err
			}
			continue
		}
		if failures = 0; !ok || item.Seq > upto {
			return nil
		}
		if err := each(item); err != nil {
			return err
		}
		n = item.Seq
	}
	return nil
}

// readError says what a read found instead of that nothing may be repaired.
func readError(err error) error {
	if errors.Is(err, buffer.ErrReadOnly) {
		return errors.New("damaged on disk; the agent repairs what can be repaired when it starts")
	}
	return err
}

// decode reads an item into w.batch and returns the catalog of its points.
func (w *walker) decode(item buffer.Item) (*telemetry.Catalog, error) {
	if err := w.batch.Decode(item.Bytes); err != nil {
		return nil, err
	}
	c, err := w.src.Catalog(w.batch.Catalog)
	if err != nil {
		return nil, err
	}
	if p := w.batch.Highest(); w.batch.Len() > 0 && int(p) >= len(c.Points) {
		return nil, fmt.Errorf("point number %d is not in catalog %s of %d points", p, w.batch.Catalog, len(c.Points))
	}
	return c, nil
}

func lanesOf(name string) ([]buffer.Lane, error) {
	switch name {
	case "":
		return []buffer.Lane{buffer.Event, buffer.Data}, nil
	case buffer.Data.String(), buffer.Event.String():
		return []buffer.Lane{laneOf(name)}, nil
	}
	return nil, &status.Failure{Code: "usage", What: fmt.Sprintf("there is no lane %q; there are data and event", name), Exit: 64}
}

func (w *walker) export(ctx context.Context, q status.ExportQuery, line func(status.ExportLine) error) error {
	lanes, err := lanesOf(q.Lane)
	if err != nil {
		return err
	}
	dialect, err := payload.New("records")
	if err != nil {
		return err
	}
	// What is said of numbers belongs to the moment at which the export begins:
	// what is delivered or dropped meanwhile is told by others.
	var upto [2]uint64
	head := status.ExportHead{Gateway: w.gateway, Epoch: w.queue.Epoch(), Boot: w.queue.Boot()}
	env := map[buffer.Lane]*payload.Envelope{}
	stats := w.queue.Stats()
	for _, l := range lanes {
		upto[l] = w.queue.Given(l)
		env[l] = &payload.Envelope{Gateway: head.Gateway, Epoch: head.Epoch, Lane: l.String(), Boot: head.Boot, Lo: w.queue.Lowest(l)}
		head.Batches += stats.Waiting[l]
		head.Readings += stats.Readings[l]
	}
	before := w.losses(lanes)
	for _, loss := range before {
		if e := env[loss.Lane]; loss.From != 0 {
			e.Lo = min(e.Lo, loss.From)
		}
	}
	if err := line(status.ExportLine{Kind: status.ExportHeadKind, Head: &head}); err != nil {
		return err
	}
	var message []byte
	for _, l := range lanes {
		bad := func(n uint64, err error) error {
			return line(status.ExportLine{Kind: status.ExportBadKind, Lane: l.String(), From: n, To: n, Error: err.Error()})
		}
		err := w.walk(ctx, l, upto[l], func(item buffer.Item) error {
			c, err := w.decode(item)
			if err != nil {
				return bad(item.Seq, err)
			}
			out, wanted := w.span(item, q)
			if !wanted {
				return nil
			}
			e := env[l]
			e.Seq, e.Sent = item.Seq, time.Now().UnixMilli()
			if message, err = dialect.Data(message[:0], e, &w.batch, c, w.resolve, true); err != nil {
				return bad(item.Seq, err)
			}
			out.Message = message
			return line(out)
		}, bad)
		if err != nil {
			return err
		}
	}
	for _, loss := range merge(before, w.losses(lanes)) {
		e := env[loss.Lane]
		e.Seq, e.Sent = 0, time.Now().UnixMilli()
		if message, err = dialect.Loss(message[:0], e, payload.Tombstone{From: loss.From, To: loss.To, Batches: loss.Batches,
			Readings: loss.Readings, T0: loss.T0, T1: loss.T1, Why: loss.Why}); err != nil {
			return err
		}
		if err := line(status.ExportLine{Kind: status.ExportLossKind, Lane: loss.Lane.String(), From: loss.From, To: loss.To,
			Readings: loss.Readings, T0: loss.T0, T1: loss.T1, Message: message}); err != nil {
			return err
		}
	}
	return nil
}

// span describes a decoded item and tells whether it overlaps the time that
// is asked for, by the best known times. What was read before the clock was
// set, and never got its true time, is not left out.
func (w *walker) span(item buffer.Item, q status.ExportQuery) (status.ExportLine, bool) {
	out := status.ExportLine{Kind: status.ExportBatchKind, Lane: item.Lane.String(), From: item.Seq, To: item.Seq}
	out.Readings = int64(w.batch.Readings())
	for i := range w.batch.Len() {
		t, _ := w.resolve(w.batch.At(i))
		at := t.UnixMilli()
		if out.T0 == 0 || at < out.T0 {
			out.T0 = at
		}
		out.T1 = max(out.T1, at)
	}
	return out, out.T0 < neverBefore || (q.Since == 0 || out.T1 >= q.Since) && (q.Until == 0 || out.T0 < q.Until)
}

// losses are the tombstones of some lanes that wait to be told.
func (w *walker) losses(lanes []buffer.Lane) (out []buffer.Loss) {
	for _, l := range w.queue.Losses() {
		for _, lane := range lanes {
			if l.Lane == lane {
				out = append(out, l)
			}
		}
	}
	return out
}

// merge returns the later losses, and those of before that are not part of
// one of them: they have been delivered meanwhile.
func merge(before, after []buffer.Loss) []buffer.Loss {
	out := after
	for _, b := range before {
		told := false
		for _, a := range after {
			told = told || a == b || a.Lane == b.Lane && a.Why == b.Why && b.From != 0 && a.From <= b.From && b.To <= a.To
		}
		if !told {
			out = append(out, b)
		}
	}
	return out
}

func (w *walker) check(ctx context.Context) (status.BufferCheck, error) {
	c := status.BufferCheck{Lanes: []status.LaneCheck{}, Tombstones: []status.Tombstone{}, Unreadable: []status.Numbers{}}
	for _, l := range []buffer.Lane{buffer.Data, buffer.Event} {
		if err := w.checkLane(ctx, l, &c); err != nil {
			return c, err
		}
	}
	for _, l := range w.queue.Losses() {
		c.Tombstones = append(c.Tombstones, status.Tombstone{Numbers: status.Numbers{Lane: l.Lane.String(), From: l.From, To: l.To},
			Batches: l.Batches, Readings: l.Readings, Why: l.Why})
		if l.Why == buffer.WhyCorrupt && l.From > 0 {
			c.Damaged += int64(l.To - l.From + 1)
		}
	}
	s := w.queue.Stats()
	c.Buffer = status.BufferOnDisk{Bytes: s.Disk, LimitBytes: s.Limit, Quarantined: s.Quarantined}
	return c, nil
}

func (w *walker) checkLane(ctx context.Context, l buffer.Lane, c *status.BufferCheck) error {
	lane := status.LaneCheck{Lane: l.String(), Gaps: []status.Numbers{}}
	bad := func(n uint64, err error) error {
		c.Damaged++
		if k := len(c.Unreadable) - 1; k >= 0 && c.Unreadable[k].Lane == lane.Lane && c.Unreadable[k].To == n-1 && c.Unreadable[k].Error == err.Error() {
			c.Unreadable[k].To = n
		} else if k < maxShown-1 {
			c.Unreadable = append(c.Unreadable, status.Numbers{Lane: lane.Lane, From: n, To: n, Error: err.Error()})
		}
		return nil
	}
	gap := func(from, to uint64) {
		for _, free := range outside(from, to, l, w.queue.Losses()) {
			lane.GapCount += int64(free.To - free.From + 1)
			if len(lane.Gaps) < maxShown {
				lane.Gaps = append(lane.Gaps, free)
			}
		}
	}
	seen := uint64(0) // the last number that was read or told to be bad
	see := func(n uint64) {
		if lane.First == 0 {
			lane.First = n
		} else if n > seen+1 {
			gap(seen+1, n-1)
		}
		seen, lane.Last = n, n
	}
	err := w.walk(ctx, l, w.queue.Given(l), func(item buffer.Item) error {
		see(item.Seq)
		if _, err := w.decode(item); err != nil {
			return bad(item.Seq, err)
		}
		lane.Batches++
		c.Batches++
		c.Readings += int64(w.batch.Readings())
		return nil
	}, func(n uint64, err error) error {
		see(n)
		return bad(n, err)
	})
	c.Lanes = append(c.Lanes, lane)
	return err
}

// outside returns the runs of from..to that stand in none of the losses of a lane.
func outside(from, to uint64, l buffer.Lane, losses []buffer.Loss) (out []status.Numbers) {
	for n := from; n <= to; {
		in, end := false, to
		for _, x := range losses {
			switch {
			case x.Lane != l || x.From == 0 || x.To < n:
			case x.From <= n:
				in, n = true, x.To+1
			default:
				end = min(end, x.From-1)
			}
			if in {
				break
			}
		}
		if !in {
			out = append(out, status.Numbers{Lane: l.String(), From: n, To: end})
			n = end + 1
		}
	}
	return out
}
