package driver

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// parse makes a profile of YAML text.
func parse(t testing.TB, src string) *profile.Profile {
	t.Helper()
	p, problems := profile.Parse(nil, "test.yaml", []byte(src))
	for _, x := range problems {
		if !x.Warning {
			t.Fatalf("%d: %s: %s", x.Line, x.Path, x.Msg)
		}
	}
	return p
}

const asked = `
name: asked
status: community
transport: serial
unit: 7
frames: {kind: counted, sync: FF, size: 5, check: {kind: sum8, from: 1}}
talk:
  init: [{hex: "EE {unit}"}]
  ask: [{hex: "A0 {unit:2} 01"}]
points: {co2: {at: 2, type: u16, unit: ppm}}
`

const talks = `
name: talks
status: community
transport: serial
frames: {kind: counted, sync: 42 4D, size: 5, check: sum8}
points: {pm: {at: 2, type: u16}}
`

// answers plays devices on the master's side: it cuts requests of four bytes
// and answers those of a unit; the others it leaves.
func answers(rw io.ReadWriter, unit byte, asks *[256]atomic.Int64, inits *atomic.Int64) {
	var in []byte
	buf := make([]byte, 64)
	for {
		n, err := rw.Read(buf)
		if err != nil {
			return
		}
		for in = append(in, buf[:n]...); ; {
			if i := bytes.IndexByte(in, 0xee); i == 0 && len(in) >= 2 {
				inits.Add(1)
				in = in[2:]
				continue
			}
			if len(in) < 4 || in[0] != 0xa0 {
				break
			}
			k := asks[in[2]].Add(1)
			if in[2] == unit {
				b := []byte{0xff, 7, byte(k >> 8), byte(k), 0}
				b[4] = b[1] + b[2] + b[3]
				rw.Write(b)
			}
			in = in[4:]
		}
	}
}

// TestPollAndListen: on one line a device talks, one is asked and one does
// not answer. Each has its values, its quality and its state, and what the
// talker says is never taken for an answer.
func TestPollAndListen(t *testing.T) {
	t.Parallel()
	master, path := openPTY(t)
	var asks [256]atomic.Int64
	var inits atomic.Int64
	go answers(master, 7, &asks, &inits)
	a, b := parse(t, asked), parse(t, talks)
	l := open(t, Options{Name: "mix", Connect: "serial://" + path, Timeout: 300 * time.Millisecond, Devices: []Device{
		{Name: "asked", Map: a, Every: 25 * time.Millisecond, Base: 0},
		{Name: "silent", Map: a, Unit: 9, Every: 50 * time.Millisecond, Base: 1},
		{Name: "talks", Map: b, Every: time.Second, Base: 2},
	}})
	var got sink
	run(t, l, got.emit)
	stop := make(chan struct{})
	go func() {
		frame := []byte{0x42, 0x4d, 0, 1, 0x90}
		for {
			select {
			case <-stop:
				return
			case <-time.After(7 * time.Millisecond):
				master.Write(frame)
			}
		}
	}()
	defer close(stop)
	until(t, 5*time.Second, "thirty answers, as many frames, one absent", func() bool {
		return got.count(0, telemetry.Good, 0) >= 30 && got.count(2, telemetry.Good, 0) >= 30 &&
			got.count(1, telemetry.Comm, telemetry.CauseAbsent) == 1
	})
	got.mu.Lock()
	last := int64(0)
	for _, g := range got.groups {
		for _, r := range g.Readings {
			switch {
			case r.Quality != telemetry.Good:
			case r.Point == 2 && r.Value.Mantissa() != 1:
				t.Errorf("the talker says %v", r.Value)
			case r.Point == 0 && r.Value.Mantissa() <= last:
				t.Errorf("answer %v after %d", r.Value, last)
			case r.Point == 0:
				last = r.Value.Mantissa()
			}
		}
	}
	got.mu.Unlock()
	s := l.Stats()
	if n := inits.Load(); n < 2 {
		t.Errorf("%d init messages for two devices", n)
	}
	if s.Devices[0].State != "ok" || s.Devices[1].State != "absent" || s.Devices[2].State != "ok" || s.Devices[0].RTT <= 0 {
		t.Errorf("%+v", s.Devices)
	}
	master.Close()
	until(t, 3*time.Second, "gone", func() bool {
		return got.count(0, telemetry.Comm, telemetry.CauseGone) == 1 && got.count(2, telemetry.Comm, telemetry.CauseGone) == 1
	})
}
