package main

import (
	"fmt"
	"strconv"
	"strings"

	"tidegate/driver/profile"
)

// register is a place on a device as a person writes it: input:0, holding:40,
// coil:3 and discrete:3 are wire addresses from 0; 30001, 40041, 400041,
// 10001 and 1 are numbers of the manual. A count may follow: 30001+2.
type register struct {
	table profile.Table
	addr  uint16
	count uint16 // 0: as the type needs
}

func parseRegister(s string) (register, error) {
	var r register
	place, count, counted := strings.Cut(s, "+")
	if counted {
		n, err := strconv.ParseUint(count, 10, 16)
		if err != nil || n == 0 || n > 2000 {
			return r, usage{fmt.Errorf("register %q: the count after + must be 1 to 125 (bits: 2000)", s)}
		}
		r.count = uint16(n)
	}
	if name, addr, ok := strings.Cut(place, ":"); ok {
		tables := map[string]profile.Table{"coil": profile.Coils, "discrete": profile.Discrete,
			"holding": profile.Holding, "input": profile.Input}
		t, known := tables[name]
		n, err := strconv.ParseUint(addr, 0, 16)
		if !known || err != nil {
			return r, usage{fmt.Errorf("register %q: write input:0, holding:40, coil:3 or discrete:3 (wire addresses 0 to 65535)", s)}
		}
		r.table, r.addr = t, uint16(n)
		return r, nil
	}
	n, err := strconv.Atoi(place)
	if err != nil {
		return r, usage{fmt.Errorf("register %q: write input:0 or holding:40 (wire address from 0), or 30001 or 40041 (number of the manual)", s)}
	}
	pt := profile.Point{Register: &n}
	t, addr, ok := pt.Place()
	if !ok {
		return r, usage{fmt.Errorf("register %q is no number of a manual: 1 to 9999 coils, 10001 discrete, 30001 input, 40001 or 400001 holding; from 0 on write holding:%d", s, n)}
	}
	r.table, r.addr = t, addr
	return r, nil
}

// String writes the wire address and the manual's number, both.
func (r register) String() string {
	if r.count > 1 {
		last := r.addr + r.count - 1
		return fmt.Sprintf("%v %d..%d (manual %d..%d)", r.table, r.addr, last,
			profile.ManualNumber(r.table, r.addr), profile.ManualNumber(r.table, last))
	}
	return fmt.Sprintf("%v %d (manual %d)", r.table, r.addr, profile.ManualNumber(r.table, r.addr))
}

// words is how many registers a type takes, 0 for an unknown one.
func words(typ string) uint16 {
	switch typ {
	case "u8", "s8", "u16", "s16", "bcd16":
		return 1
	case "u24", "s24", "u32", "s32", "f32", "bcd24", "bcd32":
		return 2
	case "bcd48":
		return 3
	case "u64", "s64", "f64", "bcd64":
		return 4
	}
	return 0
}
