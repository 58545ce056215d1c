package uplink

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestBackoff counts the attempts over a simulated day without a network, as
// configured by default: never more than 60 in any hour, never more than two
// keep-alives apart.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUplink(t, "mqtt://127.0.0.1:1", nil)
		u.tune = u.tuning()
		var at []time.Time
		for began := time.Now(); time.Since(began) < 24*time.Hour; {
			at = append(at, time.Now())
			d := u.delay(len(at) - 1)
			if d > 2*u.opts.Keepalive {
				t.Fatalf("a delay of %s", d)
			}
			time.Sleep(d)
		}
		for i, first := 0, 0; i < len(at); i++ {
			for at[i].Sub(at[first]) >= time.Hour {
				first++
			}
			if n := i - first + 1; n > 60 {
				t.Fatalf("%d attempts within an hour", n)
			}
		}
		if len(at) < 800 {
			t.Errorf("%d attempts in a day", len(at))
		}
	})
}

// TestWait: the wait before the next attempt begins with the last
// acknowledgement of the connection that was lost, and brings no two attempts
// closer together than without.
func TestWait(t *testing.T) {
	u := newUplink(t, "mqtt://127.0.0.1:1", nil)
	u.tune = u.tuning()
	most, now := 2*u.opts.Keepalive, time.Unix(1e9, 0)
	for range 10_000 {
		attempt := rand.IntN(20)
		least := min(u.tune.backoff<<attempt, most) / 2
		acked := now.Add(-rand.N(2 * time.Minute))
		began := acked.Add(-rand.N(2*time.Minute) - 1)
		next := now.Add(u.wait(attempt, began, acked, now))
		if next.Sub(began) < least || next.Sub(now) < u.tune.backoff/2 {
			t.Fatalf("attempt %d, %s after the one before, %s from now", attempt, next.Sub(began), next.Sub(now))
		}
		if next.Sub(acked) > most && next.Sub(now) > u.tune.backoff {
			t.Fatalf("attempt %d, %s after the last acknowledgement, %s from now", attempt, next.Sub(acked), next.Sub(now))
		}
		// Nothing was heard on this one.
		if d := u.wait(attempt, now, acked, now); d < least || d > 2*least {
			t.Fatalf("attempt %d: a wait of %s", attempt, d)
		}
	}
}

// TestPingTimeout adds up what the client takes to notice a dead idle link.
func TestPingTimeout(t *testing.T) {
	u := newUplink(t, "mqtt://127.0.0.1:1", nil)
	for keep := time.Second; keep <= 20*time.Minute; keep += time.Second {
		u.opts.Keepalive = keep
		look := keep / 4
		if keep > 10*time.Second {
			look = 5 * time.Second
		}
		if worst := keep + look + u.pingTimeout() + look; worst > 2*keep || u.pingTimeout() <= 0 {
			t.Errorf("keep-alive %s: noticed after %s", keep, worst)
		}
	}
}
