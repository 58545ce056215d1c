package sim

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/driver/profile"
)

// Unit is one Modbus device: four tables of registers and bits that exist or
// do not. A request that touches one that does not exist is refused with
// exception 2. It is safe for concurrent use.
type Unit struct {
	mu     sync.Mutex
	tables [5]table // by the number of the profile.Table; 0 is unused
	limits [2]int   // most registers and bits of a read; 0 is what Modbus allows
	off    atomic.Bool
	served atomic.Int64
}

type table struct {
	pages map[uint8]*page // by the high byte of the address
	live  []live
	fixed []fixed
	traps []trap
}

type page struct {
	have [256]bool
	regs [256]uint16
}

type live struct {
	addr, count int
	fill        func(now time.Time, regs []uint16)
}

type fixed struct {
	addr   int
	values []uint16
}

type trap struct {
	addr, count int
	fault       Fault
}

// Set makes registers (or bits: 0 is off, all else is on) exist from address
// on and gives them values. Addresses past 65535 are left out.
func (u *Unit) Set(t profile.Table, address uint16, values ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, v := range values {
		u.tables[t].put(int(address)+i, v)
	}
}

// Fix is Set for registers that may be live: from now on they keep these
// values, and only they.
func (u *Unit) Fix(t profile.Table, address uint16, values ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, v := range values {
		u.tables[t].put(int(address)+i, v)
	}
	u.tables[t].fixed = append(u.tables[t].fixed, fixed{int(address), values})
}

// Define makes count registers or bits exist from address on, with value 0.
func (u *Unit) Define(t profile.Table, address uint16, count int) {
	u.Set(t, address, make([]uint16, count)...)
}

// Live makes count registers or bits exist whose values change in time: fill
// is called under the unit's lock, once for each request that touches one of
// them, so that values of many registers change together. A register that a
// master has written keeps what was written.
func (u *Unit) Live(t profile.Table, address uint16, count int, fill func(now time.Time, regs []uint16)) {
	u.Define(t, address, count)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tables[t].live = append(u.tables[t].live, live{int(address), count, fill})
}

// Trap gives every request that touches one of count registers from address
// on this fault, whatever the plan says.
func (u *Unit) Trap(t profile.Table, address uint16, count int, f Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tables[t].traps = append(u.tables[t].traps, trap{int(address), count, f})
}

// Limit refuses reads of more registers or bits with exception 2, as devices
// with a small buffer do; 0 means what Modbus allows.
func (u *Unit) Limit(registers, bits int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.limits = [2]int{registers, bits}
}

// Get returns count values from address on as a master would read them at
// this moment; false if one of them does not exist.
func (u *Unit) Get(t profile.Table, address uint16, count int) ([]uint16, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	dst := make([]uint16, count)
	return dst, u.tables[t].get(int(address), dst, time.Now())
}

// SetOff takes the unit off the bus (true: it never answers) or back on.
func (u *Unit) SetOff(off bool) { u.off.Store(off) }

// Served returns how many requests the unit has got while it was on.
func (u *Unit) Served() int64 { return u.served.Load() }

func (t *table) put(addr int, v uint16) {
	if addr > 0xFFFF {
		return
	}
	if t.pages == nil {
		t.pages = map[uint8]*page{}
	}
	p := t.pages[uint8(addr>>8)]
	if p == nil {
		p = &page{}
		t.pages[uint8(addr>>8)] = p
	}
	p.have[addr&255], p.regs[addr&255] = true, v
}

func (t *table) get(addr int, dst []uint16, now time.Time) bool {
	if !t.has(addr, len(dst)) {
		return false
	}
	for _, l := range t.live {
		if addr < l.addr+l.count && l.addr < addr+len(dst) {
			regs := make([]uint16, l.count)
			l.fill(now, regs)
			for i, v := range regs {
				t.put(l.addr+i, v)
			}
			for _, f := range t.fixed {
				for i, v := range f.values {
					t.put(f.addr+i, v)
				}
			}
		}
	}
	for i := range dst {
		dst[i] = t.pages[uint8((addr+i)>>8)].regs[(addr+i)&255]
	}
	return true
}

func (t *table) has(addr, count int) bool {
	if addr+count > 0x10000 {
		return false
	}
	for a := addr; a < addr+count; a++ {
		if p := t.pages[uint8(a>>8)]; p == nil || !p.have[a&255] {
			return false
		}
	}
	return true
}

// write stores what a master wrote and ends live values there.
func (t *table) write(addr int, values []uint16) bool {
	if !t.has(addr, len(values)) {
		return false
	}
	kept := t.live[:0]
	for _, l := range t.live {
		if addr >= l.addr+l.count || l.addr >= addr+len(values) {
			kept = append(kept, l)
		}
	}
	t.live = kept
	t.fixed = slices.DeleteFunc(t.fixed, func(f fixed) bool { return addr < f.addr+len(f.values) && f.addr < addr+len(values) })
	for i, v := range values {
		t.put(addr+i, v)
	}
	return true
}

func (t *table) trapped(addr, count int) (Fault, bool) {
	for _, tr := range t.traps {
		if addr < tr.addr+tr.count && tr.addr < addr+count {
			return tr.fault, true
		}
	}
	return Fault{}, false
}
