package driver

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// cable is an RS-485 line in the time of a synctest bubble: bytes take their
// time, and who talks at another setting is not understood.
type cable struct {
	t       *testing.T
	setting lineMode // of the devices
	mode    lineMode // of the port
	units   map[byte]*sim.Unit
	slow    map[byte]time.Duration // how long a unit thinks; 5 ms if not here
	sent    [][]byte
	coming  []coming
	busy    time.Time // until then something is on the line
}

type coming struct {
	at time.Time
	b  byte
}

func (c *cable) SetMode(m lineMode) error { c.mode = m; return nil }
func (c *cable) Alive() error             { return nil }
func (c *cable) Close() error             { return nil }

func (c *cable) WriteAll(p []byte, _ time.Time) error {
	now := time.Now()
	c.sent = append(c.sent, slices.Clone(p))
	if quiet := c.busy.Add(c.mode.silence()); now.Before(quiet) && c.mode == c.setting && len(c.slow) == 0 {
		c.t.Errorf("request %x: only %v of silence before it, 3.5 characters are %v", p, now.Sub(c.busy), c.mode.silence())
	}
	end := now.Add(time.Duration(len(p)) * c.mode.char())
	c.busy = end
	if c.mode != c.setting || len(p) != 8 {
		return nil
	}
	u := c.units[p[0]]
	if u == nil {
		return nil
	}
	think := 5 * time.Millisecond
	if d, ok := c.slow[p[0]]; ok {
		think = d
	}
	at := end.Add(max(c.mode.silence(), think))
	for _, b := range answerOf(u, p) {
		at = at.Add(c.mode.char())
		c.coming = append(c.coming, coming{at, b})
	}
	c.busy = at
	return nil
}

// answerOf is the RTU frame that a unit answers to a read.
func answerOf(u *sim.Unit, req []byte) []byte {
	addr, count := binary.BigEndian.Uint16(req[2:]), int(binary.BigEndian.Uint16(req[4:]))
	vals, ok := u.Get(profile.Table(req[1]), addr, count)
	out := []byte{req[0], req[1] | 0x80, 2}
	if ok {
		out = []byte{req[0], req[1]}
		if req[1] <= 2 {
			out = append(append(out, byte((count+7)/8)), make([]byte, (count+7)/8)...)
			for i, v := range vals {
				out[3+i/8] |= byte(v&1) << (i % 8)
			}
		} else {
			out = append(out, byte(2*count))
			for _, v := range vals {
				out = binary.BigEndian.AppendUint16(out, v)
			}
		}
	}
	return binary.LittleEndian.AppendUint16(out, crcOf(out))
}

func crcOf(b []byte) uint16 {
	crc := uint16(0xffff)
	for _, x := range b {
		crc ^= uint16(x)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xa001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

func (c *cable) ReadSome(p []byte, deadline time.Time) (int, error) {
	for {
		now, n := time.Now(), 0
		for len(c.coming) > 0 && !c.coming[0].at.After(now) && n < len(p) {
			p[n] = c.coming[0].b
			c.coming, n = c.coming[1:], n+1
		}
		switch {
		case n > 0:
			return n, nil
		case !now.Before(deadline):
			return 0, ErrTimeout
		case len(c.coming) > 0 && c.coming[0].at.Before(deadline):
			time.Sleep(time.Until(c.coming[0].at))
		default:
			time.Sleep(time.Until(deadline))
		}
	}
}

// scanCable scans a cable and returns what was found and every byte sent.
func scanCable(t *testing.T, c *cable, o ScanOptions) *ScanResult {
	t.Helper()
	at, _ := parseConnect("rtu:///dev/cable")
	s, err := newScan(at, "rtu:///dev/cable", o, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.t = t
	s.open = func(_ context.Context, m lineMode) (stream, error) { c.mode = m; return c, nil }
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	onlyReads(t, c.sent)
	return &s.res
}

// onlyReads fails for every request that is not a read of one unit.
func onlyReads(t *testing.T, sent [][]byte) {
	t.Helper()
	if len(sent) == 0 {
		t.Error("nothing was sent: this check has seen nothing")
	}
	for _, r := range sent {
		if len(r) != 8 || r[0] == 0 || r[0] > 247 || r[1] < 1 || r[1] > 4 || crcOf(r[:6]) != binary.LittleEndian.Uint16(r[6:]) {
			t.Errorf("% x is not a read of one unit", r)
		}
	}
}

func mode(t testing.TB, s string) lineMode {
	m, err := parseLine(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// meter is a unit with the registers of a profile.
func meter(t testing.TB, name string, seed uint64) *sim.Unit {
	t.Helper()
	p, err := library(t).Get(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sim.NewMeter(p, seed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	u := sim.NewSlave().Unit(1)
	if err := m.Fill(u); err != nil {
		t.Fatal(err)
	}
	return u
}

func library(t testing.TB) *profile.Library {
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

func profiles(t testing.TB) (out []*profile.Profile) {
	lib := library(t)
	for _, n := range lib.Names() {
		p, err := lib.Get(n)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func ids(r *ScanResult) (out []int) {
	for _, u := range r.Units {
		out = append(out, u.ID)
	}
	return out
}

// scanBudget is how long a scan may take on the wire.
const scanBudget = 75 * time.Second

// TestScanBudget: three units among 247 at each of the 18 settings, found,
// told apart and in time; and 247 units at each of them, found in time. The
// time is that of the bubble: what the bytes and the waiting take.
func TestScanBudget(t *testing.T) {
	all := profiles(t)
	if len(usualLines) != 18 {
		t.Fatalf("%d usual settings", len(usualLines))
	}
	for _, line := range usualLines {
		t.Run(strings.ReplaceAll(line, " ", "-"), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				empty := sim.NewSlave().Unit(1)
				c := &cable{setting: mode(t, line), units: map[byte]*sim.Unit{7: meter(t, "eastron-sdm120", 7), 21: empty, 247: meter(t, "abb-b-series", 3)}}
				r := scanCable(t, c, ScanOptions{Profiles: all})
				if r.Line != line || !slices.Equal(ids(r), []int{7, 21, 247}) || r.Units[1].Answer != "exception 2" {
					t.Fatalf("line %q, units %v", r.Line, ids(r))
				}
				if r.Took > scanBudget {
					t.Errorf("3 units took %v, allowed are %v", r.Took, scanBudget)
				}
				if u := r.Units[2]; u.Best != 1 || u.Matches[0].Profile != "abb-b-series" || len(u.Matches[0].Evidence) < 2 {
					t.Errorf("unit 247: %+v", u)
				}
				if u := r.Units[1]; len(u.Matches) != 0 {
					t.Errorf("a unit without registers fits %+v", u.Matches)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				c := &cable{setting: mode(t, line), units: map[byte]*sim.Unit{}}
				for id := 1; id <= 247; id++ {
					c.units[byte(id)] = sim.NewSlave().Unit(1)
				}
				r := scanCable(t, c, ScanOptions{})
				if r.Line != line || len(r.Units) != 247 {
					t.Fatalf("line %q, %d units", r.Line, len(r.Units))
				}
				if r.Took > scanBudget {
					t.Errorf("247 units took %v, allowed are %v", r.Took, scanBudget)
				}
			})
		})
	}
}

// TestScanTies: devices that nothing parts are listed together; a device with
// one read more that only it explains is plain.
func TestScanTies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cable{setting: mode(t, "9600 8N1"), units: map[byte]*sim.Unit{1: meter(t, "eastron-sdm120", 1), 2: meter(t, "xy-md02", 2)}}
		u := c.units[1]
		u.Set(profile.Input, 2, 0, 0, 0, 0) // as a real one answers for phases it does not have
		r := scanCable(t, c, ScanOptions{Profiles: profiles(t), IDs: []int{1, 2, 3}})
		if len(r.Units) != 2 {
			t.Fatalf("units %v", ids(r))
		}
		var names []string
		for _, m := range r.Units[0].Matches[:r.Units[0].Best] {
			names = append(names, m.Profile)
		}
		// The SDM630 is proven by fewer reads, but it explains all of them: its phase 2 may be off.
		if !slices.Contains(names, "eastron-sdm120") || !slices.Contains(names, "eastron-sdm230") || !slices.Contains(names, "eastron-sdm630") {
			t.Errorf("siblings that answer alike must be a tie, got %v", names)
		}
		if u := r.Units[1]; u.Best != 1 || u.Matches[0].Profile != "xy-md02" {
			t.Errorf("unit 2: %+v", u)
		}
	})
}

// TestScanZeros: a device that answers 0 to everything is no device we know.
func TestScanZeros(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sim.NewSlave().Unit(1)
		for _, tab := range []profile.Table{profile.Coils, profile.Discrete, profile.Holding, profile.Input} {
			u.Define(tab, 0, 65536)
		}
		c := &cable{setting: mode(t, "9600 8N1"), units: map[byte]*sim.Unit{1: u}}
		r := scanCable(t, c, ScanOptions{Profiles: profiles(t), IDs: []int{1}})
		if len(r.Units) != 1 || len(r.Units[0].Matches) != 0 {
			t.Errorf("%+v", r.Units)
		}
	})
}

// TestScanSlow: a unit that answers after its time is found all the same, and
// so is one that knows input registers only.
func TestScanSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cable{setting: mode(t, "9600 8E1"), slow: map[byte]time.Duration{9: 101 * time.Millisecond},
			units: map[byte]*sim.Unit{3: meter(t, "eastron-sdm120", 1), 9: meter(t, "xy-md02", 2)}}
		r := scanCable(t, c, ScanOptions{IDs: []int{3, 9, 11, 12}})
		if !slices.Equal(ids(r), []int{3, 9}) {
			t.Fatalf("units %v", ids(r))
		}
	})
}

// TestScanNobody: the facts decide what is likely.
func TestScanNobody(t *testing.T) {
	for _, c := range []struct {
		name  string
		noise func(*cable)
		code  string
	}{
		{"silent", func(*cable) {}, "bus-silent"},
		{"reversed", func(c *cable) {
			for i := range 60 {
				c.coming = append(c.coming, coming{time.Now().Add(time.Duration(i) * 30 * time.Millisecond), byte(255 * (i % 2))})
			}
		}, "wires-swapped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := &cable{setting: mode(t, "300 8N1"), units: map[byte]*sim.Unit{}}
				c.noise(line)
				r := scanCable(t, line, ScanOptions{})
				if e := r.Silence(); e.Code != c.code || e.Seen == "" || e.Likely == "" || e.Try == "" {
					t.Errorf("%s: %+v", e.Code, e)
				}
				if r.Tried != 18 {
					t.Errorf("%d settings tried", r.Tried)
				}
			})
		})
	}
}

// TestScanOtherMaster: who hears somebody else ask sends nothing.
func TestScanOtherMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cable{t: t, setting: mode(t, "9600 8N1")}
		for i := range 20 {
			req := []byte{5, 4, 0, 0, 0, 2}
			req = binary.LittleEndian.AppendUint16(req, crcOf(req))
			for k, b := range req {
				c.coming = append(c.coming, coming{time.Now().Add(time.Duration(i)*100*time.Millisecond + time.Duration(k)*time.Millisecond), b})
			}
		}
		at, _ := parseConnect("rtu:///dev/cable")
		s, err := newScan(at, "rtu:///dev/cable", ScanOptions{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.open = func(_ context.Context, m lineMode) (stream, error) { c.mode = m; return c, nil }
		err = s.run(t.Context())
		var e *Error
		if !errors.As(err, &e) || e.Code != "other-master" || !strings.Contains(e.Seen, "unit 5") {
			t.Fatalf("got %v", err)
		}
		if len(c.sent) != 0 {
			t.Errorf("%d requests were sent into another master's line", len(c.sent))
		}
	})
}

// TestScanTalker: a device that talks by itself is recognised by its frames,
// at its own setting.
func TestScanTalker(t *testing.T) {
	for _, name := range []string{"plantower-pms5003", "nmea-gnss-vehicle"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, err := library(t).Get(name)
				if err != nil {
					t.Fatal(err)
				}
				var frames [][]byte
				for _, e := range p.Examples {
					switch {
					case e.Reject:
					case e.Text != "":
						frames = append(frames, []byte("\r\n"+e.Text+"\r\n"))
					default:
						frames = append(frames, e.Frame)
					}
				}
				c := &talkingCable{cable: cable{t: t, setting: mode(t, p.Line)}, frames: frames}
				at, _ := parseConnect("serial:///dev/cable")
				s, err := newScan(at, "serial:///dev/cable", ScanOptions{Profiles: profiles(t)}, nil)
				if err != nil {
					t.Fatal(err)
				}
				s.open = func(_ context.Context, m lineMode) (stream, error) { c.mode = m; return c, nil }
				if err := s.run(t.Context()); err != nil {
					t.Fatal(err)
				}
				if len(s.res.Talkers) != 1 || s.res.Talkers[0].Line != p.Line || s.res.Line != p.Line {
					t.Fatalf("%+v at %q, want %s at %s", s.res.Talkers, s.res.Line, name, p.Line)
				}
				if tk := s.res.Talkers[0]; !slices.Contains(tk.Profiles, name) {
					t.Errorf("%+v, want %s", tk, name)
				}
				if len(c.sent) != 0 {
					t.Errorf("%d requests were sent to a device that talks by itself", len(c.sent))
				}
			})
		})
	}
}

// talkingCable says a frame every 300 ms, garbled for whoever listens at
// another setting.
type talkingCable struct {
	cable
	frames [][]byte
	n      int
	next   time.Time
}

func (c *talkingCable) ReadSome(p []byte, deadline time.Time) (int, error) {
	now := time.Now()
	if wait := c.next.Sub(now); wait > 0 {
		if now.Add(wait).After(deadline) {
			time.Sleep(time.Until(deadline))
			return 0, ErrTimeout
		}
		time.Sleep(wait)
	}
	c.next = time.Now().Add(300 * time.Millisecond)
	f := c.frames[c.n%len(c.frames)]
	c.n++
	n := copy(p, f)
	if c.mode != c.setting {
		for i := range p[:n] {
			p[i] = p[i]<<1 | p[i]>>5 ^ 0x55
		}
	}
	return n, nil
}

func TestScanOptions(t *testing.T) {
	for _, c := range []struct {
		connect string
		o       ScanOptions
	}{
		{"rtu:///dev/x", ScanOptions{IDs: []int{0}}},
		{"rtu:///dev/x", ScanOptions{IDs: []int{248}}},
		{"tcp://h:1", ScanOptions{IDs: []int{256}}},
		{"rtu:///dev/x", ScanOptions{Lines: []string{"9600"}}},
		{"bogus", ScanOptions{}},
	} {
		_, err := Scan(t.Context(), c.connect, c.o, nil)
		if !errors.Is(err, ErrRequest) {
			t.Errorf("%s %+v: %v", c.connect, c.o, err)
		}
	}
	if n := len(deepLines()); n != 32 {
		t.Errorf("%d deep settings", n)
	}
}

// TestScanLateEvidence: the late answer to one read is never taken for the
// answer to the next one of the same unit, function and size.
func TestScanLateEvidence(t *testing.T) {
	for _, late := range []time.Duration{105, 150, 210, 260, 310} {
		synctest.Test(t, func(t *testing.T) {
			u := sim.NewSlave().Unit(1)
			c := &cable{t: t, setting: mode(t, "9600 8N1"), slow: map[byte]time.Duration{1: late * time.Millisecond}, units: map[byte]*sim.Unit{1: u}}
			for a := range 40 {
				u.Set(profile.Input, uint16(a), uint16(1000+a))
			}
			at, _ := parseConnect("rtu:///dev/cable")
			s, err := newScan(at, "rtu:///dev/cable", ScanOptions{IDs: []int{1}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.mode, s.mode = c.setting, c.setting
			s.w.char, s.w.gap = c.mode.char(), c.mode.silence()
			s.w.attach(c, time.Now())
			heard := &interview{id: 1, wait: 100 * time.Millisecond, data: map[place][]byte{}, patience: 2}
			for a := range 40 {
				data, err := s.read(t.Context(), heard, place{profile.Input, uint16(a), 1})
				if err != nil {
					t.Fatal(err)
				}
				if a > 8 {
					heard.wait, heard.silent, heard.patience = 100*time.Millisecond, 0, 0
				}
				if data != nil && int(binary.BigEndian.Uint16(data)) != 1000+a {
					t.Errorf("answers after %v ms: input %d reads %d", int(late), a, binary.BigEndian.Uint16(data))
				}
			}
		})
	}
}
