package account

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"
)

// maxShown is how many ranges and numbers of a kind a report names.
const maxShown = 20

// inFlight is how many numbers a gateway may have under way at once.
const inFlight = 100

// The verdicts.
const (
	Complete         = "complete"
	CompleteButTombs = "complete except tombstones"
	Incomplete       = "INCOMPLETE"
	NothingReceived  = "nothing received"
	schema           = "tidegate.verify/1"
	restart          = "restart"
)

// Report is the account at one moment.
type Report struct {
	Schema  string `json:"schema"` // tidegate.verify/1
	Verdict string `json:"verdict"`
	// Broken: a number is lost without a tombstone, or came with two
	// different contents. Late numbers are not a broken promise.
	Broken bool `json:"broken"`
	Sums
	Messages   int64  `json:"messages"`   // all that were added
	Ignored    int64  `json:"ignored"`    // those that say nothing of numbers
	Unreadable int64  `json:"unreadable"` // those that could not be read or kept
	Lanes      []Lane `json:"lanes"`      // by gateway, epoch and lane
}

// Sums are counts of one lane or of all. A number is counted once: as
// received, late, dropped or lost.
type Sums struct {
	Expected  int64 `json:"expected"`  // numbers from the first to the highest known
	Received  int64 `json:"received"`  // numbers received
	Repeats   int64 `json:"repeats"`   // messages whose number had come before
	Late      int64 `json:"late"`      // not received, still held by the gateway
	Dropped   int64 `json:"dropped"`   // not received, a tombstone says why
	Lost      int64 `json:"lost"`      // not received, no longer held, in no tombstone
	Conflicts int64 `json:"conflicts"` // messages whose number had come with other readings
	Readings  int64 `json:"readings"`  // in received numbers
}

// Lane is the account of one lane of one epoch of one gateway.
type Lane struct {
	Gateway string `json:"gw"`
	Epoch   string `json:"ep"`
	Lane    string `json:"lane"`
	First   uint64 `json:"first"` // the account begins with this number; 0: no number yet
	Last    uint64 `json:"last"`  // highest number known to have been given
	Lo      uint64 `json:"lo"`    // below it nothing will come any more
	Boot    uint32 `json:"boot"`  // highest start counter seen
	Sums
	T0 int64 `json:"t0"` // time of the first and last reading, Unix ms; 0: none
	T1 int64 `json:"t1"`
	// Tombstones are summed up by reason. LateAt, LostAt and ConflictsAt
	// name at most the first 20.
	Tombstones  []Tombstone `json:"tombstones"`
	LateAt      []Range     `json:"late_at"`
	LostAt      []Range     `json:"lost_at"`
	ConflictsAt []uint64    `json:"conflicts_at"`
}

// Tombstone sums up the tombstones of one lane and reason.
type Tombstone struct {
	Why      string `json:"why"`
	Numbers  int64  `json:"numbers"`  // closed and not received; with why restart many were never used
	Batches  int64  `json:"batches"`  // as told by the gateway; -1: unknown
	Readings int64  `json:"readings"` // as told by the gateway; -1: unknown
	T0       int64  `json:"t0"`
	T1       int64  `json:"t1"`
}

// Report draws up the account. It changes nothing: more messages may follow.
func (b *Book) Report() Report {
	r := Report{Schema: schema, Messages: b.messages, Ignored: b.ignored, Unreadable: b.unreadable, Lanes: []Lane{}}
	for k, l := range b.lanes {
		if l.high == 0 && len(l.dropped) == 0 {
			continue
		}
		lane := l.report(b.midway)
		lane.Gateway, lane.Epoch, lane.Lane = k.gateway, k.epoch, k.lane
		r.Lanes = append(r.Lanes, lane)
		r.Sums.add(lane.Sums)
	}
	sort.Slice(r.Lanes, func(i, k int) bool {
		a, b := &r.Lanes[i], &r.Lanes[k]
		return cmp.Or(cmp.Compare(a.Gateway, b.Gateway), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Lane, b.Lane)) < 0
	})
	r.Broken = r.Lost > 0 || r.Conflicts > 0
	switch {
	case r.Expected == 0:
		r.Verdict = NothingReceived
	case r.Broken || r.Late > 0:
		r.Verdict = Incomplete
	case r.tombs():
		r.Verdict = CompleteButTombs
	default:
		r.Verdict = Complete
	}
	return r
}

func (r *Report) tombs() bool {
	for _, l := range r.Lanes {
		for _, t := range l.Tombstones {
			// A restart that closed only numbers that came took nothing.
			if t.Numbers > 0 || t.Batches > 0 || t.Readings > 0 {
				return true
			}
		}
	}
	return false
}

func (s *Sums) add(o Sums) {
	s.Expected += o.Expected
	s.Received += o.Received
	s.Repeats += o.Repeats
	s.Late += o.Late
	s.Dropped += o.Dropped
	s.Lost += o.Lost
	s.Conflicts += o.Conflicts
	s.Readings += o.Readings
}

func (l *lane) report(midway bool) Lane {
	out := Lane{First: 1, Last: l.high, Lo: l.lo, Boot: l.boot, T0: l.first, T1: l.last,
		Tombstones: []Tombstone{}, ConflictsAt: append([]uint64{}, l.conflicting...)}
	out.Received, out.Repeats, out.Conflicts, out.Readings = l.batches, l.repeats, l.conflicts, l.readings
	var missing set
	if l.high > 0 {
		missing = set{{1, l.high}}.minus(l.received)
	} else {
		out.First = 0
	}
	if midway {
		missing, out.First = l.since(missing)
	}
	out.Expected = out.Received + missing.count()
	for _, why := range l.reasons() {
		d := l.dropped[why]
		left := missing.minus(d.numbers)
		t := Tombstone{Why: why, Numbers: missing.count() - left.count(),
			Batches: d.batches, Readings: d.readings, T0: d.t0, T1: d.t1}
		if d.unknown {
			t.Batches, t.Readings = -1, -1
		}
		out.Tombstones = append(out.Tombstones, t)
		out.Dropped += t.Numbers
		missing = left
	}
	lost, late := missing.split(l.lo)
	out.Lost, out.Late = lost.count(), late.count()
	out.LostAt, out.LateAt = first(lost), first(late)
	return out
}

// reasons returns the reasons in order; restart last, because it closes
// numbers wholesale and another tombstone knows better.
func (l *lane) reasons() []string {
	out := slices.Sorted(maps.Keys(l.dropped))
	if i := slices.Index(out, restart); i >= 0 {
		out = append(slices.Delete(out, i, i+1), restart)
	}
	return out
}

// since leaves out of the missing numbers those that may have come before
// the recording began: all below the lowest one received, and the window of
// live data and of backlog that was under way at the first message.
func (l *lane) since(missing set) (left set, begin uint64) {
	begin = l.firstSeq + 1
	if len(l.received) > 0 {
		begin = min(begin, l.received[0].From)
	}
	var before set
	for _, r := range []Range{
		{1, begin - 1},
		{max(l.firstLo, 1), min(l.firstLo+inFlight-1, l.firstSeq)},
		{max(l.firstSeq, inFlight) - inFlight + 1, l.firstSeq},
	} {
		if r.From <= r.To {
			before.add(r.From, r.To)
		}
	}
	return missing.minus(before), begin
}

func first(s set) []Range {
	return append([]Range{}, s[:min(len(s), maxShown)]...)
}

// Text returns the report as a short table of at most 80 columns and, as the
// last line, the verdict.
func (r Report) Text() string {
	var b strings.Builder
	gateway := ""
	for _, l := range r.Lanes {
		if g := l.Gateway + ", epoch " + l.Epoch; g != gateway {
			gateway = g
			fmt.Fprintf(&b, "%s\n  lane  numbers           received repeats  late dropped  lost conflicts\n", g)
		}
		fmt.Fprintf(&b, "  %-5s %-17s %8d %7d %5d %7d %5d %9d\n", l.Lane, l.numbers(),
			l.Received, l.Repeats, l.Late, l.Dropped, l.Lost, l.Conflicts)
		if l.Readings > 0 {
			fmt.Fprintf(&b, "        %d readings%s\n", l.Readings, span(l.T0, l.T1))
		}
		for _, t := range l.Tombstones {
			fmt.Fprintf(&b, "        dropped (%s): %s%s\n", t.Why, t.what(), span(t.T0, t.T1))
		}
		list(&b, "late", l.LateAt, l.Late)
		list(&b, "LOST", l.LostAt, l.Lost)
		if len(l.ConflictsAt) > 0 {
			fmt.Fprintf(&b, "        CONFLICT: number %d came with other readings\n", l.ConflictsAt[0])
		}
	}
	if r.Unreadable > 0 {
		fmt.Fprintf(&b, "%d of %d messages could not be read\n", r.Unreadable, r.Messages)
	}
	b.WriteString(r.verdictLine())
	b.WriteByte('\n')
	return b.String()
}

// numbers is the range that the account covers.
func (l Lane) numbers() string {
	if l.First > l.Last || l.Last == 0 {
		return "none"
	}
	return Range{l.First, l.Last}.String()
}

func (r Report) verdictLine() string {
	if r.Verdict != Incomplete {
		return r.Verdict
	}
	var why []string
	add := func(n int64, what string) {
		if n > 0 {
			why = append(why, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(r.Lost, "lost without a tombstone")
	add(r.Conflicts, "in conflict")
	add(r.Late, "late")
	return Incomplete + ": " + strings.Join(why, ", ")
}

func (t Tombstone) what() string {
	if t.Batches < 0 {
		return fmt.Sprintf("at most %d numbers", t.Numbers)
	}
	return fmt.Sprintf("%d numbers, %d readings", t.Numbers, t.Readings)
}

func list(b *strings.Builder, word string, at []Range, n int64) {
	if n == 0 {
		return
	}
	fmt.Fprintf(b, "        %s: ", word)
	var shown int64
	for i, r := range at {
		if i == 4 {
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(b, r)
		shown += int64(r.To - r.From + 1)
	}
	if shown < n {
		fmt.Fprintf(b, " and %d more", n-shown)
	}
	b.WriteByte('\n')
}

// String returns the range as people write it: 7 or 7..9.
func (r Range) String() string {
	if r.From == r.To {
		return fmt.Sprint(r.From)
	}
	return fmt.Sprintf("%d..%d", r.From, r.To)
}

func span(t0, t1 int64) string {
	if t0 == 0 || t1 == 0 {
		return ""
	}
	stamp := func(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05Z") }
	return "\n          " + stamp(t0) + " to " + stamp(t1)
}

// JSON returns the report as one JSON object, indented, with a line end.
func (r Report) JSON() []byte {
	b, _ := json.Marshal(r) // holds nothing that JSON cannot write
	return append(b, '\n')
}
