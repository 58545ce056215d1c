package sim

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// Meter is the inside of a simulated Modbus device: values for every point
// of a profile that drift like those of a real device, as a function of the
// seed and the time alone. They change at full seconds.
type Meter struct {
	profile *profile.Profile
	models  []profile.Model // of SunSpec; the profile is as it stands in them
	seed    uint64
	points  []signal
	spans   []*stretch
	memory  *Unit // what Truth reads
}

// signal is the course of one point.
type signal struct {
	middle, swing, noise float64
	period, phase        float64         // seconds, radians
	rate                 float64         // of counters, per second
	fixed                bool            // a scale factor: always 0
	held                 telemetry.Value // it stays at this value, if it is one
	seed                 uint64
	decimals             int
	power                int // what its scale-factor register holds
}

// stretch is a run of registers or bits that points cover without a hole.
type stretch struct {
	table    profile.Table
	from, to int // to is not in it
	points   []int
}

// NewMeter returns a device for a Modbus profile. Counters begin at a
// plausible figure at the time start. A device of SunSpec has model 1 and
// those models that the points name first, from register 40000 on.
func NewMeter(p *profile.Profile, seed uint64, start time.Time) (*Meter, error) {
	m := &Meter{profile: p.Usual(), seed: seed, points: make([]signal, len(p.Points)), memory: &Unit{}}
	if p.SunSpec() {
		m.models, p = p.UsualModels(), m.profile
	}
	factors := map[string]bool{}
	for i := range p.Points {
		factors[string(p.Points[i].SF)] = true
	}
	for i, tp := range p.TelemetryPoints("") {
		pt := &p.Points[i]
		t, addr, ok := pt.Place()
		if !ok {
			return nil, fmt.Errorf("sim: profile %s: point %s has no registers", p.Name, pt.Name)
		}
		m.points[i] = newSignal(pt, tp.Decimals, seed)
		if m.models != nil && pt.SF != "" {
			m.points[i].power = sunspecPowers[pt.Unit]
		}
		m.points[i].fixed = factors[pt.Name]
		m.points[i].middle -= m.points[i].rate * float64(start.Unix())
		b, err := m.encode(i, start)
		if err != nil {
			return nil, fmt.Errorf("sim: profile %s: %w", p.Name, err)
		}
		n := len(b)
		if !t.Bits() {
			n /= 2
		}
		m.spans = append(m.spans, &stretch{t, int(addr), int(addr) + n, []int{i}})
	}
	m.join()
	return m, m.Fill(m.memory)
}

// Hold keeps a point at a value, which is written as a person writes it.
func (m *Meter) Hold(point, value string) error {
	i, v, err := heldValue(m.profile, point, value)
	if err == nil {
		_, err = m.profile.Encode(i, v, m.points[i].power)
	}
	if err != nil {
		return err
	}
	m.points[i].held = v
	return nil
}

func heldValue(p *profile.Profile, point, value string) (int, telemetry.Value, error) {
	i := slices.IndexFunc(p.Points, func(pt profile.Point) bool { return pt.Name == point })
	if i < 0 {
		return 0, telemetry.Value{}, fmt.Errorf("profile %s has no point %q", p.Name, point)
	}
	v, err := p.ParseValue(i, value)
	return i, v, err
}

// join makes one stretch of points that share registers.
func (m *Meter) join() {
	slices.SortFunc(m.spans, func(a, b *stretch) int {
		return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(a.from, b.from))
	})
	var out []*stretch
	for _, s := range m.spans {
		if n := len(out); n > 0 && out[n-1].table == s.table && s.from < out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			out[n-1].points = append(out[n-1].points, s.points...)
			continue
		}
		out = append(out, s)
	}
	m.spans = out
}

// Fill puts the device into a unit: all registers of the profile, its limits
// on the size of a request, and no register more.
func (m *Meter) Fill(u *Unit) error {
	for i := range m.profile.Points {
		r, err := m.profile.PointRequest(i)
		if err != nil {
			return fmt.Errorf("sim: profile %s: %w", m.profile.Name, err)
		}
		u.Define(r.Table, r.Address, int(r.Count)) // with its scale factor
	}
	m.fillHoles(u)
	m.layModels(u)
	for _, s := range m.spans {
		u.Live(s.table, uint16(s.from), s.to-s.from, func(now time.Time, regs []uint16) { m.fill(s, now, regs) })
	}
	u.Limit(m.profile.MaxRead, m.profile.MaxBits)
	m.sign(u)
	return nil
}

// sunspecPowers are the scale factors of quantities in a device of SunSpec;
// the others have 0.
var sunspecPowers = map[string]int{"V": -1, "A": -2, "Hz": -2, "/": -2, "Cel": -1}

// layModels writes the marker of SunSpec, the models with what model 1 says
// of the maker, the scale factors, and the end. Registers without a point of
// the profile are 0.
func (m *Meter) layModels(u *Unit) {
	if m.models == nil {
		return
	}
	end := 0
	for _, x := range m.models {
		u.Define(profile.Holding, uint16(x.At), 2+x.Length)
		u.Set(profile.Holding, uint16(x.At), uint16(x.ID), uint16(x.Length))
		end = x.At + 2 + x.Length
	}
	u.Set(profile.Holding, uint16(end), 0xFFFF, 0)
	first := m.models[0].At
	u.Set(profile.Holding, uint16(first-2), unpackRegs([]byte("SunS"))...)
	for at, text := range map[int]string{2: "tidegate", 18: m.profile.Name, 42: "sim", 50: fmt.Sprintf("%08d", m.seed%1e8)} {
		b := make([]byte, 32)
		copy(b[:31], text)
		if at == 42 {
			b = b[:16]
		}
		u.Set(profile.Holding, uint16(first+at), unpackRegs(b)...)
	}
	for i := range m.profile.Points {
		// The others have 0, where they have one.
		if at, err := strconv.Atoi(string(m.profile.Points[i].SF)); err == nil {
			u.Set(profile.Holding, uint16(at), uint16(int16(m.points[i].power)))
		}
	}
}

// sign makes the device be recognised: what the reads of detect look at is
// as they want it, where it is not so anyway.
func (m *Meter) sign(u *Unit) {
	for _, s := range m.profile.Signs() {
		t, addr, count := s.Request.Table, s.Request.Address, int(s.Request.Count)
		if now, have := u.Get(t, addr, count); have {
			if _, ok, _ := s.Judge(wireBytes(t, now)); ok {
				continue
			}
		}
		b := s.Model()
		switch {
		case b == nil:
		case t.Bits():
			u.Fix(t, addr, uint16(b[0]))
		default:
			u.Fix(t, addr, unpackRegs(b)...)
		}
	}
}

// wireBytes writes values as an answer carries them.
func wireBytes(t profile.Table, values []uint16) []byte {
	if t.Bits() {
		return packBits(values)
	}
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// fillHoles makes the registers between the points that the profile lets a
// master read across.
func (m *Meter) fillHoles(u *Unit) {
	for i := 1; i < len(m.spans); i++ {
		a, b := m.spans[i-1], m.spans[i]
		widest := 125
		if a.table.Bits() {
			widest = 2000
		}
		if g := m.profile.MaxGap; g != nil {
			widest = *g
		}
		if a.table != b.table || b.from-a.to > widest {
			continue
		}
		for addr := a.to; addr < b.from; addr++ {
			if !m.forbidden(a.table, addr) {
				u.Define(a.table, uint16(addr), 1)
			}
		}
	}
}

func (m *Meter) forbidden(t profile.Table, addr int) bool {
	for _, f := range m.profile.Forbidden {
		r := map[profile.Table][]int{profile.Coils: f.Coil, profile.Discrete: f.Discrete,
			profile.Holding: f.Holding, profile.Input: f.Input}[t]
		if len(r) == 2 && addr >= r[0] && addr <= r[1] {
			return true
		}
	}
	return false
}

func (m *Meter) fill(s *stretch, now time.Time, regs []uint16) {
	for _, i := range s.points {
		// NewMeter has tried it; a course that leaves the type later stays at 0.
		b, err := m.encode(i, now)
		if err != nil {
			continue
		}
		_, addr, _ := m.profile.Points[i].Place()
		at := int(addr) - s.from
		if s.table.Bits() {
			regs[at] |= uint16(b[0])
			continue
		}
		for k := 0; k+1 < len(b); k += 2 {
			regs[at+k/2] |= binary.BigEndian.Uint16(b[k:])
		}
	}
}

// Truth returns the reading of every point, in the order of the profile, as
// a master sees it that asks at this moment. Registers that were written are
// not looked at.
func (m *Meter) Truth(now time.Time) []telemetry.Reading {
	var out []telemetry.Reading
	m.memory.mu.Lock()
	defer m.memory.mu.Unlock()
	for i := range m.profile.Points {
		r, err := m.profile.PointRequest(i)
		if err != nil {
			continue // NewMeter has refused such a profile
		}
		regs := make([]uint16, r.Count)
		m.memory.tables[r.Table].get(int(r.Address), regs, now)
		out = m.profile.Decode(r, wireBytes(r.Table, regs), 0, out)
	}
	return out
}

func (m *Meter) encode(i int, now time.Time) ([]byte, error) {
	pt, s := &m.profile.Points[i], &m.points[i]
	sec := now.Unix()
	var v telemetry.Value
	switch {
	case s.held.Kind() != telemetry.None:
		v = s.held
	case s.fixed:
		v = telemetry.IntValue(0, 0)
	case len(pt.Enum) > 0:
		keys := make([]int64, 0, len(pt.Enum))
		for k := range pt.Enum {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		v = telemetry.TextValue(pt.Enum[keys[mix(s.seed, sec/120)%uint64(len(keys))]])
	case len(pt.Flags) > 0:
		v = telemetry.TextValue("")
		for bit, word := range pt.Flags {
			if mix(s.seed, sec/120)%64 == uint64(bit) {
				v = telemetry.TextValue(word)
			}
		}
	case pt.Type == "string":
		v = telemetry.TextValue(fmt.Sprintf("%02d", s.seed%100))
	case isBit(pt):
		v = telemetry.BoolValue(mix(s.seed, sec/30)%4 == 0)
	default:
		x := s.at(sec)
		if b, err := m.profile.Encode(i, telemetry.Float64Value(roundTo(x, s.decimals)), s.power); err == nil {
			return b, nil
		}
		v = telemetry.IntValue(0, 0)
	}
	return m.profile.Encode(i, v, s.power)
}

func isBit(pt *profile.Point) bool {
	t, _, _ := pt.Place()
	return t.Bits() || pt.Bit != nil || pt.Type == "bit"
}

func (s *signal) at(sec int64) float64 {
	if s.rate > 0 {
		return s.middle + s.rate*float64(sec)
	}
	jitter := float64(mix(s.seed, sec)>>11)/(1<<52) - 1
	return s.middle + s.swing*math.Sin(2*math.Pi*float64(sec)/s.period+s.phase) + s.noise*jitter
}

// newSignal chooses a course by unit, kind and range of the point.
func newSignal(pt *profile.Point, decimals int, seed uint64) signal {
	h := fnv.New64a()
	h.Write([]byte(pt.Name))
	s := signal{seed: mix(h.Sum64()^seed, 0), decimals: decimals}
	share := func(n int64) float64 { return float64(mix(s.seed, -n)>>11) / (1 << 53) }
	type course struct{ middle, swing, noise float64 }
	c, known := map[string]course{
		"V": {230, 3, 1}, "A": {6, 3, 0.2}, "W": {1400, 800, 30}, "kW": {1.4, 0.8, 0.03},
		"VA": {1500, 800, 30}, "var": {200, 120, 10}, "Hz": {50, 0.02, 0.01}, "Cel": {21, 3, 0.1},
		"%RH": {48, 8, 0.5}, "ppm": {620, 180, 8}, "ug/m3": {11, 6, 1}, "hPa": {1013, 6, 0.2},
		"m/s": {4, 2, 0.8}, "deg": {180, 90, 10}, "1": {0.95, 0.03, 0.01}, "/": {0.95, 0.03, 0.01},
	}[pt.Unit]
	if !known {
		c = course{50, 20, 1}
	}
	if len(pt.Range) == 2 {
		lo, hi := pt.Range[0].Float(), pt.Range[1].Float()
		if reach := c.swing + c.noise; c.middle-reach < lo || c.middle+reach > hi {
			c = course{(lo + hi) / 2, (hi - lo) * 0.3, (hi - lo) * 0.02}
		}
	}
	s.middle, s.swing, s.noise = c.middle, c.swing, c.noise
	s.period, s.phase = 240+600*share(1), 2*math.Pi*share(2)
	if pt.Kind == "counter" {
		s.middle, s.rate = math.Floor(100+900*share(3)), 0.0004+0.002*share(4)
	}
	return s
}

func roundTo(x float64, decimals int) float64 {
	if decimals <= 0 || decimals > 9 {
		decimals = 3
	}
	p := math.Pow10(decimals)
	return math.Round(x*p) / p
}

// mix is the finaliser of SplitMix64 over both numbers.
func mix(seed uint64, n int64) uint64 {
	x := seed + uint64(n)*0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
