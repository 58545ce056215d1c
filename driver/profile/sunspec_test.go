package profile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// memory is the holding registers of a device; what is not in it is refused.
type memory map[int]uint16

func (m memory) read(addr, count uint16) ([]byte, error) {
	var b []byte
	for a := int(addr); a < int(addr)+int(count); a++ {
		v, ok := m[a]
		if !ok {
			return nil, fmt.Errorf("%w: register %d", ErrRefused, a)
		}
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b, nil
}

func (m memory) put(at int, values ...uint16) int {
	for i, v := range values {
		m[at+i] = v
	}
	return at + len(values)
}

// chainAt lays out models with the lengths given; the contents are 0.
func chainAt(base int, models ...[2]int) memory {
	m := memory{}
	at := m.put(base, 0x5375, 0x6e53)
	for _, x := range models {
		at = m.put(at, uint16(x[0]), uint16(x[1]))
		at = m.put(at, make([]uint16, x[1])...)
	}
	m.put(at, 0xFFFF, 0)
	return m
}

func TestWalkSunSpec(t *testing.T) {
	for _, base := range sunspecBases {
		for _, length := range []int{65, 66} { // the pad register of model 1
			got, err := WalkSunSpec(chainAt(base, [2]int{1, length}, [2]int{103, 50}, [2]int{160, 48}).read)
			want := []Model{{1, base + 2, length}, {103, base + 4 + length, 50}, {160, base + 56 + length, 48}}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("base %d: %v, %v", base, got, err)
			}
		}
	}
	endless := func(addr, count uint16) ([]byte, error) {
		if addr == 40000 {
			return []byte("SunS"), nil
		}
		return []byte{0, 7, 0, 1}, nil
	}
	cut := chainAt(40000, [2]int{1, 66}, [2]int{103, 50})
	delete(cut, 40070)
	zero := chainAt(40000, [2]int{1, 66}, [2]int{103, 0})
	high := memory{}
	high.put(high.put(50000, 0x5375, 0x6e53), 1, 65000)
	broken := errors.New("timeout")
	for name, c := range map[string]struct {
		read func(addr, count uint16) ([]byte, error)
		want error
	}{
		"no marker":        {memory{40000: 1, 40001: 2, 0: 0x5375, 1: 0}.read, ErrNoSunSpec},
		"nothing there":    {memory{}.read, ErrNoSunSpec},
		"no end":           {endless, ErrSunSpecChain},
		"cut short":        {cut.read, ErrSunSpecChain},
		"a length of 0":    {zero.read, ErrSunSpecChain},
		"beyond the end":   {high.read, ErrSunSpecChain},
		"a short answer":   {func(uint16, uint16) ([]byte, error) { return []byte{1}, nil }, ErrSunSpecChain},
		"the device fails": {func(uint16, uint16) ([]byte, error) { return nil, broken }, broken},
	} {
		if chain, err := WalkSunSpec(c.read); !errors.Is(err, c.want) || chain != nil {
			t.Errorf("%s: %v, %v", name, chain, err)
		}
	}
}

// TestLocate: each point stands in the first model that has it, what a model
// is too short for is missing, and no request asks for a factor apart from
// its value.
func TestLocate(t *testing.T) {
	lib, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sunspec-inverter", "sunspec-meter"} {
		p, err := lib.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Points {
			for k := range p.Points[i].SunSpec {
				s := &p.Points[i].SunSpec[k]
				for _, id := range s.Model {
					found, missing := p.Locate([]Model{{ID: 1, At: 40002, Length: 66}, {ID: id, At: 40070, Length: 400}})
					if slices.Contains(missing, i) {
						t.Errorf("%s: %s is not in model %d", name, p.Points[i].Name, id)
						continue
					}
					_, addr, _ := found.Points[i].Place()
					if int(addr) != 40070+s.At {
						t.Errorf("%s: %s of model %d stands at %d", name, p.Points[i].Name, id, addr)
					}
				}
			}
		}
		if _, missing := p.Locate(nil); len(missing) != len(p.Points) {
			t.Errorf("%s: %d of %d points are missing without a model", name, len(missing), len(p.Points))
		}
		found, _ := p.Locate([]Model{{ID: 103, At: 40070, Length: 50}, {ID: 160, At: 40122, Length: 48}, {ID: 203, At: 40172, Length: 105}})
		for _, r := range found.Plan(Limits{}) {
			for _, i := range r.Points {
				c := &found.codecs[i]
				if lo, hi := c.span(); lo < int(r.Address) || hi > int(r.Address)+int(r.Count) {
					t.Errorf("%s: %s and its factor do not come in one answer", name, found.Points[i].Name)
				}
			}
		}
	}
	p, _ := lib.Get("sunspec-inverter")
	_, short := p.Locate([]Model{{ID: 103, At: 40070, Length: 25}})
	if i := p.index("dc_voltage"); !slices.Contains(short, i) || slices.Contains(short, p.index("power_factor")) {
		t.Errorf("a model of 25 registers: %v are missing", short)
	}
}

func FuzzWalkSunSpec(f *testing.F) {
	seed := func(m memory, base int) {
		var b []byte
		for a := base; ; a++ {
			v, ok := m[a]
			if !ok {
				break
			}
			b = binary.BigEndian.AppendUint16(b, v)
		}
		f.Add(uint16(base), b)
	}
	seed(chainAt(40000, [2]int{1, 65}, [2]int{103, 50}), 40000)
	seed(chainAt(0, [2]int{1, 66}, [2]int{203, 105}), 0)
	seed(memory{50000: 0x5375, 50001: 0x6e53, 50002: 1, 50003: 65535}, 50000)
	lib, err := Load()
	if err != nil {
		f.Fatal(err)
	}
	p, err := lib.Get("sunspec-inverter")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, base uint16, b []byte) {
		m, n := memory{}, 0
		for i := 0; i+1 < len(b); i += 2 {
			m[int(base)+i/2] = binary.BigEndian.Uint16(b[i:])
		}
		chain, err := WalkSunSpec(func(addr, count uint16) ([]byte, error) {
			if n++; n > 2*maxModels {
				t.Fatal("the walk does not end")
			}
			return m.read(addr, count)
		})
		if err != nil && chain != nil {
			t.Fatal("models with an error")
		}
		found, missing := p.Locate(chain)
		for _, r := range found.Plan(Limits{}) {
			if int(r.Address)+int(r.Count) > 65536 {
				t.Fatalf("%+v", r)
			}
		}
		if len(missing) > len(p.Points) {
			t.Fatal(missing)
		}
	})
}
