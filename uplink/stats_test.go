package uplink

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/internal/sim"
)

func TestStatsWhileTesting(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{Echo: true})
	src := newStore(t)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	eventually(t, 5*time.Second, "online", func() bool { return u.Stats().State == StateOnline })
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 200 {
			src.add(laneData, 1)
			time.Sleep(time.Millisecond)
		}
	})
	for range 5 {
		steps := u.Test(context.Background())
		for _, s := range steps {
			if s.State == StepFail || s.State == StepNot || s.State == StepUnknown {
				t.Errorf("%+v", s)
			}
		}
		if steps[stepConnect].Text != "through the running agent's connection" {
			t.Errorf("%+v", steps[stepConnect])
		}
	}
	wg.Wait()
	eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	if n, _ := b.Connections(); n != 1 {
		t.Errorf("%d connections: the test threw the agent out", n)
	}
	complete(t, seqs(t, b, laneData), 200)
}

// TestOutageSince: the attempts of one outage do not begin it anew, so an
// agent that tries every second does not look healthy between two attempts.
func TestOutageSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUplink(t, "mqtts://127.0.0.1:1", nil)
		at := time.Now() // of the last change
		for _, c := range []struct {
			state string
			fresh bool
		}{{StateConnecting, false}, {StateAway, false}, {StateConnecting, false}, {StateOnline, true},
			{StateOnline, false}, {StateAway, true}, {StateConnecting, false}, {StateAway, false}, {StateStopped, true}} {
			time.Sleep(time.Second)
			if c.fresh {
				at = time.Now()
			}
			u.setState(c.state, nil)
			if s := u.Stats(); s.State != c.state || !s.Since.Equal(at) {
				t.Errorf("%s: state %s since %v, want %v", c.state, s.State, s.Since, at)
			}
		}
	})
}
