package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"tidegate/driver/profile"
	"tidegate/internal/status"
)

// mostGuesses is how many ways of reading are shown.
const mostGuesses = 8

// guess is one way of reading, as --json tells it.
type guess struct {
	Register string  `json:"register"`
	Wire     int     `json:"wire_address"`
	Manual   int     `json:"manual_address"`
	Type     string  `json:"type"`
	Order    string  `json:"order,omitempty"`
	Scale    string  `json:"scale"`
	Value    string  `json:"value"`
	Off      float64 `json:"off"` // relative distance from what was expected
	Point    string  `json:"point"`
}

// window is registers that came together.
type window struct {
	table profile.Table
	first int
	hex   string
}

// readExpect finds out how a register is written from what it should show.
func (a *app) readExpect(ctx context.Context, args []string, q status.ReadRequest, reg register, f *readFlags) error {
	want, err := strconv.ParseFloat(strings.ReplaceAll(f.expect, ",", "."), 64)
	if err != nil {
		return usage{fmt.Errorf("--expect %q is no number", f.expect)}
	}
	if reg.table.Bits() {
		return usage{errors.New("--expect is for registers; a bit is on or off")}
	}
	tables := []profile.Table{reg.table, profile.Input}
	if reg.table == profile.Input {
		tables[1] = profile.Holding
	}
	var guesses []profile.Guess
	var read []window
	var via string
	var refused error
	for _, t := range tables { // the other table only where this one tells nothing
		windows, v, err := a.readWindows(ctx, args, q, t, int(reg.addr), f)
		if err != nil && len(windows) == 0 {
			if refused == nil {
				refused = err
			}
			if !declined(err) {
				return err // the device does not answer at all
			}
			continue
		}
		via = v
		for _, w := range windows {
			read = append(read, w)
			guesses = append(guesses, profile.Guesses(t, uint16(w.first), mustHex(w.hex), reg.addr, want)...)
		}
		if len(guesses) > 0 {
			break
		}
	}
	if len(read) == 0 && refused != nil {
		return refused
	}
	sort.SliceStable(guesses, func(i, k int) bool { return guesses[i].Cost < guesses[k].Cost })
	seen := map[string]bool{}
	guesses = slices.DeleteFunc(guesses, func(g profile.Guess) bool {
		twice := seen[g.Point()]
		seen[g.Point()] = true
		return twice
	})
	guesses = guesses[:min(len(guesses), mostGuesses)]
	a.printGuesses(q, reg, f, read, guesses, via)
	if len(guesses) == 0 {
		return exit(exitFindings)
	}
	return nil
}

func (a *app) printGuesses(q status.ReadRequest, reg register, f *readFlags, read []window, guesses []profile.Guess, via string) {
	if a.json {
		list := []guess{}
		for _, g := range guesses {
			list = append(list, guess{register{g.Table, g.Address, 1}.String(), int(g.Address), profile.ManualNumber(g.Table, g.Address),
				g.Type, strings.ToLower(g.Order), g.Scale, g.Value, g.Off, g.Point()})
		}
		printJSON(a.out, struct {
			Schema  string  `json:"schema"`
			Unit    int     `json:"unit"`
			Expect  string  `json:"expect"`
			Guesses []guess `json:"guesses"`
			Via     string  `json:"via"`
		}{"tidegate.read/1", q.Unit, f.expect, list, via})
		return
	}
	for _, w := range read {
		n := len(w.hex) / 4
		fmt.Fprintln(a.out, status.Wrap(fmt.Sprintf("%v   % x", register{w.table, uint16(w.first), uint16(n)}, mustHex(w.hex)), 80, "        "))
	}
	if len(guesses) == 0 {
		fmt.Fprintf(a.out, "nothing near %s, in no type, order or factor, from one register before %v to one behind\n", f.expect, register{reg.table, reg.addr, 1})
		return
	}
	rows := [][]string{{"VALUE", "REGISTER", "TYPE", "FACTOR", "LINE TO PASTE"}}
	for _, g := range guesses {
		rows = append(rows, []string{g.Value, register{g.Table, g.Address, 1}.String(), strings.TrimSpace(g.Type + " " + strings.ToLower(g.Order)), g.Scale, "value: " + g.Point()})
	}
	columns(a.out, rows, func(line string) string { return line }) // what is to be pasted stays in one line
	if g := guesses[0]; g.Table != reg.table {
		fmt.Fprintf(a.out, "the %v registers tell nothing of it: the manual means the other table\n", reg.table)
	} else if g.Address != reg.addr {
		fmt.Fprintf(a.out, "likely one register off: the manual counts from 1, or the other way round\n")
	}
}

// declined says whether the device itself refused, as for an address that
// it does not have.
func declined(err error) bool {
	var f *status.Failure
	return errors.As(err, &f) && (f.Code == "address" || f.Code == "exception")
}

// readWindows reads the registers around an address: at once, or piece by
// piece where the device refuses that.
func (a *app) readWindows(ctx context.Context, args []string, q status.ReadRequest, t profile.Table, addr int, f *readFlags) (out []window, via string, err error) {
	get := func(first, n int) error {
		q.Table, q.Addr, q.Count = int(t), first, n
		var reply status.ReadReply
		if reply, via, err = a.readOnce(ctx, args, q, f); err == nil {
			out = append(out, window{t, first, reply.Hex})
		}
		return err
	}
	first, last := max(addr-1, 0), min(addr+4, 65535)
	if err := get(first, last-first+1); err == nil || !declined(err) {
		return out, via, err
	}
	for at := first; at <= min(addr+1, 65535); at++ {
		for _, n := range []int{4, 2, 1} {
			if at+n > 65536 {
				continue
			}
			if err := get(at, n); err == nil {
				break
			} else if !declined(err) {
				return out, via, err
			}
		}
	}
	if len(out) > 0 {
		err = nil
	}
	return out, via, err
}

// readAround reads the registers before and behind as well, in every type.
func (a *app) readAround(ctx context.Context, args []string, q status.ReadRequest, reg register, f *readFlags) error {
	good := false
	var last error
	for shift := -1; shift <= 1; shift++ {
		addr := int(reg.addr) + shift
		if addr < 0 || addr+int(reg.count) > 65536 {
			continue
		}
		r := register{reg.table, uint16(addr), reg.count}
		q.Addr = addr
		reply, via, err := a.readOnce(ctx, args, q, f)
		switch {
		case err == nil:
			good = true
			all := *f
			if all.typ == "" {
				all.as = "all"
			}
			if err := a.printRead(reply, via, r, &all); err != nil {
				return err
			}
		case declined(err):
			last = err
			if !a.json {
				fmt.Fprintf(a.out, "unit %d  %v   %v\n", q.Unit, r, err)
			}
		default:
			return err
		}
	}
	if !good {
		return last
	}
	return nil
}
