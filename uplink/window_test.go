package uplink

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/internal/sim"
)

// line is a link in simulated time: bytes go one after the other, and each
// message is acknowledged a round trip after its last byte.
type line struct {
	rate   float64 // bytes a second
	rtt    time.Duration
	free   time.Time // the line has sent all
	now    time.Time
	flying []flight
	window window
	bytes  int
	worst  time.Duration // longest wait of a message for the line
	sent   int
}

// drain sends messages of a size as fast as the window allows, at most 100 at once.
func (l *line) drain(size int, lasts time.Duration) {
	l.worst, l.sent = 0, 0
	for end := l.now.Add(lasts); l.now.Before(end); {
		for len(l.flying) < 100 && l.window.room(l.now, l.bytes, false) {
			if l.free.Before(l.now) {
				l.free = l.now
			}
			l.worst = max(l.worst, l.free.Sub(l.now))
			l.free = l.free.Add(time.Duration(float64(size) / l.rate * float64(time.Second)))
			l.bytes += size
			l.sent += size
			l.flying = append(l.flying, flight{at: l.now, size: size, under: l.bytes})
			l.flying[len(l.flying)-1].loss = &Loss{T0: l.free.Add(l.rtt).UnixNano()} // when it comes back
		}
		f := l.flying[0]
		l.flying = l.flying[1:]
		l.now = time.Unix(0, f.loss.T0)
		l.bytes -= f.size
		l.window.acked(f.size, f.under, l.now.Sub(f.at), l.now)
	}
}

func TestWindow(t *testing.T) {
	for _, x := range []struct {
		name  string
		rate  float64
		rtt   time.Duration
		size  int
		worst time.Duration
		share float64 // of the rate, at least
	}{
		{"64 kbit/s, small messages", 8000, 20 * time.Millisecond, 1400, time.Second, 0.97},
		{"16 kB/s, 300 ms", 16000, 300 * time.Millisecond, 1400, time.Second, 0.97},
		{"64 kbit/s, messages of 2.5 s", 8000, 300 * time.Millisecond, 20000, 2600 * time.Millisecond, 0.85},
		{"long and fat", 2e6, 300 * time.Millisecond, 20000, 900 * time.Millisecond, 0.97},
		{"fast and near", 2e7, 100 * time.Microsecond, 20000, 600 * time.Millisecond, 0.95},
	} {
		l := line{rate: x.rate, rtt: x.rtt, now: time.Unix(1e9, 0), window: newWindow()}
		l.drain(x.size, 10*time.Second) // finds the link
		for range 5 {
			l.drain(x.size, time.Minute)
			share := float64(l.sent) / 60 / x.rate
			t.Logf("%s: %.3f of the link, wait %s", x.name, share, l.worst)
			if l.worst > x.worst || share < x.share {
				t.Errorf("%s: wait of %s (at most %s), %.3f of the link (at least %.2f)", x.name, l.worst, x.worst, share, x.share)
			}
		}
	}
}

// TestWindowFollows: a link that becomes slow, or longer, is felt within
// moments, and one that is fast again, too.
func TestWindowFollows(t *testing.T) {
	l := line{rate: 2e6, rtt: 20 * time.Millisecond, now: time.Unix(1e9, 0), window: newWindow()}
	l.drain(1400, 10*time.Second)
	l.rate = 8000
	l.drain(1400, 30*time.Second) // what was under way has to go
	l.drain(1400, 30*time.Second)
	if l.worst > time.Second {
		t.Errorf("slow: messages wait %s", l.worst)
	}
	l.rate, l.rtt = 2e5, 800*time.Millisecond
	l.drain(1400, 90*time.Second) // until the old round trip is forgotten
	l.drain(1400, 30*time.Second)
	if share := float64(l.sent) / 30 / (1400 * 100 / 0.8); share < 0.8 {
		t.Errorf("longer: %.2f of what 100 messages in a round trip are", share)
	}
}

// TestPublishRate in simulated time: in no second more messages than the cap,
// of whatever kind, and hardly fewer while something waits; the next
// connection does not begin anew.
func TestPublishRate(t *testing.T) {
	const rate = 20
	synctest.Test(t, func(t *testing.T) {
		src := newStore(t).add(laneData, 100).add(laneEvent, 10)
		src.losses = []Loss{{Lane: laneData, From: 1, To: 1, Why: "full"}}
		u := newUplink(t, "mqtt://127.0.0.1:1", func(o *Options) { o.PublishRate = rate })
		u.tune.status = 300 * time.Millisecond
		u.tune.meta = 500 * time.Millisecond
		ln := &pipes{make(chan net.Conn)}
		b := sim.NewScript(ln, sim.ScriptOptions{})
		for range 2 {
			ours, theirs := net.Pipe()
			ln.conns <- theirs
			raw := &rawConn{Conn: ours, meter: &u.meter, limit: time.Minute}
			l, problem := u.connect(t.Context(), newWire(raw, raw, u.broker()), true)
			if problem != nil {
				t.Fatal(problem)
			}
			s := &session{u: u, src: src, link: l, began: time.Now(), metaSent: map[string]bool{},
				order: newOrder(u, src), scout: newScout(u, l), window: newWindow(), progress: time.Now()}
			ctx, cancel := context.WithTimeout(t.Context(), 2900*time.Millisecond)
			if err := s.run(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			if err := s.leave(); err != nil { // says goodbye
				t.Error(err)
			}
			l.end(true)
			s.settle(nil)
		}
		b.Close()
		kinds, got := map[string]int{}, b.Received()
		for i, a := range got {
			kinds[a.Topic]++
			if i < rate {
				continue
			}
			if d := a.At.Sub(got[i-rate].At); d < time.Second {
				t.Errorf("%d messages within %s", rate+1, d)
			}
		}
		t.Logf("%d messages: %v", len(got), kinds)
		if lasted := got[len(got)-1].At.Sub(got[0].At); float64(len(got)) < 0.95*rate*lasted.Seconds() {
			t.Errorf("%d messages in %s, %d a second are allowed", len(got), lasted, rate)
		}
		if len(kinds) != 4 {
			t.Errorf("not all kinds were said: %v", kinds)
		}
	})
}

// pipes is a listener that accepts what it is given.
type pipes struct{ conns chan net.Conn }

func (p *pipes) Accept() (net.Conn, error) {
	if c, ok := <-p.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p *pipes) Close() error   { close(p.conns); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestPace in made-up time: the cap spaces messages.
func TestPace(t *testing.T) {
	u := newUplink(t, "mqtt://127.0.0.1:1", func(o *Options) { o.PublishRate = 100 })
	now := time.Unix(1e9, 0)
	u.pace(now)
	if want := now.Add(10 * time.Millisecond); !u.paced.Equal(want) {
		t.Errorf("the next message at %s, want %s", u.paced, want)
	}
}
