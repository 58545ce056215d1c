package uplink

import (
	"time"

	"tidegate/uplink/payload"
)

// order decides what goes next: events, tombstones, live data, backlog. The
// backlog gets at least a tenth of the messages while live data is waiting,
// and never the whole window.
type order struct {
	u   *Uplink
	src Source

	flying map[key]bool  // sent on this connection, not acknowledged
	told   map[Loss]bool // likewise

	event    uint64 // next event to look for
	eventOld uint64 // events up to here are history
	boundary uint64 // data up to here is backlog
	live     uint64 // next live number to look for
	back     uint64 // next backlog number to look for; downwards for newest-first
	backDone bool   // nothing of the backlog is left to send
	lives    int    // live batches since the last one of the backlog
	held     *heldItem

	allowance float64 // bytes that the rate still allows the backlog
	refilled  time.Time
	waiting   bool // the backlog waits for its rate
}

// heldItem is a batch that was picked and put back.
type heldItem struct {
	item    Item
	history bool
}

func newOrder(u *Uplink, src Source) order {
	o := order{u: u, src: src, flying: map[key]bool{}, told: map[Loss]bool{}, event: 1, eventOld: src.Given(laneEvent)}
	o.split(src.Given(laneData))
	o.refilled = time.Now()
	return o
}

// split makes all data up to a number backlog.
func (o *order) split(at uint64) {
	o.boundary, o.live = at, at+1
	o.rewind()
}

// rewind starts over with the backlog; what is in flight is passed over.
func (o *order) rewind() {
	o.back, o.backDone = 1, false
	if o.newestFirst() {
		o.back = o.boundary
	}
}

// again looks at everything anew after an error of the source.
func (o *order) again() {
	o.event, o.live = 1, o.boundary+1
	o.rewind()
}

func (o *order) newestFirst() bool { return o.u.opts.Backlog.Order == "newest-first" }

// putBack makes pick return an item once more.
func (o *order) putBack(item Item, history bool) { o.held = &heldItem{item, history} }

// pick returns what to send next; of the backlog only if it has room. The bytes of an item are valid until the
// next call of the source.
func (o *order) pick(room bool) (loss *Loss, item Item, history, ok bool, err error) {
	loss, item, history, ok, err = o.choose(room)
	if !ok && err == nil && !o.waiting && o.u.poison.careful() && !o.u.poison.passed {
		o.u.poison.passed = true // there is no other batch to try before the suspect
		o.again()
		loss, item, history, ok, err = o.choose(room)
	}
	return loss, item, history, ok, err
}

func (o *order) choose(room bool) (loss *Loss, item Item, history, ok bool, err error) {
	o.waiting = false
	if h := o.held; h != nil {
		o.held = nil
		// Read it again: it may have been dropped meanwhile, and its bytes
		// need not be valid any more.
		item, ok, err := o.src.Next(h.item.Lane, h.item.Seq)
		if err != nil || ok && item.Seq == h.item.Seq {
			return nil, item, h.history, ok, err
		}
	}
	if item, ok, err = o.up(laneEvent, &o.event, 0); ok || err != nil {
		return nil, item, item.Seq <= o.eventOld, ok, err
	}
	for _, l := range o.src.Losses() {
		if !o.told[l] {
			return &l, Item{}, false, true, nil
		}
	}
	if given := o.src.Given(laneData); given > o.boundary && given-o.live+1 > uint64(2*o.u.opts.Inflight) && given >= o.live {
		// Live data comes faster than the link takes it: what waits is
		// backlog now, and live is what comes from here on.
		o.split(given)
	}
	if o.lives >= 9 && room {
		if item, ok, err = o.backlog(); ok || err != nil {
			return nil, item, true, ok, err
		}
	}
	if item, ok, err = o.up(laneData, &o.live, 0); ok || err != nil {
		if ok {
			o.lives++
		}
		return nil, item, false, ok, err
	}
	if !room {
		return nil, Item{}, false, false, nil
	}
	item, ok, err = o.backlog()
	return nil, item, true, ok, err
}

// away tells whether a batch is under way, or waits for its receipt.
func (o *order) away(k key) bool {
	_, waits := o.u.awaiting[k]
	return waits || o.flying[k]
}

// up returns the lowest number from *cursor on, at most limit unless that
// is 0, that is not in flight.
func (o *order) up(lane string, cursor *uint64, limit uint64) (Item, bool, error) {
	for {
		item, ok, err := o.src.Next(lane, *cursor)
		if err != nil || !ok || limit != 0 && item.Seq > limit {
			return Item{}, false, err
		}
		*cursor = item.Seq + 1
		if k := (key{lane, item.Seq}); !o.away(k) && !o.u.poison.avoid(k) {
			return item, true, nil
		}
	}
}

// backlog returns the next batch from before the session, if its rate allows.
func (o *order) backlog() (Item, bool, error) {
	if o.backDone || o.boundary == 0 {
		return Item{}, false, nil
	}
	if rate := o.u.rate; rate > 0 {
		now := time.Now()
		o.allowance = min(float64(rate), o.allowance+now.Sub(o.refilled).Seconds()*float64(rate))
		o.refilled = now
		if o.allowance < 0 {
			o.waiting = true
			return Item{}, false, nil
		}
	}
	var item Item
	var ok bool
	var err error
	if o.newestFirst() {
		item, ok, err = o.down()
	} else {
		item, ok, err = o.up(laneData, &o.back, o.boundary)
	}
	if err == nil {
		o.backDone = !ok
	}
	if ok {
		o.lives = 0
	}
	return item, ok, err
}

func (o *order) down() (Item, bool, error) {
	for o.back > 0 {
		item, ok, err := o.src.Prev(laneData, o.back)
		if err != nil || !ok {
			return Item{}, false, err
		}
		o.back = item.Seq - 1
		if k := (key{laneData, item.Seq}); !o.away(k) && !o.u.poison.avoid(k) {
			return item, true, nil
		}
	}
	return Item{}, false, nil
}

// sent charges the backlog's rate.
func (o *order) sent(bytes int, history bool) {
	if history && o.u.rate > 0 {
		o.allowance -= float64(bytes)
	}
}

// due is when the backlog may go on, zero while it does not wait.
func (o *order) due() time.Time {
	if !o.waiting {
		return time.Time{}
	}
	wait := -o.allowance / float64(o.u.rate)
	return o.refilled.Add(time.Duration(wait*float64(time.Second)) + time.Millisecond)
}

// lowest is the lowest number of a lane that is still held or yet to be
// sent, tombstones included: what is missing below it has been told.
func lowest(src Source, lane string) uint64 {
	lo := src.Lowest(lane) // before Losses: a drop in between makes it too low, never too high
	for _, l := range src.Losses() {
		if l.Lane == lane && l.From != 0 && l.From < lo {
			lo = l.From
		}
	}
	return lo
}

// state is the content of the status message. Without a source it says no
// more than who speaks: the will.
func (u *Uplink) state(word string, src Source) payload.State {
	s := payload.State{State: word, Gateway: u.env.Gateway, Boot: u.env.Boot, Epoch: u.env.Epoch,
		Sent: time.Now().UnixMilli(), Version: u.env.Version, Stop: u.env.Stopped}
	if u.broker().open() {
		s.Insecure = "plain-text"
	}
	if src == nil {
		return s
	}
	if u.env.Health != nil {
		s.Health = u.env.Health()
	}
	s.Lo, s.Seq, s.Backlog = map[string]uint64{}, map[string]uint64{}, &payload.Backlog{}
	for _, lane := range []string{laneData, laneEvent} {
		given, low := src.Given(lane), src.Lowest(lane)
		s.Lo[lane], s.Seq[lane] = lowest(src, lane), given
		if low > given {
			continue
		}
		s.Backlog.Batches += given - low + 1
		if item, ok, err := src.Next(lane, low); err == nil && ok && (s.Backlog.OldestT == 0 || item.From < s.Backlog.OldestT) {
			s.Backlog.OldestT = item.From
		}
	}
	return s
}
