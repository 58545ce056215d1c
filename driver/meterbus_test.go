package driver

import (
	"context"
	"encoding/hex"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/driver/mbus"
	"tidegate/driver/obis"
	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// meters plays the meters of an M-Bus on the master's side of a pty.
type meters struct {
	list  []*busMeter
	fault func(n int64, f mbus.Frame, answer []byte) []byte // may change an answer; nil bytes: none
	asked atomic.Int64
	last  atomic.Uint32 // control and address of the last message of a scan
}

// busMeter is one of them.
type busMeter struct {
	unit      byte
	address   string // secondary, 16 digits
	telegrams [][]byte
	asks      atomic.Int64
	resets    atomic.Int64

	selected bool
	fcb      byte // of the last request; 0xff: none yet
	at       int
}

func (m *busMeter) answer(f mbus.Frame) []byte {
	if f.Long {
		if f.CI == 0x52 && f.Address == mbus.Selected {
			m.selected, m.fcb, m.at = m.fits(f.Data), 0xff, -1
			if m.selected {
				return []byte{mbus.Ack}
			}
		}
		return nil
	}
	if f.Address != m.unit && f.Address != mbus.Any && !(f.Address == mbus.Selected && m.selected) {
		return nil
	}
	if f.Control == mbus.SndNke {
		m.resets.Add(1)
		m.fcb, m.at = 0xff, -1
		if f.Address == mbus.Selected {
			m.selected = false
		}
		return []byte{mbus.Ack}
	}
	m.asks.Add(1)
	if b := f.Control & mbus.FCB; b != m.fcb {
		m.fcb, m.at = b, (m.at+1)%len(m.telegrams)
	}
	return m.telegrams[m.at]
}

func (m *busMeter) fits(mask []byte) bool {
	b, _ := hex.DecodeString(m.address)
	slices.Reverse(b[:4])
	for i := range b {
		for _, h := range []byte{0xf0, 0x0f} {
			if mask[i]&h != h && mask[i]&h != b[i]&h {
				return false
			}
		}
	}
	return true
}

func (ms *meters) serve(rw io.ReadWriter) {
	var in []byte
	buf := make([]byte, 512)
	for {
		n, err := rw.Read(buf)
		if err != nil {
			return
		}
		for in = append(in, buf[:n]...); len(in) > 0; {
			f, n, err := mbus.ParseFrame(in)
			if err == mbus.ErrShort {
				break
			}
			if err != nil {
				in = in[1:]
				continue
			}
			var out []byte
			for _, m := range ms.list {
				out = append(out, m.answer(f)...)
			}
			k := ms.asked.Add(1)
			if ms.fault != nil {
				out = ms.fault(k, f, out)
			}
			if out != nil {
				rw.Write(out)
			}
			in = in[n:]
		}
	}
}

// volumeOf returns a telegram of a water meter that counts n litres.
func volumeOf(unit byte, address string, n byte, tail ...byte) []byte {
	b, _ := hex.DecodeString(address)
	slices.Reverse(b[:4])
	data := append(b, 1, 0, 0, 0, 0x02, 0x13, n, 0)
	return mbus.Long(mbus.RspUd, unit, 0x72, append(data, tail...)...)
}

const waterMap = `
name: water
status: community
transport: serial
handshake: mbus
points:
  volume: {mbus: {quantity: volume}, unit: m3, kind: counter}
  due: {mbus: {quantity: volume, storage: 1}, unit: l}
  id: {mbus: {header: id}, type: string}
`

const numberA, numberB = "112233440442010A", "112233550442010A"

// readings runs a line until enough groups have come, and returns them by
// device and point.
func meterReadings(t *testing.T, ms *meters, devices []Device, groups int) (map[uint32][]telemetry.Reading, *Line) {
	t.Helper()
	master, path := openPTY(t)
	go ms.serve(master)
	p := parse(t, waterMap)
	for i := range devices {
		devices[i].Map, devices[i].Base = p, uint32(3*i)
		if devices[i].Every == 0 {
			devices[i].Every = 20 * time.Millisecond
		}
	}
	l := open(t, Options{Name: "m", Connect: "serial://" + path, Timeout: time.Second, Devices: devices})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out := map[uint32][]telemetry.Reading{}
	n := 0
	l.Run(ctx, func(g *telemetry.Group) {
		for _, r := range g.Readings {
			out[r.Point] = append(out[r.Point], r)
		}
		if n++; n >= groups {
			cancel()
		}
	})
	if n < groups {
		t.Fatalf("%d groups of %d: %+v", n, groups, l.Stats())
	}
	return out, l
}

// every checks that all readings of a point are good and one value.
func every(t *testing.T, list []telemetry.Reading, want string) {
	t.Helper()
	if len(list) == 0 {
		t.Error("no reading")
	}
	for _, r := range list {
		if r.Quality != telemetry.Good || r.Value.String() != want {
			t.Errorf("%v %v %v, want %s", r.Value, r.Quality, r.Cause, want)
			return
		}
	}
}

// TestMeterBus: by primary and by secondary address, each meter has its own
// values, telegrams that belong together come together, and a meter that is
// not there is told apart.
func TestMeterBus(t *testing.T) {
	t.Parallel()
	a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{volumeOf(5, numberA, 11, 0x1f), volumeOf(5, numberA, 11, 0x42, 0x13, 7, 0)}}
	a.telegrams[1] = mbus.Long(mbus.RspUd, 5, 0x72, append(volumeOf(5, numberA, 11)[7:19:19], 0x42, 0x13, 7, 0)...)
	b := &busMeter{unit: 0, address: numberB, telegrams: [][]byte{volumeOf(0, numberB, 22)}}
	ms := &meters{list: []*busMeter{a, b}}
	got, _ := meterReadings(t, ms, []Device{
		{Name: "primary", Unit: 5}, {Name: "secondary", Address: "11223355"}, {Name: "both", Address: numberA}, {Name: "nobody", Unit: 9},
		{Name: "zero", Unit: 0},
	}, 40)
	every(t, got[0], "0.011")
	every(t, got[1], "7")
	every(t, got[2], "11223344")
	every(t, got[3], "0.022")
	every(t, got[6], "0.011")
	every(t, got[7], "7")
	every(t, got[12], "0.022")
	for _, r := range got[9] {
		if r.Quality != telemetry.Comm || r.Value.Kind() != telemetry.None {
			t.Errorf("a meter that is not there: %+v", r)
		}
	}
	if len(got[9]) == 0 {
		t.Error("a meter that is not there says nothing")
	}
}

// TestMeterBusToggles: a single meter is reset once, and asked with the
// frame count bit turned over each time.
func TestMeterBusToggles(t *testing.T) {
	t.Parallel()
	a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{volumeOf(5, numberA, 11), volumeOf(5, numberA, 12)}}
	got, _ := meterReadings(t, &meters{list: []*busMeter{a}}, []Device{{Name: "a", Unit: 5}}, 6)
	for i, r := range got[0] {
		if want := []string{"0.011", "0.012"}[i%2]; r.Value.String() != want {
			t.Errorf("poll %d: %v, want %s", i, r.Value, want)
		}
	}
	if n := a.resets.Load(); n != 1 {
		t.Errorf("%d resets", n)
	}
}

// TestMeterBusFaults: under each fault the values are right or there are
// none, and the meter comes back.
func TestMeterBusFaults(t *testing.T) {
	t.Parallel()
	other := volumeOf(6, numberB, 99)
	for name, fault := range map[string]func(n int64, answer []byte) []byte{
		"no answer": func(n int64, b []byte) []byte {
			if n%3 == 0 {
				return nil
			}
			return b
		},
		"garbled": func(n int64, b []byte) []byte {
			if n%3 == 0 && len(b) > 1 {
				c := slices.Clone(b)
				c[len(c)/2] ^= 0x10
				return c
			}
			return b
		},
		"cut short": func(n int64, b []byte) []byte {
			if n%3 == 0 && len(b) > 1 {
				return b[:len(b)-4]
			}
			return b
		},
		"another meter": func(n int64, b []byte) []byte {
			if n%3 == 0 && len(b) > 1 {
				return other
			}
			return b
		},
		"another meter first": func(n int64, b []byte) []byte {
			if len(b) > 1 {
				return append(slices.Clone(other), b...)
			}
			return b
		},
		"noise before": func(n int64, b []byte) []byte { return append([]byte{0x68, 0x05, 0x68, 0xff}, b...) },
		"twice":        func(n int64, b []byte) []byte { return append(slices.Clone(b), b...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{volumeOf(5, numberA, 11, 0x1f),
				mbus.Long(mbus.RspUd, 5, 0x72, append(volumeOf(5, numberA, 11)[7:19:19], 0x42, 0x13, 7, 0)...)}}
			fired := atomic.Int64{}
			ms := &meters{list: []*busMeter{a}, fault: func(n int64, _ mbus.Frame, b []byte) []byte {
				out := fault(n, b)
				if string(out) != string(b) {
					fired.Add(1)
				}
				return out
			}}
			got, _ := meterReadings(t, ms, []Device{{Name: "a", Unit: 5}}, 8)
			good := 0
			for point, want := range map[uint32]string{0: "0.011", 1: "7", 2: "11223344"} {
				for _, r := range got[point] {
					switch {
					case r.Quality == telemetry.Good && r.Value.String() == want:
						good++
					case r.Quality == telemetry.Good || r.Value.Kind() != telemetry.None:
						t.Errorf("point %d: %v %v, want %s or nothing", point, r.Value, r.Quality, want)
					}
				}
			}
			if good == 0 || fired.Load() == 0 {
				t.Errorf("%d good readings, the fault came %d times", good, fired.Load())
			}
		})
	}
}

// TestMeterBusLate: an answer that comes after the next request was sent is
// not taken for a telegram that it is not.
func TestMeterBusLate(t *testing.T) {
	t.Parallel()
	first := volumeOf(5, numberA, 11, 0x1f)
	second := mbus.Long(mbus.RspUd, 5, 0x72, append(volumeOf(5, numberA, 11)[7:19:19], 0x42, 0x13, 7, 0)...)
	a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{first, second}}
	var stale atomic.Int64
	ms := &meters{list: []*busMeter{a}, fault: func(n int64, f mbus.Frame, b []byte) []byte {
		if string(b) == string(second) {
			stale.Add(1)
			return append(slices.Clone(first), b...) // what came too late to the request before
		}
		return b
	}}
	got, _ := meterReadings(t, ms, []Device{{Name: "a", Unit: 5}}, 6)
	every(t, got[0], "0.011")
	every(t, got[1], "7")
	if stale.Load() == 0 {
		t.Error("no late answer was sent")
	}
}

// TestMeterBusRefusals: what a meter says in place of data.
func TestMeterBusRefusals(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{
		"no data":   {mbus.Ack},
		"error":     mbus.Long(mbus.RspUd, 5, 0x70, 1),
		"encrypted": mbus.Long(mbus.RspUd, 5, 0x7a, 1, 0, 0x10, 5, 1, 2, 3, 4),
		"broken":    mbus.Long(mbus.RspUd, 5, 0x72, 1, 2, 3),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{answer}}
			got, _ := meterReadings(t, &meters{list: []*busMeter{a}}, []Device{{Name: "a", Unit: 5}}, 1)
			if r := got[0]; len(r) != 1 || r[0].Quality != telemetry.Comm || r[0].Cause != telemetry.CauseMismatch {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestMeterBusRecorded: every recorded meter of the M-Bus package is read
// over a line, by its primary address.
func TestMeterBusRecorded(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("mbus/testdata/libmbus/kamstrup_multical_601.hex")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(src)), ""))
	if err != nil {
		t.Fatal(err)
	}
	a := &busMeter{unit: b[5], telegrams: [][]byte{b}}
	got, _ := meterReadings(t, &meters{list: []*busMeter{a}}, []Device{{Name: "a", Unit: int(b[5])}}, 2)
	every(t, got[0], "561.08")
	every(t, got[1], "500980")
	every(t, got[2], "06855817")
}

func TestMeterMask(t *testing.T) {
	for in, want := range map[string]string{"12345678": "78563412ffffffff", "1234567842040107": "7856341242040107", "1234FFFF": "ffff3412ffffffff"} {
		if b, err := meterMask(in); err != nil || hex.EncodeToString(b) != want {
			t.Errorf("%s: %x %v", in, b, err)
		}
	}
	for _, in := range []string{"", "1234567", "123456789", "1234567G"} {
		if _, err := meterMask(in); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

// TestMeterBusForeign: the answer of a meter that was not selected is none,
// also under the address of the selected one.
func TestMeterBusForeign(t *testing.T) {
	t.Parallel()
	a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{volumeOf(5, numberA, 11)}}
	ms := &meters{list: []*busMeter{a}, fault: func(n int64, _ mbus.Frame, b []byte) []byte {
		if len(b) > 1 && n%2 == 0 {
			return volumeOf(5, numberB, 99)
		}
		return b
	}}
	got, l := meterReadings(t, ms, []Device{{Name: "a", Address: "11223344"}}, 6)
	for _, r := range got[0] {
		if r.Value.Kind() != telemetry.None && r.Value.String() != "0.011" {
			t.Errorf("%v", r.Value)
		}
	}
	if l.Stats().Stray == 0 {
		t.Error("no foreign answer came")
	}
}

// TestMeterBusUnsent: what a telegram does not hold is told as fault/marker,
// once; again where it came and has stayed away for two telegrams, and when
// the meter was away.
func TestMeterBusUnsent(t *testing.T) {
	t.Parallel()
	without, with := volumeOf(5, numberA, 11), volumeOf(5, numberA, 11, 0x42, 0x13, 7, 0)
	a := &busMeter{unit: 5, address: numberA, telegrams: [][]byte{without, without, without, with, without, with, without, without, without}}
	got, _ := meterReadings(t, &meters{list: []*busMeter{a}}, []Device{{Name: "a", Unit: 5}}, 20)
	every(t, got[0], "0.011")
	var told []string
	for _, r := range got[1] {
		told = append(told, profile.ReadingText(r))
	}
	if want := []string{"fault/marker", "7", "7", "fault/marker", "7", "7", "fault/marker"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}

	a = &busMeter{unit: 5, address: numberA, telegrams: [][]byte{without}}
	ms := &meters{list: []*busMeter{a}, fault: func(n int64, _ mbus.Frame, b []byte) []byte {
		if n > 10 && n < 17 {
			return nil
		}
		return b
	}}
	got, _ = meterReadings(t, ms, []Device{{Name: "a", Unit: 5}}, 15)
	told = nil
	for _, r := range got[1] {
		if r.Quality != telemetry.Comm || told[len(told)-1] != "comm" {
			told = append(told, strings.TrimSuffix(strings.TrimSuffix(profile.ReadingText(r), "/timeout"), "/absent"))
		}
	}
	if want := []string{"fault/marker", "comm", "fault/marker"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// TestTelegramUnsent: likewise a P1 port without a gas meter behind it.
func TestTelegramUnsent(t *testing.T) {
	t.Parallel()
	p, err := library(t).Get("dsmr-p1-v3")
	if err != nil {
		t.Fatal(err)
	}
	master, path := openPTY(t)
	l := open(t, Options{Name: "p1", Connect: "serial://" + path, Line: "9600 8N1", Devices: []Device{{Name: "p1", Every: time.Second, Map: p}}})
	got := map[string][]string{}
	var mu sync.Mutex
	run(t, l, func(g *telemetry.Group) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range g.Readings {
			if r.Quality != telemetry.Init {
				got[p.Points[r.Point].Name] = append(got[p.Points[r.Point].Name], profile.ReadingText(r))
			}
		}
	})
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got["energy_import_t1"]) >= 3
	}
	until(t, 60*time.Second, "three telegrams", func() bool {
		master.Write(obis.Compose("TDG5x", []string{"1-0:1.8.1(000123.456*kWh)"}, false))
		return enough()
	})
	mu.Lock()
	defer mu.Unlock()
	if g := got["gas_volume"]; !slices.Equal(g, []string{"fault/marker"}) {
		t.Errorf("gas_volume %v", g)
	}
	if g := got["energy_import_t1"]; g[0] != "123.456" {
		t.Errorf("energy_import_t1 %v", g)
	}
}

// TestMeterSilent: what is said of a silent meter names the others on its bus
// as the configuration does, and the scan that finds meters.
func TestMeterSilent(t *testing.T) {
	t.Parallel()
	l := open(t, Options{Name: "cellar", Connect: "serial:///dev/null", Devices: []Device{
		{Name: "water", Unit: 5, Map: parse(t, waterMap)}, {Name: "heat", Unit: 7, Map: parse(t, waterMap)}}})
	gas, water := l.devices[1], l.devices[0]
	e := l.diagnose(gas, gas.unit, nil, ErrTimeout)
	if e.Code != "bus-silent" || e.Try != "tidegate scan cellar --mbus" || !strings.Contains(e.Likely, "no power") {
		t.Errorf("%v\n%s", e, e.Hint())
	}
	water.unit.heard = time.Now()
	e = l.diagnose(gas, gas.unit, nil, ErrTimeout)
	if e.Code != "unit-silent" || e.Try != "tidegate scan cellar --mbus" || !strings.Contains(e.Seen, "; water answered ") {
		t.Errorf("%v\n%s", e, e.Hint())
	}
}
