package driver

import (
	"hash/fnv"
	"time"
)

// grid is the timetable of one device: slots at phase + k x every on the
// wall clock, so that polls of gateways and days line up, and a phase of its
// own for each device, so that they do not all begin at the full second.
type grid struct {
	every, phase int64 // nanoseconds
}

// The phases of a period: at least slots, not further apart than slotMax and
// not closer than slotMin, so that a short period has fewer.
// Polls of many lines that share an instant cost one waking of the processor
// instead of many, which is most of what a poll costs; slots keep them from
// all beginning at the full second. Devices that share a line wait for each
// other: where they are many, there are slotsMany phases.
const (
	slots     = 4
	slotsMany = 16
	slotMin   = 100 * time.Millisecond
	slotMax   = 250 * time.Millisecond
)

// newGrid derives the phase from the names: it is the same after a restart.
// devices is how many there are on the line.
func newGrid(line, device string, devices int, every time.Duration) grid {
	h := fnv.New64a()
	h.Write([]byte(line + "/" + device))
	g := grid{every: max(int64(every), 1)}
	n, least := int64(slots), min(int64(slotMin), g.every)
	if devices > slots {
		n, least = slotsMany, 1
	}
	slot := max(min(g.every/n, int64(slotMax)), least)
	// The low bits of the hash are no dice: of bus1/meter1, bus2/meter2 ... they are all the same.
	g.phase = int64(h.Sum64()>>40%uint64((g.every+slot-1)/slot)) * slot
	return g
}

// after returns the slot that follows due and how many slots were passed
// over because they lie a whole period or more before now: those are lost
// time and are never made up for. Both times carry the monotonic clock; a
// step of the wall clock moves the next slot by at most half a period.
func (g grid) after(due, now time.Time) (next time.Time, skipped int) {
	every := time.Duration(g.every)
	aim := due.Add(every)
	wall := now.UnixNano() + int64(aim.Sub(now)) // of aim, by today's wall clock
	off := (wall - g.phase) % g.every
	if off < 0 {
		off += g.every
	}
	if off >= g.every/2 {
		off -= g.every // the nearest slot lies ahead
	}
	next = aim.Add(-time.Duration(off))
	if late := now.Sub(next); late >= every {
		skipped = int(late / every)
		next = next.Add(time.Duration(skipped) * every)
	}
	return next, skipped
}

// late says whether a poll that begins now is later than its slot allows. What
// is asked at once (at the start, after a line came back) has no slot. The
// blocks of a device go one after the other: they are as late as the first of
// them, or as what came between them made them.
func (j *job) late(now time.Time) bool {
	if !j.due.Equal(j.slot) {
		return false
	}
	d := j.dev
	if j.due.Sub(d.slot).Abs() > time.Duration(d.grid.every)/2 {
		d.slot, d.served, d.behind = j.due, j.due, false
	}
	d.behind = d.behind || now.Sub(d.served) > d.grid.lateAfter()
	return d.behind
}

// lateAfter is how much later than its slot a poll may begin without being
// counted as late: a tenth of the period, at least 20 ms.
func (g grid) lateAfter() time.Duration {
	return max(time.Duration(g.every/10), 20*time.Millisecond)
}
