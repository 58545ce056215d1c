package driver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

// writable is a device with something of every kind that can be written.
func writable(t testing.TB) *profile.Profile {
	t.Helper()
	at := func(a int) *int { return &a }
	dec := func(s string) profile.Decimal {
		d, err := profile.ParseDecimal(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	w := &profile.Write{}
	points := []profile.Point{
		{Name: "pump", Coil: at(3), Write: w},
		{Name: "valve", Coil: at(4), Invert: true, Write: &profile.Write{Function: 15}},
		{Name: "limit", Holding: at(0), Write: &profile.Write{Min: dec("10"), Max: dec("90"), Step: dec("5")}},
		{Name: "setpoint", Holding: at(1), Type: "f32", Order: "CDAB", Write: &profile.Write{Min: dec("30"), Max: dec("80")}},
		{Name: "energy", Holding: at(3), Type: "u64", Write: w},
		{Name: "offset", Holding: at(7), Type: "s16", Scale: dec("0.1"), NA: []profile.Marker{"0x8000"}, Range: []profile.Decimal{dec("-20"), dec("20")}, Write: w},
		{Name: "mode", Holding: at(8), Enum: map[int64]string{0: "off", 1: "heat", 2: "cool"}, Write: w},
		{Name: "flag", Holding: at(9), Bit: at(4), Write: w},
		{Name: "level", Holding: at(9), Bits: []int{8, 11}, Write: w},
		{Name: "name", Holding: at(10), Type: "string", Length: 4, Write: w},
		{Name: "sized", Holding: at(20), Type: "s16", SF: "21", Write: w},
		{Name: "both", Holding: at(30), Type: "u32", Write: &profile.Write{Function: 23}},
		{Name: "one16", Holding: at(40), Write: &profile.Write{Function: 16}},
		{Name: "fixed", Holding: at(50)},
		{Name: "hidden", Holding: at(60), Write: w},
		{Name: "high", Holding: at(70), Type: "u8", Byte: "high", Write: w},
	}
	p, issues := profile.Custom("writable", points, nil)
	if len(issues) > 0 {
		t.Fatal(issues)
	}
	return p
}

// writeLine is a line to a simulated device on the medium named.
func writeLine(t *testing.T, medium string, s *sim.Slave, m *profile.Profile) *Line {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	o := Options{Name: "w", Timeout: 2 * time.Second, Devices: []Device{{Name: "d", Unit: 7, Every: time.Hour, Map: m, Points: m.Points}}}
	switch medium {
	case "rtu", "ascii":
		master, path := openPTY(t)
		o.Connect, o.Line = medium+"://"+path, "115200 8N1"
		wg.Go(func() {
			if medium == "rtu" {
				s.ServeRTU(ctx, master, sim.Wire{})
			} else {
				s.ServeASCII(ctx, master, sim.Wire{})
			}
		})
	default:
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o.Connect = medium + "://" + ln.Addr().String()
		wg.Go(func() {
			if medium == "tcp" {
				s.ServeTCP(ctx, ln)
			} else {
				s.ServeRTUOverTCP(ctx, ln, sim.Wire{})
			}
		})
	}
	l, err := Open(o, Env{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); cancel(); wg.Wait() })
	return l
}

func writeSlave() *sim.Slave {
	s := sim.NewSlave()
	u := s.Unit(7)
	u.Define(profile.Coils, 0, 16)
	u.Define(profile.Holding, 0, 100)
	u.Set(profile.Holding, 0, 50)
	u.Set(profile.Holding, 9, 0xF00F)
	u.Set(profile.Holding, 20, 0, 0xFFFF) // factor 10^-1
	u.Set(profile.Holding, 70, 0x1234)
	return s
}

// TestWritePoint writes every kind of point over every framing and looks into
// the device's memory; each is read back.
func TestWritePoint(t *testing.T) {
	for _, medium := range []string{"rtu", "ascii", "rtu+tcp", "tcp"} {
		t.Run(medium, func(t *testing.T) {
			t.Parallel()
			s, m := writeSlave(), writable(t)
			l := writeLine(t, medium, s, m)
			for _, c := range []struct {
				point, value, old string
				fc                uint8
				table             profile.Table
				addr              uint16
				want              string // registers or bits in the device
			}{
				{"pump", "on", "false", 5, profile.Coils, 3, "0001"},
				{"pump", "off", "true", 5, profile.Coils, 3, "0000"},
				{"valve", "false", "true", 15, profile.Coils, 4, "0001"},
				{"limit", "55", "50", 6, profile.Holding, 0, "0037"},
				{"setpoint", "55.5", "0", 16, profile.Holding, 1, "0000425e"},
				{"energy", "18446744073709551615", "0", 16, profile.Holding, 3, "ffffffffffffffff"},
				{"offset", "-12.3", "0.0", 6, profile.Holding, 7, "ff85"},
				{"mode", "cool", "off", 6, profile.Holding, 8, "0002"},
				{"mode", "1", "cool", 6, profile.Holding, 8, "0001"},
				{"flag", "true", "false", 22, profile.Holding, 9, "f01f"},
				{"level", "5", "0", 22, profile.Holding, 9, "f51f"},
				{"name", "pump-1", "-", 16, profile.Holding, 10, "70756d702d310000"},
				{"sized", "12.5", "0.0", 6, profile.Holding, 20, "007dffff"},
				{"both", "305419896", "0", 23, profile.Holding, 30, "12345678"},
				{"one16", "7", "0", 16, profile.Holding, 40, "0007"},
				{"high", "255", "18", 22, profile.Holding, 70, "ff34"},
			} {
				i := slices.IndexFunc(m.Points, func(p profile.Point) bool { return p.Name == c.point })
				v, err := m.ParseValue(i, c.value)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				dry, err := l.WritePoint(ctx, "d", c.point, v, WriteOptions{DryRun: true})
				if err != nil || dry.Sent || dry.Function != c.fc {
					t.Errorf("%s dry: %+v, %v", c.point, dry, err)
				}
				got, err := l.WritePoint(ctx, "d", c.point, v, WriteOptions{})
				cancel()
				if err != nil {
					t.Errorf("%s: %v", c.point, err)
					continue
				}
				if got.Function != c.fc || got.Old.Value.String() != c.old || !got.Verified || !got.Sent || got.RTT <= 0 || got.Table != c.table || got.Address != c.addr {
					t.Errorf("%s: %+v", c.point, got)
				}
				regs, _ := s.Unit(7).Get(c.table, c.addr, len(c.want)/4)
				if is := fmt.Sprintf("%04x", regs); hex.EncodeToString(words(regs...)) != c.want {
					t.Errorf("%s: the device holds %s, want %s", c.point, is, c.want)
				}
			}
		})
	}
}

// TestWriteRefused: what must not be written is not sent; the codes.
func TestWriteRefused(t *testing.T) {
	t.Parallel()
	s, m := writeSlave(), writable(t)
	s.Unit(7).Trap(profile.Holding, 60, 1, sim.Fault{Kind: sim.Exception, Code: 4})
	l := writeLine(t, "tcp", s, m)
	var mu sync.Mutex
	var wrote []byte
	s.Observe(func(e sim.Exchange) {
		mu.Lock()
		defer mu.Unlock()
		if e.Function > 4 {
			wrote = append(wrote, e.Function)
		}
	})
	num := func(n int64, dec uint8) telemetry.Value { return telemetry.IntValue(n, dec) }
	for _, c := range []struct {
		device, point string
		v             telemetry.Value
		code          string
		is            error
	}{
		{"d", "fixed", num(1, 0), "read-only", profile.ErrReadOnly},
		{"d", "limit", num(5, 0), "write-limits", profile.ErrLimits},
		{"d", "limit", num(95, 0), "write-limits", profile.ErrLimits},
		{"d", "limit", num(52, 0), "write-limits", profile.ErrLimits},
		{"d", "limit", telemetry.BoolValue(true), "write-value", profile.ErrValue},
		{"d", "setpoint", telemetry.Float64Value(80.0001), "write-limits", profile.ErrLimits},
		{"d", "setpoint", telemetry.TextValue("55"), "write-value", profile.ErrValue},
		{"d", "offset", num(1234, 2), "write-value", profile.ErrValue},
		{"d", "offset", num(-32768, 1), "write-value", profile.ErrValue},
		{"d", "offset", num(201, 1), "write-limits", profile.ErrLimits},
		{"d", "offset", num(1000000, 0), "write-value", profile.ErrValue},
		{"d", "mode", telemetry.TextValue("boil"), "write-value", profile.ErrValue},
		{"d", "name", telemetry.TextValue("far too long"), "write-value", profile.ErrValue},
		{"d", "pump", num(1, 0), "write-value", profile.ErrValue},
		{"d", "none", num(1, 0), "no-such-name", ErrRequest},
		{"e", "limit", num(50, 0), "no-such-name", ErrRequest},
	} {
		_, err := l.WritePoint(context.Background(), c.device, c.point, c.v, WriteOptions{})
		var e *Error
		if !errors.As(err, &e) || e.Code != c.code || !errors.Is(err, c.is) {
			t.Errorf("%s %v: got %v, want code %s", c.point, c.v, err, c.code)
		}
	}
	mu.Lock()
	if len(wrote) > 0 {
		t.Errorf("functions %d went out", wrote)
	}
	mu.Unlock()
	_, err := l.WritePoint(context.Background(), "d", "hidden", num(1, 0), WriteOptions{})
	if !errors.Is(err, Exception(4)) {
		t.Errorf("a refused write: %v", err)
	}
}

// TestWriteOutcome: an answer that stays out, a device that keeps another
// value, one that does not know function 22, an adapter that hears itself.
func TestWriteOutcome(t *testing.T) {
	t.Parallel()
	fault := func(fc byte, f sim.Fault) sim.Plan {
		return func(r sim.Request) sim.Fault {
			if r.Function == fc {
				return f
			}
			return sim.Fault{}
		}
	}
	for _, medium := range []string{"rtu", "tcp"} {
		t.Run(medium, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			s, m := writeSlave(), writable(t)
			l := writeLine(t, medium, s, m)
			limit := func(n int64) (Change, error) {
				return l.WritePoint(ctx, "d", "limit", telemetry.IntValue(n, 0), WriteOptions{})
			}
			// The device takes the value and its answer is lost: reading back tells.
			s.SetPlan(fault(6, sim.Fault{Kind: sim.Silent}))
			if c, err := limit(60); err != nil || !c.Verified || c.BackData[1] != 60 {
				t.Errorf("a lost answer: %+v, %v", c, err)
			}
			// It keeps what it likes.
			s.SetPlan(nil)
			keep := s.Unit(7)
			s.Observe(func(e sim.Exchange) {
				if e.Function == 6 {
					keep.Set(profile.Holding, 0, 42)
				}
			})
			c, err := limit(65)
			var e *Error
			if !errors.Is(err, ErrReadback) || !errors.As(err, &e) || e.Code != "read-back" || c.Verified || c.Back.Value.String() != "42" {
				t.Errorf("another value: %+v, %v", c, err)
			}
			s.Observe(nil)
			// Function 22 is not known: the whole register is written.
			s.SetPlan(fault(22, sim.Fault{Kind: sim.Exception, Code: 1}))
			c, err = l.WritePoint(ctx, "d", "flag", telemetry.BoolValue(true), WriteOptions{})
			if regs, _ := s.Unit(7).Get(profile.Holding, 9, 1); err != nil || c.Function != 6 || regs[0] != 0xF01F {
				t.Errorf("without function 22: %+v, %04x, %v", c, regs, err)
			}
			if medium == "tcp" {
				return
			}
			s.SetPlan(func(sim.Request) sim.Fault { return sim.Fault{Kind: sim.Echo} })
			if c, err := limit(70); err != nil || !c.Verified {
				t.Errorf("with an echo: %+v, %v", c, err)
			}
		})
	}
}

// TestWriteEchoOnly: an adapter that hears itself and a device that went
// silent after the read: the echo of a write is not its acceptance.
func TestWriteEchoOnly(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	master, path := openPTY(t)
	go func() {
		buf := make([]byte, 64)
		for first := true; ; {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			master.Write(buf[:n])
			if first {
				first = false
				master.Write(s.encode(7, 3, []byte{2, 0, 50}, nil))
			}
		}
	}()
	m := writable(t)
	l := open(t, Options{Name: "w", Connect: "rtu://" + path, Line: "115200 8N1", Timeout: 60 * time.Millisecond,
		Devices: []Device{{Name: "d", Unit: 7, Every: time.Hour, Map: m, Points: m.Points}}})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := l.WritePoint(ctx, "d", "limit", telemetry.IntValue(55, 0), WriteOptions{NoReadback: true})
	if err == nil || c.Verified {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestWriteWhileRunning: a write goes between two polls, and its point is
// polled at once.
func TestWriteWhileRunning(t *testing.T) {
	t.Parallel()
	s, m := writeSlave(), writable(t)
	l := writeLine(t, "tcp", s, m)
	var got sink
	stop := run(t, l, got.emit)
	defer stop()
	told := func(value int64) func() bool {
		return func() bool {
			got.mu.Lock()
			defer got.mu.Unlock()
			return slices.ContainsFunc(got.groups, func(g telemetry.Group) bool {
				return slices.ContainsFunc(g.Readings, func(r telemetry.Reading) bool {
					return r.Point == 2 && r.Quality == telemetry.Good && r.Value.Mantissa() == value
				})
			})
		}
	}
	until(t, 20*time.Second, "polling", told(50))
	if _, err := l.WritePoint(context.Background(), "d", "limit", telemetry.IntValue(75, 0), WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, "the new value is told", told(75))
}

// TestWriteRegisters: bare registers and coils of any unit.
func TestWriteRegisters(t *testing.T) {
	t.Parallel()
	s, m := writeSlave(), writable(t)
	l := writeLine(t, "rtu", s, m)
	ctx := context.Background()
	c, err := l.WriteRegisters(ctx, 7, profile.Holding, 80, 3, []byte{1, 2, 3, 4, 5, 6}, WriteOptions{})
	if regs, _ := s.Unit(7).Get(profile.Holding, 80, 3); err != nil || !c.Verified || c.Function != 16 || !slices.Equal(regs, []uint16{0x102, 0x304, 0x506}) {
		t.Errorf("%+v, %v, %x", c, err, regs)
	}
	c, err = l.WriteRegisters(ctx, 7, profile.Coils, 2, 10, []byte{0xA5, 0x02}, WriteOptions{})
	if bits, _ := s.Unit(7).Get(profile.Coils, 2, 10); err != nil || c.Function != 15 || !slices.Equal(bits, []uint16{1, 0, 1, 0, 0, 1, 0, 1, 0, 1}) {
		t.Errorf("%+v, %v, %v", c, err, bits)
	}
	if _, err := l.WriteRegisters(ctx, 7, profile.Input, 0, 1, []byte{0, 1}, WriteOptions{}); !errors.Is(err, ErrRequest) {
		t.Errorf("an input register: %v", err)
	}
	if _, err := l.WriteRegisters(ctx, 7, profile.Holding, 0, 124, make([]byte, 248), WriteOptions{}); !errors.Is(err, ErrRequest) {
		t.Errorf("124 registers: %v", err)
	}
}

// TestIdentify: objects of 43/14 in two parts, function 17, and a device that
// knows neither.
func TestIdentify(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{kindRTU, kindASCII, kindTCP} {
		s := newSlave(k, 1)
		master, path := openPTY(t)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		serve := func(rw interface {
			Read([]byte) (int, error)
			Write([]byte) (int, error)
		}) {
			buf := make([]byte, 256)
			for {
				n, err := rw.Read(buf)
				if err != nil {
					return
				}
				req := buf[:n]
				pdu, err := packager(k, 1).Decode(req)
				if err != nil {
					continue
				}
				unit := byte(7)
				if !slices.Contains(req, 7) && k != kindASCII {
					unit = 9
				}
				switch {
				case k != kindASCII && req[map[kind]int{kindRTU: 0, kindTCP: 6}[k]] == 9:
					rw.Write(s.encode(9, pdu.FunctionCode|0x80, []byte{1}, req))
				case pdu.FunctionCode == 17:
					rw.Write(s.encode(unit, 17, []byte{4, 7, 0xFF, 'a', 'b'}, req))
				case pdu.Data[1] == 1 && pdu.Data[2] == 0:
					rw.Write(s.encode(unit, 43, []byte("\x0e\x01\x82\xff\x01\x01\x00\x05ACME "), req))
				case pdu.Data[1] == 1:
					rw.Write(s.encode(unit, 43, []byte("\x0e\x01\x82\x00\x00\x02\x01\x03M-1\x02\x04V2.1"), req))
				default:
					rw.Write(s.encode(unit, 43|0x80, []byte{3}, req))
				}
			}
		}
		o := Options{Name: "i", Line: "115200 8N1", Timeout: 2 * time.Second, Devices: []Device{{Name: "d", Unit: 7, Every: time.Hour, Map: custom(t, 1)}}}
		if k == kindTCP {
			go func() {
				c, err := ln.Accept()
				if err == nil {
					serve(c)
					c.Close()
				}
			}()
			o.Connect, o.Line = "tcp://"+ln.Addr().String(), ""
		} else {
			go serve(master)
			o.Connect = map[kind]string{kindRTU: "rtu://", kindASCII: "ascii://"}[k] + path
		}
		l := open(t, o)
		id, err := l.Identify(context.Background(), 7)
		if err != nil || id.Objects[0] != "ACME" || id.Objects[1] != "M-1" || id.Objects[2] != "V2.1" || string(id.ID) != "\x07\xffab" {
			t.Errorf("kind %d: %+v, %v", k, id, err)
		}
		if k != kindASCII {
			if id, err := l.Identify(context.Background(), 9); !errors.Is(err, Exception(1)) {
				t.Errorf("kind %d: a device that knows nothing: %+v, %v", k, id, err)
			}
		}
		l.Close()
	}
}
