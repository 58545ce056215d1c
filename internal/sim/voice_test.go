package sim

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

func library(t *testing.T) *profile.Library {
	t.Helper()
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

// decoded returns the good readings in bytes of a serial device.
func decoded(p *profile.Profile, b []byte) (out []telemetry.Reading) {
	s := p.NewScanner()
	take := func(raw []byte) {
		for _, r := range p.DecodeFrame(raw, 0, nil) {
			if r.Quality == telemetry.Good {
				out = append(out, r)
			}
		}
	}
	s.Feed(b, take)
	s.Flush(take)
	return out
}

// TestVoices: what a serial profile of the library says as a simulation, the
// profile itself understands.
func TestVoices(t *testing.T) {
	lib := library(t)
	built, replayed := 0, 0
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil || p.Transport != "serial" {
			continue
		}
		v, err := NewVoice(p, max(p.Unit, 1), 7)
		if err != nil {
			t.Logf("not simulated: %v", err)
			continue
		}
		if v.Replays() {
			replayed++
		} else {
			built++
		}
		var said []byte
		for n := int64(1); n <= 8; n++ {
			b, _ := v.frame(n)
			said = append(said, b...)
		}
		if len(decoded(p, said)) == 0 {
			t.Errorf("%s: nothing of what it says is understood: % x", name, said)
		}
	}
	if built < 3 || replayed < 3 {
		t.Errorf("%d profiles with frames that are built, %d with recordings", built, replayed)
	}
}

// TestVoiceHoldAndFaults: a point keeps its value, and frames go wrong as told.
func TestVoiceHoldAndFaults(t *testing.T) {
	p, err := library(t).Get("plantower-pms5003")
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVoice(p, 1, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Hold("pm2_5", "17"); err != nil {
		t.Fatal(err)
	}
	whole, _ := v.frame(1)
	found := false
	for _, r := range decoded(p, whole) {
		found = found || p.Points[r.Point].Name == "pm2_5" && r.Value.String() == "17"
	}
	if !found {
		t.Errorf("pm2_5 is not 17 in % x", whole)
	}
	if v.Hold("pm9", "1") == nil || v.Hold("pm2_5", "much") == nil || v.Hold("pm2_5", "70000") == nil {
		t.Error("what cannot be held is held")
	}
	for _, f := range []string{"silent", "short", "garble"} {
		rule, err := ParseRule(f)
		if err != nil {
			t.Fatal(err)
		}
		v.Plan = Rules(1, rule)
		if b, _ := v.frame(1); len(decoded(p, b)) != 0 {
			t.Errorf("%s: the frame is good: % x", f, b)
		}
	}
	v.Plan = Rules(1, Rule{Fault: Fault{Kind: NoiseBefore}, Share: 1})
	if b, _ := v.frame(1); len(decoded(p, b)) == 0 || len(b) == len(whole) {
		t.Error("noise before a frame spoils it, or there is none")
	}
}

// TestVoiceAnswers: a device that is asked says nothing by itself, and
// answers what its profile asks.
func TestVoiceAnswers(t *testing.T) {
	lib := library(t)
	tried := 0
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil || p.Transport != "serial" || !p.Polled() {
			continue
		}
		v, err := NewVoice(p, max(p.Unit, 1), 7)
		if err != nil || v.signsOn { // TestReadoutVoice tries those
			continue
		}
		tried++
		a, b := net.Pipe()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- v.Serve(ctx, b) }()
		buf := make([]byte, 4096)
		a.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, _ := a.Read(buf); n > 0 {
			t.Errorf("%s speaks without being asked: % x", name, buf[:n])
		}
		var said []byte
		for _, m := range v.asks {
			if _, err := a.Write(m); err != nil {
				t.Fatal(err)
			}
			a.SetReadDeadline(time.Now().Add(quiet))
			for {
				n, err := a.Read(buf)
				said = append(said, buf[:n]...)
				if err != nil {
					break
				}
			}
		}
		if len(decoded(p, said)) == 0 {
			t.Errorf("%s: asked %x, nothing of the answer is understood: % x", name, v.asks, said)
		}
		cancel()
		a.Close()
		<-done
	}
	if tried == 0 {
		t.Error("no profile that asks was tried")
	}
}

// TestMeterIsRecognised: a simulated Modbus device passes the detect reads of
// its own profile, and a point that is held is what a master reads.
func TestMeterIsRecognised(t *testing.T) {
	lib := library(t)
	n := 0
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil || len(p.Signs()) == 0 {
			continue
		}
		m, err := NewMeter(p, 5, time.Now())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		u := &Unit{}
		if err := m.Fill(u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range p.Signs() {
			n++
			values, have := u.Get(s.Request.Table, s.Request.Address, int(s.Request.Count))
			if seen, ok, _ := s.Judge(wireBytes(s.Request.Table, values)); !have || !ok {
				t.Errorf("%s: %v %d: %q", name, s.Request.Table, s.Request.Address, seen)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d reads", n)
	}
	p, _ := lib.Get("pzem-016")
	m, err := NewMeter(p, 5, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Hold("voltage_l1", "231.4"); err != nil {
		t.Fatal(err)
	}
	u := &Unit{}
	if err := m.Fill(u); err != nil {
		t.Fatal(err)
	}
	if v, _ := u.Get(profile.Input, 0, 1); v[0] != 2314 {
		t.Errorf("voltage register %d", v[0])
	}
	u.Fix(profile.Input, 0, 1)
	if v, _ := u.Get(profile.Input, 0, 1); v[0] != 1 {
		t.Errorf("a register that was fixed reads %d", v[0])
	}
}

func TestParseRule(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Rule
	}{
		{"silent", Rule{Fault{Kind: Silent}, 0, 1}},
		{"late", Rule{Fault{Kind: Late, Delay: 300 * time.Millisecond}, 0, 1}},
		{"late:1s:0.5@7", Rule{Fault{Kind: Late, Delay: time.Second}, 7, 0.5}},
		{"garble:0.01", Rule{Fault{Kind: Garbled}, 0, 0.01}},
		{"exception:2", Rule{Fault{Kind: Exception, Code: 2}, 0, 1}},
		{"exception:6:0.25@255", Rule{Fault{Kind: Exception, Code: 6}, 255, 0.25}},
		{"other-unit@3", Rule{Fault{Kind: OtherUnit}, 3, 1}},
	} {
		if got, err := ParseRule(c.in); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"", "none", "bogus", "late:soon", "silent:2", "silent:0", "exception:0", "exception:x", "silent@0", "silent@x", "garble:0.1:0.2"} {
		if r, err := ParseRule(in); err == nil || !strings.Contains(err.Error(), "fault") {
			t.Errorf("%q is %+v, %v", in, r, err)
		}
	}
	hits := 0
	plan := Rules(3, Rule{Fault{Kind: Silent}, 7, 0.5}, Rule{Fault{Kind: Echo}, 0, 1})
	for range 1000 {
		if plan(Request{Unit: 7}).Kind == Silent {
			hits++
		}
		if k := plan(Request{Unit: 8}).Kind; k != Echo {
			t.Fatalf("unit 8 gets %v", k)
		}
	}
	if hits < 400 || hits > 600 {
		t.Errorf("%d of 1000 with a share of 0.5", hits)
	}
}
