package profile

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"
)

// Limits says what a line can do, and what is known of a device beyond its
// profile.
type Limits struct {
	MaxRegisters int           // most registers in a request; 0 = 125
	MaxBits      int           // most coils or inputs in a request; 0 = 2000
	Char         time.Duration // one character on this line; 0 = a network
	Silence      time.Duration // between two frames; 0 = 3.5 characters
	Turnaround   time.Duration // what the device needs before it answers; 0 = 5 ms
	ASCII        bool          // two characters for each byte

	Without  []int     // points that are not asked for
	Barriers []Barrier // what this device does not let itself be read across
}

// Barrier is a stretch of addresses [Lo, Hi) of a table that no request of
// several points touches. With Lo = Hi it is the border between two
// addresses that are never asked for together.
type Barrier struct {
	Table  Table
	Lo, Hi int
}

// The limits of the Modbus specification.
const (
	maxRegisters = 125
	maxBits      = 2000
)

// tcpOverhead is what one more request costs over TCP, in registers: a
// round trip and a slot of the device are worth a few dozen of them.
const tcpOverhead = 48

// item is what must be read in one request: a point and its scale factor,
// or several points that share registers.
type item struct {
	lo, hi int // [lo, hi)
	points []int
}

// Plan returns the requests that read all points of the profile in the
// least time: neighbours are merged where reading the gap between them
// costs less than asking again. No request is larger than the limits, or
// than the profile's own; none touches a forbidden address; a point is
// never split, and stands in the same request as its scale factor and as the
// other points of its atomic group. Only where a device has refused to be
// read across, or the limits are smaller than a group, its points are read
// apart.
func (p *Profile) Plan(l Limits) []Request {
	var out []Request
	for t := Coils; t <= Input; t++ {
		var items []item
		for i := range p.codecs {
			if c := &p.codecs[i]; c.table == t && !slices.Contains(l.Without, i) {
				lo, hi := c.span()
				items = append(items, item{lo, hi, []int{i}})
			}
		}
		if len(items) > 0 {
			out = p.planTable(t, p.join(t, items, l), l, out)
		}
	}
	return out
}

// join makes one item of the points of each atomic group.
func (p *Profile) join(t Table, items []item, l Limits) []item {
	for _, names := range p.Atomic {
		one := item{lo: 1 << 16}
		var rest []item
		for _, it := range items {
			if !slices.Contains(names, p.Points[it.points[0]].Name) {
				rest = append(rest, it)
				continue
			}
			one = item{min(one.lo, it.lo), max(one.hi, it.hi), append(one.points, it.points...)}
		}
		if len(one.points) > 1 && one.hi-one.lo <= p.limit(t, l) && !p.Forbids(t, one.lo, one.hi) && !l.barred(t, one.lo, one.hi) {
			items = append(rest, one)
		}
	}
	return items
}

// checkAtomic finds groups that no request can hold.
func (p *Profile) checkAtomic(r report) {
	taken := map[string]bool{}
	for i, names := range p.Atomic {
		path := "atomic[" + strconv.Itoa(i) + "]"
		var t Table
		lo, hi := 1<<16, 0
		for _, name := range names {
			k := p.index(name)
			switch {
			case k < 0:
				r(path, fmt.Sprintf("there is no point %q", name), "name points of this profile")
				return
			case taken[name]:
				r(path, fmt.Sprintf("%q is in a group already", name), "make one group of them")
				return
			case p.Transport != "modbus":
				r(path, "atomic is for Modbus devices: a frame comes as a whole", "remove it")
				return
			}
			taken[name] = true
			c := &p.codecs[k]
			if c.table == 0 {
				continue // where it stands is found out on the device, or it has no place
			}
			if t != 0 && c.table != t {
				r(path, fmt.Sprintf("%s stands in another table than the others", name), "one request reads one table")
				return
			}
			a, b := c.span()
			t, lo, hi = c.table, min(lo, a), max(hi, b)
		}
		switch {
		case len(names) < 2:
			r(path, "a group has two points or more", "write atomic: [[energy_high, energy_low]]")
		case t != 0 && hi-lo > p.limit(t, Limits{}):
			r(path, fmt.Sprintf("the group needs %d addresses in one request, and the device gives %d", hi-lo, p.limit(t, Limits{})), "take points that stand nearer to each other")
		case t != 0 && p.Forbids(t, lo, hi):
			r(path, "a forbidden region stands in the group", "take points on one side of it")
		}
	}
}

// planTable finds the cheapest partition of the items, sorted by address,
// into requests: best[j] is the least time for the first j of them.
func (p *Profile) planTable(t Table, items []item, l Limits, out []Request) []Request {
	sort.SliceStable(items, func(i, k int) bool {
		a, b := &items[i], &items[k]
		return a.lo < b.lo || a.lo == b.lo && a.hi < b.hi
	})
	limit := p.limit(t, l)
	best := make([]int64, len(items)+1)
	from := make([]int, len(items)+1)
	for j := 1; j <= len(items); j++ {
		best[j] = -1
		hi := 0
		for i := j - 1; i >= 0; i-- {
			hi = max(hi, items[i].hi)
			lo := items[i].lo
			if i < j-1 && (hi-lo > limit || p.Forbids(t, lo, hi) || l.barred(t, lo, hi) || p.gapTooWide(items[i:j])) {
				break
			}
			if cost := best[i] + l.cost(t, hi-lo); best[j] < 0 || cost < best[j] {
				best[j], from[j] = cost, i
			}
		}
	}
	first := len(out)
	for j := len(items); j > 0; j = from[j] {
		r := Request{Table: t, Address: uint16(items[from[j]].lo)}
		hi := 0
		for _, it := range items[from[j]:j] {
			hi = max(hi, it.hi)
			r.Points = append(r.Points, it.points...)
		}
		r.Count = uint16(hi - int(r.Address))
		slices.Sort(r.Points)
		out = append(out, r)
	}
	slices.Reverse(out[first:])
	return out
}

// limit returns the most registers or bits of one request.
func (p *Profile) limit(t Table, l Limits) int {
	n, own, asked := maxRegisters, p.MaxRead, l.MaxRegisters
	if t.Bits() {
		n, own, asked = maxBits, p.MaxBits, l.MaxBits
	}
	for _, m := range [...]int{own, asked} {
		if m > 0 {
			n = min(n, m)
		}
	}
	return n
}

// gapTooWide says whether the items leave a hole above the profile's max_gap.
func (p *Profile) gapTooWide(items []item) bool {
	if p.MaxGap == nil {
		return false
	}
	hi := items[0].hi
	for _, it := range items[1:] {
		if it.lo-hi > *p.MaxGap {
			return true
		}
		hi = max(hi, it.hi)
	}
	return false
}

// Forbids says whether a request for [lo, hi) would touch a forbidden address.
func (p *Profile) Forbids(t Table, lo, hi int) bool {
	for _, f := range p.Forbidden {
		if r := f.of(t); len(r) == 2 && lo <= r[1] && r[0] < hi {
			return true
		}
	}
	return false
}

// barred says whether a request for [lo, hi) crosses a barrier.
func (l *Limits) barred(t Table, lo, hi int) bool {
	for _, b := range l.Barriers {
		if b.Table == t && lo < b.Hi && hi > b.Lo {
			return true
		}
	}
	return false
}

func (f *Region) of(t Table) []int {
	return [...][]int{Coils: f.Coil, Discrete: f.Discrete, Holding: f.Holding, Input: f.Input}[t]
}

// cost is the time of one request: in nanoseconds on a serial line, in
// registers over TCP.
func (l Limits) cost(t Table, n int) int64 {
	if l.Char <= 0 {
		if t.Bits() {
			return tcpOverhead + int64(n+15)/16
		}
		return tcpOverhead + int64(n)
	}
	return int64(l.Time(t, n))
}

// Time is how long one request for n registers or bits takes on a serial
// line: request, answer, turnaround and two silences.
func (l Limits) Time(t Table, n int) time.Duration {
	turnaround, silence := l.Turnaround, l.Silence
	if turnaround <= 0 {
		turnaround = 5 * time.Millisecond
	}
	if silence <= 0 {
		silence = l.Char * 7 / 2
	}
	data := 2 * n
	if t.Bits() {
		data = (n + 7) / 8
	}
	chars := 8 + 5 + data // RTU: unit, function, CRC on both ways
	if l.ASCII {
		chars = 17 + 11 + 2*data // colon, hexadecimal, LRC, CR LF
	}
	return time.Duration(chars)*l.Char + 2*silence + turnaround
}
