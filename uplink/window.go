package uplink

import "time"

// window bounds the bytes that wait for their PUBACK, and with them the
// messages: as many as keep the link busy, and few enough that a live message
// waits about queueTarget behind them. It goes by delay, as FAST TCP does
// (Wei, Jin, Low, Hegde, IEEE/ACM ToN 14(6), 2006) with the delay target of
// LEDBAT (RFC 6817): a message that was the last of f bytes under way and took
// r says that the link moves f bytes in r. With f*(base+target)/r bytes, base
// being the round trip of an empty link, the queue would be as long as the
// target. The window shrinks to that at once, and grows to it by no more than
// to twice what was under way, so what never was under way allows nothing.
//
// A full link hides base. When it has not been seen for baseLife, one message
// goes alone, as BBR does to find its RTprop (draft-cardwell-iccrg-bbr).
type window struct {
	bytes float64
	base  time.Duration // 0: not known
	seen  time.Time     // when base was last confirmed
}

const (
	windowStart = 16 << 10 // as TCP begins (RFC 6928)
	windowMost  = 16 << 20
	queueTarget = 500 * time.Millisecond
	baseLife    = time.Minute
)

func newWindow() window { return window{bytes: windowStart} }

// room tells whether a message may join those under way. The backlog leaves a
// fifth to live data.
func (w *window) room(now time.Time, under int, backlog bool) bool {
	most := w.bytes
	if w.base != 0 && now.Sub(w.seen) > baseLife {
		most = 0
	}
	if backlog {
		most *= 0.8
	}
	return under == 0 || float64(under) < most
}

// acked learns from a message of size bytes that made it under bytes when it
// was sent, and came back after rtt.
func (w *window) acked(size, under int, rtt time.Duration, at time.Time) {
	if rtt <= 0 || under <= 0 {
		return
	}
	if w.base == 0 || rtt <= w.base || under == size && at.Sub(w.seen) > baseLife {
		w.base, w.seen = rtt, at
	}
	proven := float64(under)
	fits := proven * float64(w.base+queueTarget) / float64(rtt)
	if rtt > w.base+queueTarget {
		w.bytes = fits
		return
	}
	w.bytes = min(windowMost, max(w.bytes, min(fits, 2*proven)))
}
