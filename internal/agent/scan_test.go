package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"tidegate/driver"
)

// TestScanOf: what a scan left out is told on the socket.
func TestScanOf(t *testing.T) {
	t.Parallel()
	r := &driver.ScanResult{MBus: true, Line: "2400 8E1", NotAsked: []driver.ScanRest{{Line: "300 8E1", Takes: 374900 * time.Millisecond}}}
	text, err := json.Marshal(scanOf(r, "cellar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"bus":"cellar"`, `"line":{"baud":2400,"mode":"8E1"`, `"not_asked":[{"line":"300 8E1","seconds":375}]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}
