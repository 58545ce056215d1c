package driver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

// leasedBus is a running line with the units 1 and 2 that are polled and 9
// that is not configured. answered counts what the units were asked for.
func leasedBus(t *testing.T) (l *Line, s *sink, ex *exchanges) {
	t.Helper()
	master, path, err := sim.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	slave := sim.NewSlave()
	ex = &exchanges{}
	slave.Observe(ex.take)
	slave.Unit(1).Set(profile.Holding, 0, 11, 12)
	slave.Unit(2).Set(profile.Holding, 0, 21, 22)
	slave.Unit(9).Set(profile.Holding, 0, 91)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- slave.ServeRTU(ctx, master, sim.Wire{Only: "19200 8E1"}) }()
	t.Cleanup(func() { cancel(); <-done; master.Close() })
	o := Options{Name: "bus", Connect: "rtu://" + path, Line: "19200 8E1", Timeout: time.Second}
	for i, n := range []string{"one", "two"} {
		o.Devices = append(o.Devices, Device{Name: n, Unit: 1 + i, Every: 50 * time.Millisecond, Map: custom(t, 2), Base: uint32(2 * i)})
		o.Devices[i].Points = o.Devices[i].Map.Points
	}
	l = open(t, o)
	s = &sink{}
	return l, s, ex
}

type exchanges struct {
	mu   sync.Mutex
	seen []sim.Exchange
}

func (e *exchanges) take(x sim.Exchange) {
	e.mu.Lock()
	e.seen = append(e.seen, x)
	e.mu.Unlock()
}

func (e *exchanges) count(unit byte) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.seen {
		if x.Unit == unit {
			n++
		}
	}
	return n
}

// TestLease: a scan on a running line finds what is on it, the line is lent
// meanwhile and says so, and polls go on afterwards as if nothing had been.
func TestLease(t *testing.T) {
	t.Parallel()
	l, s, _ := leasedBus(t)
	s.check = func(r telemetry.Reading) {
		if want := []string{"11", "12", "21", "22"}[r.Point]; r.Quality == telemetry.Good && r.Value.String() != want {
			t.Errorf("point %d reads %s, want %s", r.Point, r.Value, want)
		}
	}
	run(t, l, s.emit)
	good := func() (n uint64) {
		for _, d := range l.Stats().Devices {
			n += d.Good
		}
		return n
	}
	until(t, 5*time.Second, "polls", func() bool { return good() > 4 })
	var lent *Lease
	var refused error
	var before uint64
	steps := 0
	r, err := l.Scan(t.Context(), time.Minute, ScanOptions{IDs: []int{1, 2, 5, 9, 12}, Timeout: 300 * time.Millisecond}, func(ScanStep) {
		if steps++; steps == 2 {
			lent, before = l.Stats().Lease, good()
			_, refused = l.Exchange(t.Context(), 1, profile.Holding, 0, 1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := good(); before == 0 || after > before+2 {
		t.Errorf("%d polls while the line was lent", after-before)
	}
	if lent == nil || lent.By != "scan" || time.Until(lent.Until) < 30*time.Second {
		t.Errorf("lease %+v", lent)
	}
	var e *Error
	if !errors.As(refused, &e) || e.Code != "bus-leased" || !errors.Is(refused, ErrBusy) {
		t.Errorf("a read meanwhile: %v", refused)
	}
	if r.Line != "19200 8E1" || !slices.Equal(ids(r), []int{1, 2, 9}) || r.Tried != 1 {
		t.Errorf("%+v", r)
	}
	if l.Stats().Lease != nil {
		t.Error("the line is still lent")
	}
	now := good()
	until(t, 5*time.Second, "polls after the scan", func() bool { return good() > now+10 })
	skipped := uint64(0)
	for _, d := range l.Stats().Devices {
		skipped += d.Skipped
		if d.Row != 0 {
			t.Errorf("%s fails: %v", d.Name, d.LastErr)
		}
	}
	if skipped == 0 {
		t.Error("the polls that fell into the lease are not counted")
	}
}

// TestLeaseEnds: a lease is over when the caller goes away, when its time is
// over, when Run is stopped and when the line is closed; each within one
// exchange.
func TestLeaseEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		most time.Duration
		end  func(l *Line, gone, stop context.CancelFunc)
		cut  bool
		is   error
	}{
		{"caller gone", time.Minute, func(_ *Line, gone, _ context.CancelFunc) { gone() }, false, context.Canceled},
		{"time over", 300 * time.Millisecond, func(*Line, context.CancelFunc, context.CancelFunc) {}, true, nil},
		{"run stopped", time.Minute, func(_ *Line, _, stop context.CancelFunc) { stop() }, false, ErrClosed},
		{"closed", time.Minute, func(l *Line, _, _ context.CancelFunc) { go l.Close() }, false, ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, s, _ := leasedBus(t)
			ctx, stop := context.WithCancel(context.Background())
			ran := make(chan error, 1)
			go func() { ran <- l.Run(ctx, s.emit) }()
			defer func() { stop(); <-ran }()
			until(t, 5*time.Second, "polls", func() bool { return l.Stats().Devices[0].Good > 1 })
			mine, gone := context.WithCancel(context.Background())
			defer gone()
			began := time.Time{}
			r, err := l.Scan(mine, c.most, ScanOptions{Timeout: 200 * time.Millisecond}, func(s ScanStep) {
				if began.IsZero() && s.Of == 247 {
					began = time.Now()
					c.end(l, gone, stop)
				}
			})
			if !errors.Is(err, c.is) || (err != nil) != (c.is != nil) || r.Cut != c.cut {
				t.Errorf("cut %v, error %v; want %v, %v", r.Cut, err, c.cut, c.is)
			}
			if c.cut {
				return
			}
			if began.IsZero() {
				t.Fatal("the scan was over before it was disturbed: this test has shown nothing")
			}
			if took := time.Since(began); took > 20*time.Second { // 247 units take 50 s
				t.Errorf("the lease came back after %v", took)
			}
			if c.name == "caller gone" {
				n := l.Stats().Devices[0].Good
				until(t, 5*time.Second, "polls after the lease", func() bool { return l.Stats().Devices[0].Good > n+3 })
			}
		})
	}
}

// TestScanPTY: the setting is found on a real pty whose other end understands
// one setting only.
func TestScanPTY(t *testing.T) {
	for _, line := range []string{"9600 8N1", "9600 8E1", "19200 8O1", "57600 8N2"} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			master, path, err := sim.OpenPTY()
			if err != nil {
				t.Fatal(err)
			}
			slave := sim.NewSlave()
			slave.Unit(4).Set(profile.Holding, 0, 1)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- slave.ServeRTU(ctx, master, sim.Wire{Only: line}) }()
			t.Cleanup(func() { cancel(); <-done; master.Close() })
			r, err := Scan(t.Context(), "rtu://"+path, ScanOptions{IDs: []int{4, 5}, Timeout: 300 * time.Millisecond,
				Lines: []string{"9600 8N1", "9600 8E1", "115200 8N1", "19200 8E1", "19200 8O1", "9600 8N2", "57600 8N1", "57600 8N2"}}, nil)
			if err != nil || r.Line != line || !slices.Equal(ids(r), []int{4}) {
				t.Errorf("%+v, %v", r, err)
			}
			if d := slave.Stats().Damaged; line != "9600 8N1" && d == 0 {
				t.Error("no request at another setting was garbled: this test has shown nothing")
			}
		})
	}
}
