package driver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// TestRS485 looks at what the kernel is given (struct serial_rs485 of
// linux/serial.h: 32 bytes), and that a port that cannot switch says so.
func TestRS485(t *testing.T) {
	t.Parallel()
	if n := unsafe.Sizeof(serialRS485{}); n != 32 {
		t.Errorf("%d bytes", n)
	}
	for _, c := range []struct {
		r    RS485
		want [3]uint32
	}{
		{RS485{}, [3]uint32{0b00011, 0, 0}},
		{RS485{RTS: "low", DelayBefore: 2 * time.Millisecond, DelayAfter: 3 * time.Millisecond}, [3]uint32{0b00101, 2, 3}},
		{RS485{RTS: "high", HearSelf: true}, [3]uint32{0b10011, 0, 0}},
	} {
		if s := c.r.raw(); [3]uint32{s.flags, s.before, s.after} != c.want {
			t.Errorf("%+v: %+v", c.r, s)
		}
	}
	_, path := openPTY(t)
	m, _ := parseLine("9600 8N1")
	_, err := openPort(path, m, &RS485{})
	var e *Error
	if !errors.As(err, &e) || e.Code != "rs485" || !errors.Is(err, unix.ENOTTY) || !errors.Is(err, ErrGone) {
		t.Errorf("a pty: %v", err)
	}
	st, err := openPort(path, m, nil) // the port was given back
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	got := map[string]bool{}
	o := Options{Connect: "tcp://h", RS485: &RS485{DelayAfter: 1500 * time.Microsecond}, Devices: []Device{{Name: "a", Gap: time.Minute, Wake: &profile.Wake{}, Points: make([]profile.Point, 1)}}}
	o.Validate(func(path, _, _ string) { got[path] = true })
	for _, p := range []string{"rs485", "rs485.delay_after", "devices.a.gap", "devices.a.wake.pause"} {
		if !got[p] {
			t.Errorf("no problem at %s: %v", p, got)
		}
	}
}

// sleeper is a bus whose devices hear a request only if a zero byte and a
// pause came before it, unless they were spoken to a moment ago.
type sleeper struct {
	pacedBus
	pause, idle time.Duration
	mu          sync.Mutex
	woken       time.Time
	last        time.Time
	heard, deaf int
	wakes       int
}

func (s *sleeper) WriteAll(b []byte, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if slices.Equal(b, []byte{0}) {
		s.woken = now.Add(s.mode.char())
		s.wakes++
		return nil
	}
	if now.Sub(s.woken) < s.pause && (s.idle == 0 || now.Sub(s.last) > s.idle) || now.Sub(s.woken) > 10*s.pause && (s.idle == 0 || now.Sub(s.last) > s.idle) {
		s.deaf++
		return nil
	}
	s.heard++
	s.last = now
	return s.pacedBus.WriteAll(b, until)
}

// TestWake: a device that sleeps is woken by its bytes and given its pause;
// with idle, only after it was left alone.
func TestWake(t *testing.T) {
	for _, idle := range []time.Duration{0, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			bus := &sleeper{pacedBus: pacedBus{turn: 5 * time.Millisecond}, pause: 15 * time.Millisecond, idle: idle}
			bus.mode, _ = parseLine("9600 8N1")
			m := spread(t, 20, 60) // two blocks
			o := Options{Name: "paced", Connect: "rtu:///dev/paced", Line: "9600 8N1",
				Devices: []Device{{Name: "d", Unit: 1, Every: 10 * time.Second, Map: m, Points: m.Points,
					Wake: &profile.Wake{Bytes: profile.Hex{0}, Pause: 15 * time.Millisecond, Idle: idle}}}}
			l, err := Open(o, Env{})
			if err != nil {
				t.Fatal(err)
			}
			l.dial = func(context.Context) (stream, error) { return bus, nil }
			var got sink
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := l.Run(ctx, got.emit); err != nil {
				t.Error(err)
			}
			want := bus.heard
			if idle > 0 {
				want /= 2
			}
			if bus.deaf > 0 || bus.heard < 12 || bus.wakes != want || got.count(0, telemetry.Good, 0) < 6 {
				t.Errorf("idle %v: %d heard, %d not, woken %d times, want %d", idle, bus.heard, bus.deaf, bus.wakes, want)
			}
		})
	}
}
