package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAddress: what names a place on the wire, and what is a name of the
// configuration or a register.
func TestAddress(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for word, want := range map[string]string{
		"./line": "rtu://" + here + "/line", "../line": "rtu://" + filepath.Dir(here) + "/line", "./meter.yaml": "",
		"rtu:/dev/ttyUSB0": "rtu:///dev/ttyUSB0", "tcp:plc.local": "tcp://plc.local", "tcp:10.0.0.20:502": "tcp://10.0.0.20:502",
		"tls://10.0.0.20": "tls://10.0.0.20", "rtu+tcp:10.0.0.21:4001": "rtu+tcp://10.0.0.21:4001", "serial:./pms": "serial://" + here + "/pms",
		"/dev/ttyUSB0": "rtu:///dev/ttyUSB0", "/home/meter.yaml": "", "meter-1/power": "",
		"10.0.0.20": "tcp://10.0.0.20", "10.0.0.20:1502": "tcp://10.0.0.20:1502",
		"fd00::20": "tcp://[fd00::20]", "[fd00::20]": "tcp://[fd00::20]", "[fd00::20]:1502": "tcp://[fd00::20]:1502",
		"meters": "", "main.voltage": "", "holding:0": "", "10.0.0": "", "10.0.0.20:": "",
	} {
		if got, ok := address(word); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", word, got, ok, want)
		}
	}
}

// TestSamePlace: a port or an endpoint has many names.
func TestSamePlace(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "port"), filepath.Join(dir, "by-id")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "port"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"rtu://" + dir + "/port", "ascii://" + dir + "/by-id", true},
		{"rtu://" + dir + "/port", "rtu://" + dir + "/another", false},
		{"tcp://10.0.0.20", "tcp://10.0.0.20:502", true},
		{"tcp://[fd00::20]", "rtu+tcp://[fd00::20]:502", true},
		{"tls://10.0.0.20:802", "tls://10.0.0.20", true},
		{"tls://10.0.0.20", "tcp://10.0.0.20", false},
		{"tcp://10.0.0.20", "tcp://10.0.0.21", false},
	} {
		if samePlace(c.a, c.b) != c.same || samePlace(c.b, c.a) != c.same {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.same)
		}
	}
}
