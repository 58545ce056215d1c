package profile

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"tidegate/internal/telemetry"
)

// Sign is one read of `detect`, ready for use: what to ask, and what the
// answer must be.
type Sign struct {
	Request Request
	probe   *Profile // of the one point that is read
	is      Marker
	name    string // of the point of the profile that stands there, "" if none
}

// Signs returns the reads that tell a Modbus device from others, in the
// order of the profile; none if it has no detect.
func (p *Profile) Signs() []Sign {
	if p.Transport != "modbus" {
		return nil
	}
	var out []Sign
	for i := range p.Detect {
		d := &p.Detect[i]
		s := Sign{probe: d.single(p, func(string, string, string) {}), is: d.Is}
		r, err := s.probe.PointRequest(0)
		if err != nil {
			continue // the file was refused for it
		}
		r.Points, s.Request = []int{0}, r
		for k := range p.Points {
			if c := &p.codecs[k]; c.sameCell(&s.probe.codecs[0]) {
				s.name = p.Points[k].Name
				if d.Unit == "" {
					s.probe.Points[0].Unit = p.Points[k].Unit
				}
				break
			}
		}
		if d.Title != "" {
			s.name = d.Title
		}
		out = append(out, s)
	}
	return out
}

// single makes a profile of the one point that a probe reads.
func (d *Probe) single(p *Profile, r report) *Profile {
	probe := &Profile{Transport: p.Transport, Points: []Point{d.Point}, codecs: make([]codec, 1)}
	probe.Points[0].Name = "probe"
	probe.buildPoint(0, r)
	return probe
}

// Judge says whether the answer to Request is what the sign demands, and
// what it says, such as "voltage_l1 230.9 V". zero tells that the device
// answered nothing but zeros, which many do where they have no register.
func (s *Sign) Judge(data []byte) (seen string, ok, zero bool) {
	if s.Request.fits(data) != telemetry.CauseNone {
		return "", false, false
	}
	zero = true
	for _, b := range data {
		zero = zero && b == 0
	}
	rd := s.probe.Decode(s.Request, data, 0, nil)[0]
	ok = rd.Quality == telemetry.Good && (s.is == "" || sameValue(rd.Value, string(s.is)))
	seen = rd.Value.String()
	if rd.Value.Kind() == telemetry.None {
		seen = ReadingText(rd)
	} else if u := s.probe.Points[0].Unit; u != "" && u != "1" && u != "/" {
		seen += " " + u
	}
	name := s.name
	if name == "" {
		name = fmt.Sprintf("%v %d", s.Request.Table, s.Request.Address)
	}
	return name + " " + seen, ok, zero
}

// Model returns an answer that the sign accepts, for simulators: the exact
// value, or the middle of the range; nil where there is none that the type
// can hold.
func (s *Sign) Model() []byte {
	pt := &s.probe.Points[0]
	v := telemetry.BoolValue(true)
	switch c := &s.probe.codecs[0]; {
	case s.is != "" && c.act == actString:
		v = telemetry.TextValue(string(s.is))
	case s.is != "" && (c.bit1 || c.act == actBool):
		v = telemetry.BoolValue(string(s.is) == "true" || string(s.is) == "1")
	case s.is != "":
		x, err := parseRat(string(s.is))
		if n, e := strconv.ParseUint(strings.TrimSpace(string(s.is)), 0, 64); err != nil && e == nil {
			x = new(big.Rat).SetUint64(n)
		} else if err != nil {
			return nil
		}
		f, _ := x.Float64()
		v = telemetry.Float64Value(f)
	case len(pt.Range) == 2:
		v = telemetry.Float64Value(math.Floor((pt.Range[0].Float() + pt.Range[1].Float()) / 2))
	}
	b, err := s.probe.Encode(0, v, 0)
	if err != nil {
		return nil
	}
	if s.Request.Table.Bits() {
		b = b[:1]
	}
	if _, ok, _ := s.Judge(b); !ok {
		return nil
	}
	return b
}

// sameValue compares a value with a number, in any notation, or a text.
func sameValue(v telemetry.Value, is string) bool {
	if v.Kind() == telemetry.Text || v.Kind() == telemetry.Bool {
		return v.String() == strings.TrimSpace(is)
	}
	got, ok := new(big.Rat).SetString(v.String())
	want, err := parseRat(is)
	if err != nil {
		n, e := strconv.ParseUint(strings.TrimSpace(is), 0, 64)
		want, err = new(big.Rat).SetUint64(n), e
	}
	return ok && err == nil && got.Cmp(want) == 0
}

// Explains says whether what the sign saw fits this profile, too: it has a
// point written in the same way there for which the answer is a good value,
// or the sign looks at a part of a larger point. Then the sign does not part
// the two.
func (p *Profile) Explains(s *Sign, data []byte) bool {
	for i := range p.codecs {
		c := &p.codecs[i]
		if c.table == s.Request.Table && c.count > s.Request.Count && c.addr <= s.Request.Address &&
			int(c.addr)+int(c.count) >= int(s.Request.Address)+int(s.Request.Count) {
			return true
		}
		if !c.sameCell(&s.probe.codecs[0]) {
			continue
		}
		r, err := p.PointRequest(i)
		if err != nil || r.Address != s.Request.Address || r.Count != s.Request.Count {
			continue
		}
		if rd := p.Decode(r, data, 0, nil); len(rd) == 1 && rd[0].Quality == telemetry.Good {
			return true
		}
	}
	return false
}

// sameCell says whether two points are the same registers, read as the same type.
func (c *codec) sameCell(o *codec) bool {
	return c.table != 0 && c.table == o.table && c.addr == o.addr && c.count == o.count &&
		c.load == o.load && c.sub == o.sub && c.width == o.width && c.signed == o.signed &&
		(c.act == o.act || c.act == actEnum && o.act == actInt || c.act == actInt && o.act == actEnum)
}
