package main

import "testing"

// TestAddress: what names a place on the wire, and what is a name of the
// configuration or a register.
func TestAddress(t *testing.T) {
	for word, want := range map[string]string{
		"rtu:/dev/ttyUSB0": "rtu:///dev/ttyUSB0", "tcp:plc.local": "tcp://plc.local", "tcp:10.0.0.20:502": "tcp://10.0.0.20:502",
		"tls://10.0.0.20": "tls://10.0.0.20", "rtu+tcp:10.0.0.21:4001": "rtu+tcp://10.0.0.21:4001",
		"10.0.0.20": "tcp://10.0.0.20", "10.0.0.20:1502": "tcp://10.0.0.20:1502",
		"fd00::20": "tcp://[fd00::20]", "[fd00::20]": "tcp://[fd00::20]", "[fd00::20]:1502": "tcp://[fd00::20]:1502",
		"meters": "", "main.voltage": "", "holding:0": "", "10.0.0": "", "10.0.0.20:": "",
	} {
		if got, ok := address(word); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", word, got, ok, want)
		}
	}
}
