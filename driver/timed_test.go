package driver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// TestTimed: a value is told when it is new, and is stale when it is not
// renewed.
func TestTimed(t *testing.T) {
	t.Parallel()
	_, path := openPTY(t)
	l := open(t, Options{Name: "p1", Connect: "serial://" + path, Devices: []Device{{Name: "house", Map: ready(t, "dsmr-p1")}}})
	var s sink
	d := l.devices[0]
	tell := func(mark int64, age, renewed time.Duration) string {
		s.groups = nil
		all := []telemetry.Reading{{Point: 1, Value: telemetry.IntValue(7, 0)}, {Point: 2, Value: telemetry.IntValue(8, 0)}}
		l.tell(d, all, []profile.Moment{{Mark: mark, Age: age, Renewed: renewed}, {}}, s.emit)
		var out []string
		for _, g := range s.groups {
			for _, r := range g.Readings {
				if r.Cause != telemetry.CauseMarker { // what this telegram does not hold
					out = append(out, fmt.Sprintf("%d=%s", r.Point, profile.ReadingText(r)))
				}
			}
			out = append(out, "|")
		}
		return strings.Join(out, " ")
	}
	const hour = time.Hour
	for i, c := range []struct {
		mark         int64
		age, renewed time.Duration
		late         time.Duration
		want         string
	}{
		{1, 5, 26 * hour, 0, "1=7 | 2=8 |"},
		{1, 5, 26 * hour, 0, "2=8 |"},
		{2, 5, 26 * hour, 0, "1=7 | 2=8 |"},
		{2, 5, 26 * hour, 27 * hour, "2=8 1=stale/timeout |"},
		{2, 5, 26 * hour, 0, "2=8 |"},
		{3, 5, 26 * hour, 0, "1=7 | 2=8 |"},
		{4, 5, 0, 0, "1=7 | 2=8 |"},
		{4, 5, 0, 1000 * hour, "2=8 |"},
		{5, 30 * hour, 26 * hour, 0, "2=8 1=stale/timeout |"},
		{5, 30 * hour, 26 * hour, 0, "2=8 |"},
	} {
		if k := d.measured[1]; k != nil && c.late > 0 {
			k.since = k.since.Add(-c.late)
		}
		got := tell(c.mark, c.age, c.renewed)
		parts := func(s string) string { // the order within a group does not matter
			w := strings.Fields(s)
			if len(w) == 3 && w[0] > w[1] {
				w[0], w[1] = w[1], w[0]
			}
			return strings.Join(w, " ")
		}
		if parts(got) != parts(c.want) {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
	}
	l.failTalker(d, telemetry.Stale, telemetry.CauseTimeout, ErrTimeout, time.Now(), s.emit)
	if got := tell(5, 5, 26*hour); got != "1=7 | 2=8 |" {
		t.Errorf("after a silence: %q", got)
	}
}
