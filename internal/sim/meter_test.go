package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// TestMeterTellsTheTruth fills a unit from every Modbus profile of the
// library, reads it as a master would, by the profile's own plan, and
// compares with Truth.
func TestMeterTellsTheTruth(t *testing.T) {
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if p.Transport == "serial" {
			continue
		}
		tried++
		t.Run(name, func(t *testing.T) {
			start := time.Unix(1764000000, 0)
			m, err := NewMeter(p, 42, start)
			if err != nil {
				t.Fatal(err)
			}
			u := NewSlave().Unit(1)
			if err := m.Fill(u); err != nil {
				t.Fatal(err)
			}
			ask := func(t profile.Table, addr, count uint16, now time.Time) ([]byte, error) {
				pdu := []byte{byte(t), byte(addr >> 8), byte(addr), 0, 0}
				binary.BigEndian.PutUint16(pdu[3:], count)
				a := u.answer(pdu, now)
				if a[0]&0x80 != 0 {
					return nil, fmt.Errorf("%w: %v %d+%d: % x", profile.ErrRefused, t, addr, count, a)
				}
				return a[2:], nil
			}
			if p.SunSpec() {
				chain, err := profile.WalkSunSpec(func(addr, count uint16) ([]byte, error) { return ask(profile.Holding, addr, count, start) })
				if err != nil || chain[0] != (profile.Model{ID: 1, At: 40002, Length: 66}) {
					t.Fatalf("models %v, %v", chain, err)
				}
				found, missing := p.Locate(chain)
				if len(missing) > 0 {
					t.Fatalf("the models %v lack %d points", chain, len(missing))
				}
				p = found
			}
			var last []telemetry.Reading
			changed := map[uint32]bool{}
			for sec := range 300 {
				now := start.Add(time.Duration(sec) * time.Second)
				truth := m.Truth(now)
				var got []telemetry.Reading
				for _, r := range p.Plan(profile.Limits{}) {
					data, err := ask(r.Table, r.Address, r.Count, now)
					if err != nil {
						t.Fatal(err)
					}
					got = p.Decode(r, data, 0, got)
				}
				slices.SortFunc(got, func(a, b telemetry.Reading) int { return int(a.Point) - int(b.Point) })
				if !slices.Equal(got, truth) {
					t.Fatalf("second %d: got %v\nwant %v", sec, got, truth)
				}
				for i, r := range truth {
					if r.Quality != telemetry.Good {
						t.Fatalf("second %d: point %s is %s (%s) %s", sec, p.Points[i].Name, r.Quality, r.Cause, r.Value)
					}
					if last != nil && last[i].Value != r.Value {
						changed[r.Point] = true
					}
					if last != nil && p.Points[i].Kind == "counter" && r.Value.Float() < last[i].Value.Float() {
						t.Fatalf("counter %s goes back", p.Points[i].Name)
					}
				}
				last = truth
			}
			if len(changed) < len(p.Points)/2 {
				t.Errorf("only %d of %d points move", len(changed), len(p.Points))
			}
			t.Logf("%s", last[0].Value)
		})
	}
	if tried < 3 {
		t.Errorf("only %d Modbus profiles in the library", tried)
	}
}

func TestMeterRefusesSerialProfiles(t *testing.T) {
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	p, err := lib.Get("plantower-pms5003")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewMeter(p, 1, time.Now()); err == nil {
		t.Error("no error")
	}
}
