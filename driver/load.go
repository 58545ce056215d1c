package driver

import (
	"time"

	"tidegate/driver/profile"
)

// Load is what the polls of a line cost, computed from the plan that Run
// follows: the same blocks, gaps, pauses and wake bytes. Meters that are read
// out as a whole (M-Bus, IEC 62056-21) count with the shortest and the longest
// telegram that was recorded for their profile. Devices that talk by
// themselves have none, nor have those on a serial server of unknown speed.
type Load struct {
	Devices  int           // that are polled
	Requests int           // in one round of all devices
	Round    time.Duration // what one round takes if devices answer after the usual time
	Least    float64       // share of the line's time if every device answered at once
	Share    float64       // share of the line's time as planned; 1 = always busy
	// Absent is how long the line waits for a device that is not there, each
	// time that one is tried: the longest of their timeouts.
	Absent time.Duration
}

// What a device takes to answer, where Options does not say.
const (
	serialTurnaround  = 20 * time.Millisecond
	networkTurnaround = 5 * time.Millisecond
)

// Load computes what the polls of this line cost. Devices without a map are
// left out.
func (o *Options) Load() Load {
	var l Load
	at, err := parseConnect(o.Connect)
	if err != nil || at.kind == kindListen && !at.serial {
		return l
	}
	lim := o.Limits()
	timeout := o.Timeout
	if timeout == 0 {
		timeout = defaultTimeout(at)
	}
	turnaround := o.Turnaround
	if turnaround == 0 {
		turnaround = serialTurnaround
		if at.kind == kindTCP {
			turnaround = networkTurnaround
		}
	}
	silence := lim.Silence
	if !at.serial && at.kind != kindTCP {
		silence = 1750 * time.Microsecond
	}
	for i := range o.Devices {
		d := &o.Devices[i]
		if d.Map != nil && d.Map.Handshake.Asks() && at.kind == kindListen {
			least, planned, requests := o.dialogue(d, lim)
			l.Devices++
			l.Requests += requests
			l.Round += planned
			l.Least += least.Seconds() / d.every().Seconds()
			l.Share += planned.Seconds() / d.every().Seconds()
			l.Absent = max(l.Absent, d.timeout(timeout))
			continue
		}
		if d.Map == nil || d.Map.Frames != nil {
			continue
		}
		wait := max(silence, o.Gap, d.Map.Gap)
		var wake, once time.Duration
		if w := d.wake(); w != nil && at.kind != kindTCP {
			wake = time.Duration(len(w.Bytes))*lim.Char + max(w.Pause, wait)
			if w.Idle > 0 { // awake from one request to the next, and perhaps to the next round
				if wake, once = 0, wake; d.every() < w.Idle {
					once = 0
				}
			}
		}
		least, planned := once, once
		for _, r := range d.Map.Usual().Plan(lim) {
			bytes := time.Duration(exchangeChars(at.kind, r)) * lim.Char
			least += bytes + wait + silence + wake
			planned += bytes + wait + max(silence, turnaround) + wake
			l.Requests++
		}
		l.Devices++
		l.Round += planned
		l.Least += least.Seconds() / d.every().Seconds()
		l.Share += planned.Seconds() / d.every().Seconds()
		l.Absent = max(l.Absent, d.timeout(timeout))
	}
	return l
}

// dialogue is how long a readout takes at least, and as planned, and with how
// many requests.
func (o *Options) dialogue(d *Device, lim profile.Limits) (least, planned time.Duration, requests int) {
	short, long := 0, 0
	speed := lim.Char // of the data
	shake := d.Map.Handshake
	for _, raw := range d.Map.Recordings() {
		if n := len(raw); short == 0 || n < short {
			short = n
		}
		if long = max(long, len(raw)); !d.Map.MBus() && len(raw) > 4 && raw[4] >= '0' && raw[4] <= '6' {
			best := 300 << (raw[4] - '0')
			for _, most := range [...]int{shake.MaxBaud, d.MaxBaud} {
				if most > 0 {
					best = min(best, most)
				}
			}
			speed = min(speed, 10*time.Second/time.Duration(best))
		}
	}
	chars := func(n int) time.Duration { return time.Duration(n) * lim.Char }
	if !d.Map.MBus() {
		if long == 0 {
			short, long = 20*len(d.Map.Points), 20*len(d.Map.Points)
		}
		const ident, sets = 20, 5 + 6 // request and acknowledgement
		least = chars(ident+sets+len(d.Address)) + time.Duration(short)*speed + 2*20*time.Millisecond
		planned = chars(ident+sets+len(d.Address)) + time.Duration(long)*speed + 2*200*time.Millisecond
		if shake.Wake > 0 {
			least, planned = least+shake.Wake+wokenAfter, planned+shake.Wake+wokenAfter
		}
		return least, planned, 2
	}
	if long == 0 {
		short, long = 27, min(27+7*len(d.Map.Points), 261)
	}
	requests = 1
	bytes := 5
	if d.Address != "" { // it is initialised, selected and asked each time
		requests, bytes = 3, bytes+5+1+17+1
	}
	// A meter begins to answer after 11 to 330 bit times and 50 ms.
	turnaround := 30*lim.Char + 50*time.Millisecond
	if o.Turnaround > 0 {
		turnaround = o.Turnaround
	}
	wait := max(lim.Silence, o.Gap, d.Map.Gap)
	least = chars(bytes+short+requests) + time.Duration(requests)*wait
	planned = chars(bytes+long) + time.Duration(requests)*(wait+turnaround)
	return least, planned, requests
}

// defaultTimeout is how long the devices of a line get where nothing is said.
func defaultTimeout(at endpoint) time.Duration {
	if at.serial {
		return 500 * time.Millisecond
	}
	return time.Second
}

// Fits returns a round period for all devices of the line at which the polls
// fit, and those of an absent device with them.
func (l Load) Fits() time.Duration {
	need := time.Duration(float64(l.Round) / (1 - 1.0/absentShare))
	for _, step := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second, time.Minute} {
		if need <= 20*step || step == time.Minute {
			return (need + step - 1) / step * step
		}
	}
	return need
}

// Crowded says whether there is no room for the tries of a device that is
// absent: then the others are late.
func (l Load) Crowded() bool { return l.Share > 1-1.0/absentShare+1e-9 }

// exchangeChars counts the characters of a request and its answer.
func exchangeChars(k kind, r profile.Request) int {
	if k == kindASCII {
		return 17 + 11 + 2*r.Size()
	}
	return 8 + 5 + r.Size()
}
