package driver

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/driver/mbus"
	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// recorded is a meter that answers with a telegram that a real one has sent,
// under this primary address.
func recorded(t *testing.T, name string, unit byte) *busMeter {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("mbus", "testdata", "libmbus", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := mbus.ParseFrame(raw)
	if err != nil {
		t.Fatal(err)
	}
	tg, err := mbus.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	return &busMeter{unit: unit, address: tg.Address(), telegrams: [][]byte{mbus.Long(f.Control, unit, f.CI, f.Data...)}}
}

// everything is all profiles of the library.
func everything(t *testing.T) (out []*profile.Profile) {
	t.Helper()
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

// meterWait is how long a scan in these tests waits for a meter: one that
// answers at once, on a machine that is busy.
const meterWait = 500 * time.Millisecond

// scanBus scans a pty with these meters for units 0 to 8, and says which
// messages were sent that are none of a search.
func scanBus(t *testing.T, ms *meters, o ScanOptions) (*ScanResult, error) {
	t.Helper()
	master, path := openPTY(t)
	ms.fault = func(_ int64, f mbus.Frame, answer []byte) []byte {
		search := !f.Long && (f.Control == mbus.SndNke || f.Control&^mbus.FCB == mbus.ReqUd2) ||
			f.Long && f.Control == mbus.SndUd && f.Address == mbus.Selected && f.CI == 0x52 && len(f.Data) == 8
		if !search {
			t.Errorf("sent: %+v", f)
		}
		ms.last.Store(uint32(f.Control)<<8 | uint32(f.Address))
		return answer
	}
	go ms.serve(master)
	o.MBus, o.Timeout, o.Profiles = true, meterWait, everything(t)
	if o.IDs == nil {
		o.IDs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8}
	}
	o.Lines = []string{"2400 8E1"}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return Scan(ctx, "serial://"+path, o, nil)
}

// TestMeterScan: meters with recorded telegrams. Two share a primary address,
// two share the first seven digits of their number, and all are found, each
// once, with its maker, its medium and the profile that was made for it.
func TestMeterScan(t *testing.T) {
	t.Parallel()
	cyble := recorded(t, "itron_cyble_m-bus_v1.4_water", 1)
	twin := recorded(t, "itron_cyble_m-bus_v1.4_water", 9) // not among the units asked
	twin.address = fmt.Sprintf("%.7s%d%s", twin.address, (twin.address[7]-'0'+1)%10, twin.address[8:])
	head, err := mbus.AddressBytes(twin.address)
	if err != nil {
		t.Fatal(err)
	}
	f, _, _ := mbus.ParseFrame(twin.telegrams[0])
	twin.telegrams[0] = mbus.Long(f.Control, 9, f.CI, append(head, f.Data[8:]...)...)
	heat, power, room := recorded(t, "ELS_Elster-F96-Plus", 0), recorded(t, "nzr_dhz_5_63", 0), recorded(t, "THI_cma10", 3)
	ms := &meters{list: []*busMeter{cyble, twin, heat, power, room}}
	r, err := scanBus(t, ms, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // by address: primary address, manufacturer, medium, profile
		cyble.address: "1 ACW water mbus-water",
		twin.address:  "-1 ACW water mbus-water",
		heat.address:  "-1 ELS heat mbus-heat",
		power.address: "-1 NZR electricity mbus-electricity",
		room.address:  "3 ELV other elvaco-cma10",
		"":            "0   ",
	}
	for _, u := range r.Units {
		profile := ""
		if u.Best == 1 {
			profile = u.Matches[0].Profile
			if len(u.Matches[0].Evidence) < 2 {
				t.Errorf("%s: evidence %v", u.Address, u.Matches[0].Evidence)
			}
		}
		got := fmt.Sprintf("%d %s %s %s", u.ID, u.Identity["manufacturer"], u.Identity["medium"], profile)
		if w, ok := want[u.Address]; !ok || w != got {
			t.Errorf("%s: %q, want %q (%s)", u.Address, got, w, u.Answer)
		}
		delete(want, u.Address)
	}
	if len(want) > 0 {
		t.Errorf("not found, or twice: %v", want)
	}
	if r.Line != "2400 8E1" || !r.MBus {
		t.Errorf("%+v", r)
	}
	if last := ms.last.Load(); last != mbus.SndNke<<8|mbus.Selected {
		t.Errorf("the last message is %x: a meter stays selected", last)
	}
}

// TestMeterScanOdd: nobody, a meter that cannot be told from its twin, one of
// the old fixed structure, and units that are none.
func TestMeterScanOdd(t *testing.T) {
	t.Parallel()
	t.Run("nobody", func(t *testing.T) {
		t.Parallel()
		r, err := scanBus(t, &meters{}, ScanOptions{IDs: []int{1, 2}})
		if err != nil || len(r.Units) > 0 || r.Silence().Code != "unit-silent" || !strings.Contains(r.Silence().What, "no meter") {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("twins", func(t *testing.T) {
		t.Parallel()
		a, b := recorded(t, "nzr_dhz_5_63", 1), recorded(t, "nzr_dhz_5_63", 2)
		r, err := scanBus(t, &meters{list: []*busMeter{a, b}}, ScanOptions{IDs: []int{1, 2}})
		units := map[int]string{}
		for _, u := range r.Units {
			units[u.ID] += u.Address + " " + u.Answer
		}
		if err != nil || units[1] != a.address+" telegram" || units[2] != a.address+" telegram" || units[-1] != a.address[:8]+" damaged" || len(r.Units) != 3 {
			t.Errorf("%v, %v", units, err)
		}
	})
	t.Run("fixed structure", func(t *testing.T) {
		t.Parallel()
		old := recorded(t, "manual_frame2", 4)
		old.address = "12345678FFFFFFFF"
		r, err := scanBus(t, &meters{list: []*busMeter{old}}, ScanOptions{IDs: []int{4}})
		if err != nil || len(r.Units) != 1 || r.Units[0].ID != 4 || r.Units[0].Address != "12345678" || !slices.ContainsFunc(r.Units[0].Matches, func(m ScanMatch) bool { return m.Profile == "mbus-water" }) {
			t.Errorf("%+v, %v", r.Units, err)
		}
	})
	if _, err := Scan(context.Background(), "serial:///dev/null", ScanOptions{MBus: true, IDs: []int{251}}, nil); err == nil || !strings.Contains(err.Error(), "0..250") {
		t.Errorf("unit 251: %v", err)
	}
}

// TestMeterPrimaryOnly: meters that do not answer when all are called are found
// by their primary addresses at the other settings, too, unless that takes too
// long, which is told.
func TestMeterPrimaryOnly(t *testing.T) {
	t.Parallel()
	water, err := library(t).Get("mbus-water")
	if err != nil {
		t.Fatal(err)
	}
	// What asking units 1 to 3 takes with a timeout of 500 ms, by EN 13757-2:
	// 5 characters of 11 bits each, and before them 3 characters, 30 ms at least.
	const slow, quick = "300 8E1 2.38", "9600 8E1 1.61"
	on := func(t *testing.T, lines ...string) string {
		b := &sim.MeterBus{}
		for i, line := range lines {
			m, err := b.Add(water, i+1, fmt.Sprintf("%d0000000", i+1), 1, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			m.Wire, m.PrimaryOnly = sim.Wire{Only: line}, i > 0
		}
		master, path, err := sim.OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- b.Serve(ctx, master) }()
		t.Cleanup(func() { cancel(); master.Close(); <-served })
		return "serial://" + path
	}
	for _, c := range []struct {
		name string
		set  func(*scan)
		want string // units with their lines, then what was not asked
	}{
		{"time for all", nil, "1 2400 8E1; 2 9600 8E1; 3 300 8E1"},
		{"too slow", func(s *scan) { s.walk = 2 * time.Second }, "1 2400 8E1; 2 9600 8E1; not " + slow},
		{"lease", func(s *scan) { s.most = time.Millisecond }, "1 2400 8E1; not " + slow + "; not " + quick},
		{"deep", func(s *scan) { s.walk, s.most, s.o.Deep = 1, time.Millisecond, true }, "1 2400 8E1; 2 9600 8E1; 3 300 8E1"},
		{"nobody heard", func(s *scan) { s.walk, s.modes, s.names = 1, s.modes[1:], s.names[1:] }, "3 300 8E1; not " + quick},
		{"one setting", func(s *scan) { s.walk, s.modes, s.names = 1, s.modes[2:], s.names[2:] }, "2 9600 8E1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			connect := on(t, "2400 8E1", "9600 8E1", "300 8E1")
			at, err := parseConnect(connect)
			if err != nil {
				t.Fatal(err)
			}
			s, err := newScan(at, connect, ScanOptions{MBus: true, IDs: []int{1, 2, 3}, Timeout: meterWait}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.set != nil {
				c.set(s)
			}
			if err := s.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range s.res.Units {
				got = append(got, fmt.Sprintf("%d %s", u.ID, strings.Join(u.Lines, ", ")))
			}
			slices.Sort(got)
			for _, r := range s.res.NotAsked {
				got = append(got, fmt.Sprintf("not %s %.2f", r.Line, r.Takes.Seconds()))
			}
			if g := strings.Join(got, "; "); g != c.want {
				t.Errorf("%s\nwant %s", g, c.want)
			}
		})
	}
	t.Run("pause of the polls", func(t *testing.T) { // 12 addresses take 9.5 s at 300 baud, and 6.6 s before
		t.Parallel()
		l := open(t, Options{Name: "bus", Connect: on(t, "2400 8E1"), Line: "2400 8E1", Devices: []Device{{Name: "water", Unit: 1, Every: time.Hour, Map: water}}})
		var ids []int
		for id := range 12 {
			ids = append(ids, id+1)
		}
		r, err := l.Scan(t.Context(), 16*time.Second, ScanOptions{MBus: true, IDs: ids, Timeout: meterWait}, func(s ScanStep) {
			if strings.Contains(s.Text, "primary addresses at 300 8E1") {
				t.Error(s.Text)
			}
		})
		if err != nil || r.Tried != 3 || len(r.Units) != 1 || !slices.ContainsFunc(r.NotAsked, func(n ScanRest) bool { return n.Line == "300 8E1" }) {
			t.Errorf("%+v, %v", r, err)
		}
	})
	r := &ScanResult{MBus: true, Tried: 3, Asked: 251, NotAsked: []ScanRest{{"300 8E1", 375 * time.Second}}}
	if e := r.Silence(); !strings.HasPrefix(e.Seen, "251 units asked at 2 line settings, all at once at 3 settings; ") || !strings.HasSuffix(e.Try, "\neach address at 300 8E1, 7 min: --baud 300 --mode 8E1") {
		t.Errorf("%q, %q", e.Seen, e.Try)
	}
}

// TestMeterScanSpeeds: a segment with meters of three speeds. Each is found at
// its own, one that follows its master is listed once, and the setting of the
// bus is the one at which most answer.
func TestMeterScanSpeeds(t *testing.T) {
	t.Parallel()
	lib := library(t)
	water, err := lib.Get("mbus-water")
	if err != nil {
		t.Fatal(err)
	}
	at := func(baud int) sim.Wire { return sim.Wire{Only: fmt.Sprintf("%d 8E1", baud)} }
	b := &sim.MeterBus{}
	for i, w := range []sim.Wire{at(2400), at(9600), at(9600), at(1200), {}} {
		m, err := b.Add(water, i+1, fmt.Sprintf("%d0000000", i+1), 1, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m.Wire = w
	}
	master, path, err := sim.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx, master) }()
	defer func() { cancel(); master.Close(); <-served }()
	r, err := Scan(ctx, "serial://"+path, ScanOptions{MBus: true, Lines: []string{"2400 8E1", "1200 8E1", "9600 8E1"}, IDs: []int{1, 2, 3, 4, 5, 6}, Timeout: meterWait, Profiles: everything(t)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range r.Units {
		got = append(got, fmt.Sprintf("%d %.8s %s", u.ID, u.Address, strings.Join(u.Lines, ", ")))
	}
	slices.Sort(got)
	want := []string{
		"1 10000000 2400 8E1", "2 20000000 9600 8E1", "3 30000000 9600 8E1", "4 40000000 1200 8E1",
		"5 50000000 2400 8E1, 1200 8E1, 9600 8E1",
	}
	if !slices.Equal(got, want) || r.Line != "9600 8E1" || r.Tried != 3 {
		t.Errorf("at %s, %d settings:\n%s\nwant\n%s", r.Line, r.Tried, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
