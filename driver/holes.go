package driver

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidegate/driver/profile"
)

// A block that a device refuses, or to which it is silent although it answers
// other requests, is parted until the registers that are not there are found.
// What is learned is kept for the device: its holes, points that are asked
// for again after a minute and then hourly, each by itself; and its barriers,
// places that it does not let itself be read across, because registers
// between two points are not there or the block is too long for it. The rest
// is planned anew around them. Each hole costs at most 2 log2 n requests more
// than a round, and half of these bring values.

// fork is a block that was parted in two.
type fork struct {
	up     *fork
	table  profile.Table
	lo, hi int  // the addresses between its halves; hi < lo where they share some
	most   int  // what the longer half counts
	open   int  // halves not yet decided
	holes  int  // points found missing below
	silent bool // the device was silent instead of refusing
	alive  bool // some part below was answered
}

// hole is why a job of points that are not there is not asked at each slot.
type hole struct {
	err   error // as the device refused: an Exception, or ErrTimeout
	since time.Time
	retry time.Time // before it, it is not asked again
	tries int
	root  *fork // of the search that found it, while that goes on
}

// learned is what a device is known not to let itself be read across. It is
// forgotten with the first holes' retry, then hourly, and learned again if it
// still is so.
type learned struct {
	barriers []profile.Barrier
	most     [2]int    // registers and bits in one request; 0: as planned
	until    time.Time // then it is forgotten; zero: there is nothing
	again    bool      // it was forgotten before
}

const (
	// retryFirst and retryHole are when a refused address is tried again:
	// once soon, because a device may refuse while it starts, then hourly.
	retryFirst = time.Minute
	retryHole  = time.Hour
)

// stretch is what some points of a job take up.
type stretch struct {
	lo, hi int
	points []int
}

// stretches returns what the points of a job take up, by address; points of
// the same registers stand together.
func (j *job) stretches() []stretch {
	var out []stretch
	for _, i := range j.req.Points {
		r, err := j.dev.model().PointRequest(i)
		if err != nil {
			return nil
		}
		s := stretch{int(r.Address), int(r.Address) + int(r.Count), []int{i}}
		k, found := slices.BinarySearchFunc(out, s, func(a, b stretch) int {
			return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(a.hi, b.hi))
		})
		if found {
			out[k].points = append(out[k].points, i)
		} else {
			out = slices.Insert(out, k, s)
		}
	}
	return out
}

// request is one for all points of some stretches.
func (j *job) request(ss []stretch) profile.Request {
	r := profile.Request{Table: j.req.Table}
	lo, hi := ss[0].lo, 0
	for _, s := range ss {
		hi = max(hi, s.hi)
		r.Points = append(r.Points, s.points...)
	}
	r.Address, r.Count = uint16(lo), uint16(hi-lo)
	slices.Sort(r.Points)
	return r
}

// suspect says whether a failed block is to be parted, and whether because
// of silence. A block that was never answered is suspect once it was met
// with silence twice while the unit answered something else in between.
func (j *job) suspect(err error, r *result, now time.Time) (silent, yes bool) {
	var x Exception
	if errors.As(err, &x) {
		return false, x == 2 || x == 3 // 3: some devices say so of a block that is too long
	}
	if !errors.Is(err, ErrTimeout) || r.bytes > 0 {
		return false, false
	}
	switch {
	case j.fork != nil && j.fork.silent, j.hole != nil && j.hole.err == ErrTimeout:
		return true, true
	case j.good, j.fork != nil, j.hole != nil, len(j.req.Points) < 2:
		return false, false
	}
	if j.mute++; j.mute == 1 {
		j.muted = now
	}
	return true, j.mute >= 2 && j.dev.unit.heard.After(j.muted)
}

// part deals with a block that the device refused or was silent to. It says
// whether its halves are asked at once; if not, its points are a hole.
func (l *Line) part(j *job, silent bool, err error, now time.Time) bool {
	ss := j.stretches()
	if len(ss) > 1 {
		mid := middle(ss)
		f := &fork{up: j.fork, table: j.req.Table, open: 2, silent: silent, lo: 0, hi: ss[mid].lo}
		for _, s := range ss[:mid] {
			f.lo = max(f.lo, s.hi)
		}
		f.most = max(int(j.request(ss[:mid]).Count), int(j.request(ss[mid:]).Count))
		var halves [2]*job
		for k, part := range [2][]stretch{ss[:mid], ss[mid:]} {
			req := j.request(part)
			ask, err := newAsk(packager(l.at.kind, j.ask.unit), l.at.kind, j.ask.unit, req.Table, req.Address, req.Count)
			if err != nil {
				return false
			}
			j.dev.unit.searching = silent
			halves[k] = &job{dev: j.dev, req: req, ask: ask, due: j.due, failure: j.failure, told: j.told, fork: f}
		}
		i := slices.Index(l.jobs, j)
		l.jobs = slices.Insert(slices.Delete(l.jobs, i, i+1), i, halves[:]...)
		return true
	}
	h := j.hole
	if h == nil {
		h = &hole{since: now}
		j.hole = h
		for f := j.fork; f != nil; f = f.up {
			f.holes++
			h.root = f
		}
	}
	h.err = ErrTimeout
	var x Exception
	if errors.As(err, &x) {
		h.err = x
	}
	h.retry = now.Add(retryHole)
	if h.tries++; h.tries == 1 {
		h.retry = now.Add(retryFirst)
		if !silent {
			l.tellHole(j)
		}
	}
	return false
}

// middle returns where to part stretches: as near to half as can be where
// the two sides share no register.
func middle(ss []stretch) int {
	mid := len(ss) / 2
	apart := func(k int) bool {
		return k > 0 && k < len(ss) && !slices.ContainsFunc(ss[:k], func(s stretch) bool { return s.hi > ss[k].lo })
	}
	for d := 0; d < mid; d++ {
		switch {
		case apart(mid - d):
			return mid - d
		case apart(mid + d):
			return mid + d
		}
	}
	return mid
}

func (l *Line) tellHole(j *job) {
	what := "the device refuses an address"
	if j.hole.err == ErrTimeout {
		what = "the device is silent to an address"
	}
	l.log.Warn(what, "device", j.dev.name, "points", strings.Join(j.names(), " "), "table", j.req.Table.String(),
		"address", j.req.Address, "register", profile.ManualNumber(j.req.Table, j.req.Address), "cause", causeOf(j.hole.err).String())
}

// names returns the points of a job.
func (j *job) names() []string {
	var names []string
	for _, i := range j.req.Points {
		names = append(names, j.dev.opt.Map.Points[i].Name)
	}
	return names
}

// decide notes that a part of a search is decided: it was answered, or it is
// a hole. When all parts are, the device is planned anew.
func (l *Line) decide(j *job, now time.Time) {
	f := j.fork
	if f == nil {
		return
	}
	j.fork = nil
	root := f
	for ; root.up != nil; root = root.up {
		root.alive = root.alive || j.hole == nil
	}
	root.alive = root.alive || j.hole == nil
	d := j.dev
	for f != nil {
		if f.open--; f.open > 0 {
			return
		}
		if f.holes == 0 {
			d.known.add(f, now)
		}
		f = f.up
	}
	d.unit.searching = false
	// The search is over. A device that answered nothing in it is not there:
	// nothing was learned.
	for _, o := range l.jobs {
		if o.hole != nil && o.hole.root == root {
			o.hole.root = nil
			switch {
			case root.silent && !root.alive:
				o.hole, o.due = nil, now
			case root.silent:
				l.tellHole(o)
			}
		}
	}
	l.replan(d)
}

// add learns from a fork both halves of which were answered: what was
// refused as a whole were the registers between them or, if there are none,
// the length.
func (k *learned) add(f *fork, now time.Time) {
	kind := 0
	if f.table.Bits() {
		kind = 1
	}
	switch {
	case f.lo < f.hi:
		k.barriers = append(k.barriers, profile.Barrier{Table: f.table, Lo: f.lo, Hi: f.hi})
	case k.most[kind] == 0 || f.most < k.most[kind]:
		k.most[kind] = f.most
	}
	k.until = now.Add(retryFirst)
	if k.again {
		k.until = now.Add(retryHole)
	}
}

// doubt forgets what was learned when its time has come: the next round
// shows whether it still is so.
func (l *Line) doubt(d *device, now time.Time) {
	if k := &d.known; !k.until.IsZero() && !now.Before(k.until) {
		*k = learned{again: true}
		l.replan(d)
	}
}

// replan makes the blocks of a device anew from what is known of it. A block
// is due when the first of its points was, so that no point misses a slot.
// While a search is under way nothing changes.
func (l *Line) replan(d *device) {
	lim := l.limits
	due := map[int]time.Time{}
	bad := map[int]bool{} // not known to be answered
	var keep []*job
	at := -1
	for i, j := range l.jobs {
		if j.dev != d {
			keep = append(keep, j)
			continue
		}
		if j.fork != nil {
			return
		}
		if at < 0 {
			at = len(keep)
		}
		if j.hole != nil {
			keep = append(keep, j)
			lim.Without = append(lim.Without, j.req.Points...)
		}
		for _, p := range j.req.Points {
			due[p], bad[p] = l.jobs[i].due, !j.good
		}
	}
	lim.Barriers = append(d.missing(lim.Without), d.known.barriers...)
	for k, most := range [...]*int{&lim.MaxRegisters, &lim.MaxBits} {
		if n := d.known.most[k]; n > 0 {
			*most = min(*most, n)
		}
	}
	var fresh []*job
	for _, r := range d.model().Plan(lim) {
		a, err := newAsk(packager(l.at.kind, d.unit.id), l.at.kind, d.unit.id, r.Table, r.Address, r.Count)
		if err != nil {
			l.log.Error("a block cannot be asked", "device", d.name, "error", err)
			continue
		}
		j := &job{dev: d, req: r, ask: a, due: due[r.Points[0]], good: true}
		for _, p := range r.Points {
			if due[p].Before(j.due) {
				j.due = due[p]
			}
			j.good = j.good && !bad[p]
		}
		fresh = append(fresh, j)
	}
	l.jobs = slices.Insert(keep, max(at, 0), fresh...)
	l.tellHoles(d)
}

// missing returns the registers of the points that are not there, as far as
// no other point needs them: no block reads across them.
func (d *device) missing(without []int) []profile.Barrier {
	needed := map[[2]int]bool{}
	each := func(point int, f func(key [2]int)) {
		if r, err := d.model().PointRequest(point); err == nil {
			for a := int(r.Address); a < int(r.Address)+int(r.Count); a++ {
				f([2]int{int(r.Table), a})
			}
		}
	}
	for i := range d.model().Points {
		if !slices.Contains(without, i) {
			each(i, func(k [2]int) { needed[k] = true })
		}
	}
	var out []profile.Barrier
	for _, i := range without {
		each(i, func(k [2]int) {
			if !needed[k] {
				out = append(out, profile.Barrier{Table: profile.Table(k[0]), Lo: k[1], Hi: k[1] + 1})
			}
		})
	}
	return out
}

// learn draws the conclusions of a poll for what is known of a device.
func (l *Line) learn(j *job, err error, now time.Time) {
	d := j.dev
	switch {
	case err == nil && j.hole != nil:
		next, _ := d.grid.after(j.due, now)
		j.due = next
		l.filled(j, now)
	case err == nil || j.hole != nil:
		l.decide(j, now)
		if j.hole != nil {
			l.tellHoles(d)
		}
		l.doubt(d, now)
	}
}

// filled notes that a hole was answered after all.
func (l *Line) filled(j *job, now time.Time) {
	l.log.Info("an address that was refused answers now", "device", j.dev.name, "points", strings.Join(j.names(), " "),
		"after", now.Sub(j.hole.since).Round(time.Millisecond))
	j.hole, j.good = nil, true
	l.replan(j.dev)
}

// rest sets when a hole is looked at again: to be asked, or to be said once more.
func (j *job) rest(now time.Time) {
	j.due = now.Add(heartbeat)
	if j.hole.retry.Before(j.due) {
		j.due = j.hole.retry
	}
}

// Hole is a point that the device refuses, or is silent to.
type Hole struct {
	Point string
	Cause string // as readings carry it, such as illegal-address
	Place string // such as "holding 8 (manual 40009)"
	Since time.Time
	Retry time.Time // when it is asked again
}

// tellHoles copies the holes of a device to where Stats may read them.
func (l *Line) tellHoles(d *device) {
	var holes []Hole
	for _, j := range l.jobs {
		if j.dev != d || j.hole == nil {
			continue
		}
		place := fmt.Sprintf("%v %d (manual %d)", j.req.Table, j.req.Address, profile.ManualNumber(j.req.Table, j.req.Address))
		for _, name := range j.names() {
			holes = append(holes, Hole{name, causeOf(j.hole.err).String(), place, j.hole.since, j.hole.retry})
		}
	}
	l.mu.Lock()
	d.stats.Holes = holes
	l.mu.Unlock()
}

// canary returns a request for one point of a block that an absent unit never
// answered, another one each time: a device that is silent to the block may
// be there all the same. It is nil where the block itself will do.
func (j *job) canary(l *Line) *ask {
	if j.good || j.fork != nil || j.hole != nil || !j.dev.unit.br.open() {
		return nil
	}
	ss := j.stretches()
	if len(ss) < 2 {
		return nil
	}
	s := ss[j.probes%len(ss)]
	j.probes++
	a, err := newAsk(packager(l.at.kind, j.ask.unit), l.at.kind, j.ask.unit, j.req.Table, uint16(s.lo), uint16(s.hi-s.lo))
	if err != nil {
		return nil
	}
	return a
}
