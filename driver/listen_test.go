package driver

import (
	"bytes"
	"os"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// TestP1 listens to a P1 port: values are told with every telegram, the gas
// meter's once, with the time of its own measurement.
func TestP1(t *testing.T) {
	t.Parallel()
	master, path := openPTY(t)
	p := ready(t, "dsmr-p1")
	p.Frames = &profile.Frames{Kind: "obis"} // all telegrams, however fast they come
	l := open(t, Options{Name: "p1", Connect: "serial://" + path, Devices: []Device{{Name: "house", Map: p, Every: time.Second}}})
	var s sink
	run(t, l, s.emit)
	until(t, 3*time.Second, "open", func() bool { return l.Stats().State == "open" })
	raw, err := os.ReadFile("../testdata/device/dsmr/v5.txt")
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(raw)
	bad[300] ^= 1
	for _, b := range [][]byte{raw[500:], raw, bad, raw, raw} {
		master.Write(b)
		time.Sleep(50 * time.Millisecond)
	}
	until(t, 3*time.Second, "three telegrams", func() bool { return l.Stats().Devices[0].Good >= 3 })
	point := func(name string) (all []telemetry.Group) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, g := range s.groups {
			for _, r := range g.Readings {
				if p.Points[r.Point].Name == name && r.Quality == telemetry.Good {
					all = append(all, g)
				}
			}
		}
		return all
	}
	energy, gas := point("energy_import_t1"), point("gas_volume")
	if len(energy) != 3 || len(gas) != 1 || l.Stats().CRC != 1 {
		t.Fatalf("%d energies, %d gas values, %d damaged", len(energy), len(gas), l.Stats().CRC)
	}
	// 170102192002W and 170102161005W
	const age = 3*time.Hour + 9*time.Minute + 57*time.Second
	if d := time.Duration(energy[0].At.Wall-gas[0].At.Wall) * time.Millisecond; d != age {
		t.Errorf("the gas value is %v old, want %v", d, age)
	}
	if d := energy[0].At.Wall - energy[0].At.Mono - gas[0].At.Wall + gas[0].At.Mono; d != 0 {
		t.Errorf("the stamp does not fit its clock by %d ms", d)
	}
}
