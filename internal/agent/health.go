package agent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"tidegate/driver"
	"tidegate/internal/clock"
	"tidegate/internal/status"
	"tidegate/uplink"
)

// turn is how often the health loop looks around.
const turn = time.Second

// summed is after how many turns the reasons are summed up: since when each holds
// is known to that.
const summed = 5

// settled is after how many turns the start is over.
const settled = 5

// stuck is how long the collector may be silent before systemd's watchdog
// is no longer fed; it turns at least once a second.
const stuck = 20 * time.Second

// health knows since when something is not well, looks after the clock and
// feeds the watchdog.
type health struct {
	a       *Agent
	started time.Time
	newer   bool      // the configuration file has changed on disk
	refused string    // why the changed file was not taken
	loaded  time.Time // when it was read

	mu    sync.Mutex
	since map[string]int64 // Unix ms, by code and subject
}

func newHealth(a *Agent) *health {
	return &health{a: a, started: time.Now(), loaded: time.Now(), since: map[string]int64{}}
}

// run turns until ctx ends.
func (h *health) run(ctx context.Context, n notifier) {
	tick := time.NewTimer(clock.ToBeat(turn/2, turn))
	defer tick.Stop()
	watchdog := watchdogPeriod()
	var fed time.Time
	line := ""
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tick.Reset(clock.ToBeat(turn/2, turn))
		}
		if jump, synced, err := h.a.clock.Check(); err != nil {
			h.a.log.Warn("the clock's memory cannot be written", "error", err)
		} else if jump > time.Second || jump < -time.Second {
			h.a.log.Info("the wall clock was stepped", "by", jump, "synced", synced)
		}
		if i%10 == 0 {
			h.look()
		}
		if i == settled {
			if err := trim(); err != nil {
				h.a.log.Debug("memory could not be given back", "error", err)
			}
		}
		if i%summed == 0 {
			if s := h.summary(); s != line {
				line = s
				n.say("STATUS=" + s)
			}
		}
		if watchdog > 0 && time.Since(fed) >= min(watchdog, time.Minute) && h.moves() {
			fed = time.Now()
			n.say("WATCHDOG=1")
		}
	}
}

// moves tells whether the collector, and with it the queue's writer, turned
// within its deadline. Lines and uplink wait on the world and recover by
// themselves; a line that cannot hand over its readings shows here.
func (h *health) moves() bool {
	return time.Since(time.UnixMilli(h.a.collect.beat.Load())) < stuck
}

func (h *health) look() {
	if fi, err := os.Stat(h.a.opt.File); err == nil {
		h.mu.Lock()
		h.newer = fi.ModTime().After(h.loaded)
		h.mu.Unlock()
	}
}

// Refused notes why a changed configuration file was not taken; the status
// shows it until the agent is started with another one.
func (a *Agent) Refused(why string) {
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	a.health.refused = why
}

// word is what the status message says of the agent: ok or degraded.
func (h *health) word() string {
	return healthOf(h.reasons(time.Now()))
}

func healthOf(reasons []status.Reason) string {
	for _, r := range reasons {
		if !r.Warning {
			return "degraded"
		}
	}
	return status.OK
}

func (h *health) summary() string {
	r := h.reasons(time.Now())
	word := healthOf(r)
	switch len(r) {
	case 0:
		return word
	case 1:
		return word + ": " + r[0].Text
	}
	return fmt.Sprintf("%s: %s (and %d more)", word, r[0].Text, len(r)-1)
}

// deadline is how old the newest reading of a device may be.
func deadline(every time.Duration) time.Duration { return max(3*every, 10*time.Second) }

// patience is how long the uplink may be away before that is a reason, and
// how long a device may need for its first answer.
const patience = 10 * time.Second

// reasons lists what is not well at now, the worst first, each with the
// time since when.
func (h *health) reasons(now time.Time) []status.Reason {
	var out []status.Reason
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := map[string]bool{}
	add := func(code, subject, text string) {
		key := code + " " + subject
		seen[key] = true
		if h.since[key] == 0 {
			h.since[key] = now.UnixMilli()
		}
		out = append(out, status.Reason{Code: code, Subject: subject, Since: h.since[key], Text: text})
	}
	b := h.a.queue.Stats()
	if b.LastError != "" {
		add("disk", "buffer", "the buffer cannot be written: "+b.LastError)
	}
	for _, w := range h.a.ways {
		u := w.up.Stats()
		if u.State != uplink.StateOnline && now.Sub(u.Since) > patience {
			code, text := "uplink", "the "+w.subject()+" is away"
			if u.Err != nil {
				code, text = u.Err.Code, text+": "+u.Err.Msg
			}
			add(code, w.subject(), text)
			out[len(out)-1].Warning = !w.Required
		}
		for _, warning := range [...]bool{false, true} {
			for i, days := range lives(&u) {
				if days >= 0 && days < expirySoon && warning == (days >= expiryUrgent) {
					add("cert-expiry", strings.TrimSpace([...]string{"uplink", "authority", "broker"}[i]+" "+w.Name), w.prefix()+expiryText(i, days))
					out[len(out)-1].Warning = warning || !w.Required
				}
			}
		}
		if u.CertWarning != "" {
			add("cert-not-used", w.subject(), w.prefix()+"new certificate files are not used: "+u.CertWarning)
			out[len(out)-1].Warning = !w.Required
		}
	}
	if b.Losses > 0 {
		add("readings-lost", "buffer", fmt.Sprintf("%d tombstones wait to be delivered", b.Losses))
	}
	for _, l := range h.a.lines {
		s := l.Stats()
		if s.Lease != nil {
			add("bus-leased", s.Name, fmt.Sprintf("%s is lent to a %s: nothing is polled, for at most another %v", s.Name, s.Lease.By,
				max(s.Lease.Until.Sub(now), 0).Round(time.Second)))
			continue
		}
		if s.State == "gone" {
			add(codeOf(s.Err), s.Name, errText(s.Err))
			continue
		}
		for _, d := range s.Devices {
			if state, _ := deviceState(&d, h.started, now); state == "stale" {
				text := d.Name + " does not answer"
				if d.LastErr != nil {
					text = errText(d.LastErr)
				}
				add(codeOf(d.LastErr), d.Name, text)
			}
		}
	}
	for key := range h.since {
		if !seen[key] {
			delete(h.since, key)
		}
	}
	return out
}

// deviceState is ok while the newest good answer is within its deadline,
// init before the first one is due, else stale.
func deviceState(d *driver.DeviceStats, started, now time.Time) (state string, limit time.Duration) {
	limit = deadline(d.Every)
	last := d.LastGood
	switch {
	case last.IsZero() && now.Sub(started) < max(limit, patience):
		return "init", limit
	case last.IsZero() || now.Sub(last) > limit:
		return "stale", limit
	}
	return status.OK, limit
}
