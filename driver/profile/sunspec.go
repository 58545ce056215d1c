package profile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// SunSpec is one place of a point in the models of the SunSpec Alliance
// (SunSpec Device Information Model Specification; the models themselves are
// published as sunspec/models). A device has a chain of models, and where it
// stands is found out on the device: see [WalkSunSpec].
type SunSpec struct {
	Model  []int  `yaml:"model" required:"true" doc:"Models that have the point at this place; the first one that the device has counts."`
	At     int    `yaml:"at" required:"true" min:"2" max:"65535" doc:"Register in the model; its id is register 0, its length register 1."`
	Type   string `yaml:"type" required:"true" enum:"u16,s16,u32,s32,acc32,u64,f32,enum16,bits32,string" doc:"How the value is written. Its marker for 'not implemented' goes along."`
	SF     *int   `yaml:"sf" min:"2" max:"65535" doc:"Register in the model with the scale factor, a power of ten."`
	Length int    `yaml:"length" min:"0" max:"125" doc:"Registers of a string."`
}

// sunspecTypes are the types of SunSpec in ours, with what stands for "not
// implemented" (specification, 4.2).
var sunspecTypes = map[string]struct {
	base      string
	registers int
	na        []Marker
}{
	"u16": {"u16", 1, []Marker{"0xFFFF"}}, "s16": {"s16", 1, []Marker{"0x8000"}},
	"u32": {"u32", 2, []Marker{"0xFFFFFFFF"}}, "s32": {"s32", 2, []Marker{"0x80000000"}},
	"acc32": {"u32", 2, []Marker{"0"}}, "u64": {"u64", 4, []Marker{"0xFFFFFFFFFFFFFFFF"}},
	"f32": {"f32", 2, nil}, "enum16": {"u16", 1, []Marker{"0xFFFF"}},
	"bits32": {"u32", 2, []Marker{"0xFFFFFFFF"}}, "string": {"string", 0, []Marker{""}},
}

// SunSpec says whether the device has the models of SunSpec.
func (p *Profile) SunSpec() bool { return p.Handshake != nil && p.Handshake.Kind == "sunspec" }

// checkSunSpec checks a point that stands in models, and prepares what is
// known of it before the device is reached.
func (p *Profile) checkSunSpec(pt *Point, c *codec, r report) {
	if !p.SunSpec() {
		r("sunspec", "this device has no models of SunSpec", "write handshake: sunspec")
		return
	}
	if _, _, placed := pt.Place(); placed || pt.At != nil || pt.inText() || pt.Type != "" || pt.SF != "" || pt.NA != nil || pt.Write != nil {
		r("", "a point of SunSpec has its place, type and scale factor under sunspec", "keep name, unit, kind, scale, decimals, range and words")
		return
	}
	for i := range pt.SunSpec {
		if s := &pt.SunSpec[i]; len(s.Model) == 0 || (s.Type == "string") != (s.Length > 0) {
			r("sunspec["+strconv.Itoa(i)+"]", "a place names a model, and a string has a length", "write {model: [103], at: 10, type: u16, sf: 13}")
			return
		}
	}
	pt.checkMeaning(r)
	if num, ok := pt.numbers(r); ok {
		c.num = num
	}
	// Whether all of it can be read shows where it stands: in each model.
	for i := range pt.SunSpec {
		for _, m := range pt.SunSpec[i].Model {
			if _, err := p.settle(pt, &Model{ID: m, At: 40000, Length: 1000}, &pt.SunSpec[i], make([]codec, 1)); err != nil {
				r("sunspec["+strconv.Itoa(i)+"]", err.Error(), "")
				return
			}
		}
	}
}

// Model is one model of a device: At is the register with its id, Length how
// many registers follow the length.
type Model struct{ ID, At, Length int }

// Errors of WalkSunSpec.
var (
	ErrNoSunSpec    = errors.New("there is no SunSpec marker at 40000, 50000 or 0")
	ErrSunSpecChain = errors.New("the chain of SunSpec models is broken")
)

// sunspecBases is where the marker may stand.
var sunspecBases = []int{40000, 50000, 0}

// maxModels bounds a chain; devices have one to two dozen models.
const maxModels = 100

// WalkSunSpec reads the chain of models of a device from its holding
// registers. Lengths are believed as they are read: model 1 has 65 registers
// with some makers and 66 with others. read asks for registers; where the
// device refuses them, its error is ErrRefused. Any other error ends the
// walk. ErrNoSunSpec and ErrSunSpecChain say what is wrong with the device.
func WalkSunSpec(read func(addr, count uint16) ([]byte, error)) ([]Model, error) {
	two := func(at int) (a, b int, err error) {
		if at > 65534 {
			return 0, 0, fmt.Errorf("%w: it goes beyond register 65535", ErrSunSpecChain)
		}
		d, err := read(uint16(at), 2)
		if err == nil && len(d) != 4 {
			err = fmt.Errorf("%w: %d bytes for two registers", ErrSunSpecChain, len(d))
		}
		if err != nil {
			return 0, 0, err
		}
		return int(binary.BigEndian.Uint16(d)), int(binary.BigEndian.Uint16(d[2:])), nil
	}
	at := -1
	for _, base := range sunspecBases {
		a, b, err := two(base)
		if err != nil && !errors.Is(err, ErrRefused) {
			return nil, err
		}
		if err == nil && a == 'S'<<8|'u' && b == 'n'<<8|'S' {
			at = base + 2
			break
		}
	}
	if at < 0 {
		return nil, ErrNoSunSpec
	}
	var chain []Model
	for len(chain) < maxModels {
		id, length, err := two(at)
		switch {
		case errors.Is(err, ErrRefused):
			return nil, fmt.Errorf("%w: register %d, where the next model should begin, is refused", ErrSunSpecChain, at)
		case err != nil:
			return nil, err
		case id == 0xFFFF:
			return chain, nil
		case length == 0 || id == 0:
			return nil, fmt.Errorf("%w: model %d at register %d has %d registers", ErrSunSpecChain, id, at, length)
		}
		chain = append(chain, Model{id, at, length})
		at += 2 + length
	}
	return nil, fmt.Errorf("%w: it has no end after %d models", ErrSunSpecChain, maxModels)
}

// Locate returns the profile of a device with these models: its points, in
// the order of p, stand in holding registers, but for those that the device
// does not have, whose indexes are missing. The order of the models counts
// where several have a point.
func (p *Profile) Locate(chain []Model) (found *Profile, missing []int) {
	q := *p
	q.Handshake, q.Points, q.codecs = nil, slices.Clone(p.Points), make([]codec, len(p.Points))
next:
	for i := range p.Points {
		pt := &p.Points[i]
		for k := range pt.SunSpec {
			s := &pt.SunSpec[k]
			for m := range chain {
				if !slices.Contains(s.Model, chain[m].ID) || s.At+s.size() > 2+chain[m].Length || s.SF != nil && *s.SF >= 2+chain[m].Length {
					continue
				}
				if set, err := p.settle(pt, &chain[m], s, q.codecs[i:i+1]); err == nil {
					q.Points[i] = set
					continue next
				}
			}
		}
		missing = append(missing, i)
	}
	return &q, missing
}

func (s *SunSpec) size() int { return sunspecTypes[s.Type].registers + s.Length }

// settle makes an ordinary point of one that stands in a model, and its codec.
func (p *Profile) settle(pt *Point, m *Model, s *SunSpec, into []codec) (Point, error) {
	t := sunspecTypes[s.Type]
	one := *pt
	addr := m.At + s.At
	one.SunSpec, one.Holding, one.Type, one.NA, one.Length = nil, &addr, t.base, t.na, s.Length
	if s.SF != nil {
		one.SF = Ref(strconv.Itoa(m.At + *s.SF))
	}
	set := &Profile{Transport: "modbus", Points: []Point{one}, MaxRead: p.MaxRead, codecs: into}
	var err error
	set.buildPoint(0, func(path, msg, hint string) {
		if err == nil {
			err = errors.New(msg)
		}
	})
	return one, err
}

// sunspecLengths are how many registers follow the length of a model, as it
// is published; model 160 with two trackers.
var sunspecLengths = map[int]int{1: 66, 101: 50, 102: 50, 103: 50, 111: 60, 112: 60, 113: 60, 160: 48,
	201: 105, 202: 105, 203: 105, 204: 105, 211: 124, 212: 124, 213: 124, 214: 124}

// Usual is the profile as it stands in the device that it was made for: one
// with [Profile.UsualModels]. Bus plans are made with it.
func (p *Profile) Usual() *Profile {
	if !p.SunSpec() {
		return p
	}
	q, _ := p.Locate(p.UsualModels())
	return q
}

// UsualModels are the models of a device that has each point in the first
// place that the profile gives: model 1, then these, from register 40002 on.
func (p *Profile) UsualModels() []Model {
	chain := []Model{{ID: 1, Length: sunspecLengths[1]}}
	for i := range p.Points {
		s := &p.Points[i].SunSpec[0]
		k := slices.IndexFunc(chain, func(m Model) bool { return m.ID == s.Model[0] })
		if k < 0 {
			chain, k = append(chain, Model{ID: s.Model[0], Length: sunspecLengths[s.Model[0]]}), len(chain)
		}
		need := s.At + s.size()
		if s.SF != nil {
			need = max(need, *s.SF+1)
		}
		chain[k].Length = max(chain[k].Length, need-2)
	}
	at := sunspecBases[0] + 2
	for k := range chain {
		chain[k].At = at
		at += 2 + chain[k].Length
	}
	return chain
}
