package main

import (
	"strings"
	"testing"

	"tidegate/internal/status"
)

// TestLateReason: late polls are told of devices that answer, with the reason
// that the bus itself shows.
func TestLateReason(t *testing.T) {
	behind := status.Device{Name: "meter", State: status.OK, Polls: 200, Late: 30, Skipped: 1}
	silent := status.Device{Name: "room", State: "stale", AgeMS: -1, Polls: 20, Late: 9, LastError: &status.LastError{Code: "unit-silent", Text: "room: no answer", Count: 20}}
	few := status.Device{Name: "pump", State: status.OK, Polls: 200, Late: 2}
	for _, c := range []struct {
		devices []status.Device
		want    string
	}{
		{[]status.Device{behind, few}, "meter of 200 polls 30 late, 1 skipped: the bus is too busy"},
		{[]status.Device{behind, silent}, "meter of 200 polls 30 late, 1 skipped: the bus has waited for silent devices room stale"},
	} {
		var b strings.Builder
		writeBus(&b, status.Bus{Name: "line", State: "open", Devices: c.devices}, 0)
		got := strings.Join(strings.Fields(b.String()), " ")
		if !strings.Contains(got, c.want) || strings.Contains(got, "of 20 polls") || strings.Contains(got, "pump") {
			t.Errorf("want %q:\n%s", c.want, b.String())
		}
	}
}
