package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/internal/status"
)

// start runs a program until the test ends.
func start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, name)
	}
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", filepath.Base(name), out.String())
		}
	})
	return cmd
}

// run calls a verb and returns what it printed.
func runVerb(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = execute(args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func waitFor(t *testing.T, most time.Duration, what string, ok func() bool) {
	t.Helper()
	most *= 4 // the machine may be busy with other tests
	for end := time.Now().Add(most); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", most, what)
		}
	}
}

// TestTenUnits polls ten units of pymodbus on a line of socat: one is off, one
// answers late again and again, one has an illegal register in its block.
// watch shows nine alive, one named absent, and one point illegal-address;
// status names them; no value is wrong.
func TestTenUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	start(t, "socat", "pty,raw,echo=0,link="+a, "pty,raw,echo=0,link="+b)
	exists := func(p string) bool { _, err := os.Stat(p); return err == nil }
	waitFor(t, 10*time.Second, "socat's ports", func() bool { return exists(a) && exists(b) })
	if err := exec.Command("/usr/bin/python3", "-c", "import pymodbus.server, serial").Run(); err != nil {
		missing(t, "pymodbus")
	}
	start(t, "/usr/bin/python3", filepath.Join("..", "..", "testdata", "peer", "ten_units.py"), a)
	config := "gateway: {id: ten}\nwrites: allow\nbuses:\n  line:\n    connect: rtu://" + b + "\n    line: 115200 8N1\n    timeout: 500ms\n    devices:\n"
	for u := 1; u <= 10; u++ {
		config += fmt.Sprintf("      unit-%d:\n        unit: %d\n        every: 1s\n        points:\n", u, u)
		for p := range 16 {
			w := ""
			if p == 3 {
				w = ", write: {min: 0, max: 900}"
			}
			config += fmt.Sprintf("          r%d: {holding: %d%s}\n", p, p, w)
		}
	}
	config += fmt.Sprintf("uplink: {url: \"mqtt://127.0.0.1:1\"}\nbuffer: {dir: %s/buffer}\nstatus: {socket: %s/agent.sock}\nlog: {level: warn}\n", dir, dir)
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := buildBinary(t)
	start(t, bin, "run", "--config", file)
	wrong := 0
	values := func() map[string]status.Value {
		_, out, _ := runVerb("watch", "--config", file, "--count", "1", "--json")
		m := map[string]status.Value{}
		for line := range strings.Lines(out) {
			var v status.Value
			if json.Unmarshal([]byte(line), &v) == nil {
				m[v.Device+"/"+v.Point] = v
				var u, p int
				fmt.Sscanf(v.Device, "unit-%d", &u)
				fmt.Sscanf(v.Point, "r%d", &p)
				if v.Quality == "good" && string(v.Value) != strconv.Itoa(100*u+p) {
					wrong++
					t.Errorf("%s/%s is %s", v.Device, v.Point, v.Value)
				}
			}
		}
		return m
	}
	waitFor(t, 60*time.Second, "nine alive, one absent, one point illegal", func() bool {
		m := values()
		if len(m) != 160 || m["unit-4/r0"].Cause != "absent" || m["unit-8/r7"].Cause != "illegal-address" {
			return false
		}
		for name, v := range m {
			if !strings.HasPrefix(name, "unit-4/") && !strings.HasPrefix(name, "unit-6/") && name != "unit-8/r7" && v.Quality != "good" {
				return false
			}
		}
		return m["unit-6/r0"].Quality == "good"
	})
	// It stays so, and the late unit is late all the time.
	seen := map[string]bool{}
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		m := values()
		seen[m["unit-6/r0"].Quality] = true
		if v := m["unit-8/r7"]; v.Cause != "illegal-address" || m["unit-8/r8"].Quality != "good" || m["unit-5/r0"].Quality != "good" {
			t.Errorf("unit-8/r7 is %s (%s), unit-8/r8 %s, unit-5/r0 %s", v.Quality, v.Cause, m["unit-8/r8"].Quality, m["unit-5/r0"].Quality)
		}
	}
	if !seen["good"] {
		t.Errorf("the late unit was %v", seen)
	}
	_, text, _ := runVerb("status", "--config", file)
	for _, want := range []string{"9 ok, 1 not", "unit-8 +r7: holding 7 \\(manual 40008\\) +\\[illegal-address\\]", "unit-4 .*\\[unit-silent\\]"} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}
	_, text, _ = runVerb("watch", "--config", file, "--count", "1", "unit-4/r0", "unit-8/r7", "unit-8/r8")
	t.Log("\n" + text)
	// The late fault has fired: frames that answered nobody's question were seen.
	var s status.Snapshot
	_, text, _ = runVerb("status", "--json", "--config", file)
	if err := json.Unmarshal([]byte(text), &s); err != nil || len(s.Buses) != 1 || s.Buses[0].Stray == 0 {
		t.Errorf("%v, stray %+v", err, s.Buses)
	}
	// A write goes between the polls, is read back, and kept to its limits.
	code, out, errs := runVerb("write", "unit-5/r3", "503", "--yes", "--config", file)
	if code != 0 || !strings.Contains(out, "written, read back 503") {
		t.Errorf("write: %d\n%s%s", code, out, errs)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"unit-5/r3", "901", "--yes"}, 64, "write-limits"},
		{[]string{"unit-5/r4", "1", "--yes"}, 77, "read-only"},
		{[]string{"unit-5/r3", "503", "--dry-run"}, 0, ""},
		{[]string{"unit-5/r3", "503"}, 64, "--yes"},
		{[]string{"unit-8", "holding:7", "1", "--raw", "--yes"}, 1, "address"},
		{[]string{"unit-5", "holding:4", "504", "--raw", "--yes"}, 0, ""},
	} {
		code, out, errs := runVerb(append([]string{"write", "--config", file}, c.args...)...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("write %v: %d, want %d\n%s%s", c.args, code, c.code, out, errs)
		}
	}
}

// TestMbpollAgrees writes values of every type and order into a libmodbus
// server, by tidegate and by mbpoll, and reads them with both: they agree.
func TestMbpollAgrees(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"mbpoll", "cc"} {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p)
		}
	}
	bin := filepath.Join(t.TempDir(), "libmodbus")
	if out, err := exec.Command("sh", "-c", "cc -o "+bin+" ../../driver/testdata/peer/libmodbus.c $(pkg-config --cflags --libs libmodbus)").CombinedOutput(); err != nil {
		t.Logf("%s", out)
		missing(t, "libmodbus")
	}
	cmd := exec.Command(bin, "tcp")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	outPipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	var port int
	if _, err := fmt.Fscan(outPipe, &port); err != nil {
		t.Fatal(err)
	}
	target := "tcp:" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	none := filepath.Join(t.TempDir(), "none.sock")
	// mbpoll reads values of a form from a table, or writes them.
	mbpoll := func(form string, big bool, addr, count int, write ...string) []string {
		args := []string{"-m", "tcp", "-p", strconv.Itoa(port), "-a", "17", "-0", "-1", "-t", form, "-r", strconv.Itoa(addr)}
		if len(write) == 0 {
			args = append(args, "-c", strconv.Itoa(count))
		}
		if big {
			args = append(args, "-B")
		}
		args = append(append(args, "127.0.0.1", "--"), write...)
		out, err := exec.Command("mbpoll", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("mbpoll %v: %v\n%s", args, err, out)
		}
		var values []string
		for _, m := range regexp.MustCompile(`(?m)^\[\d+\]:\s+(\S+)`).FindAllStringSubmatch(string(out), -1) {
			values = append(values, m[1])
		}
		if len(write) == 0 && len(values) != count {
			t.Fatalf("mbpoll %v: %d values\n%s", args, len(values), out)
		}
		return values
	}
	read := func(reg string, flags ...string) []string {
		args := append([]string{"read", target, reg, "--unit", "17", "--socket", none, "--json"}, flags...)
		code, out, errs := runVerb(args...)
		var r struct{ Values []status.Value }
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
			t.Fatalf("%v: %d %v\n%s%s", args, code, err, out, errs)
		}
		var values []string
		for _, v := range r.Values {
			values = append(values, strings.Trim(string(v.Value), `"`))
		}
		return values
	}
	same := func(what string, got, want []string) {
		t.Helper()
		if len(got) != len(want) || len(got) == 0 {
			t.Errorf("%s: %v and %v", what, got, want)
			return
		}
		for i := range got {
			x, e1 := strconv.ParseFloat(strings.NewReplacer("true", "1", "false", "0").Replace(got[i]), 64)
			y, e2 := strconv.ParseFloat(want[i], 64)
			// mbpoll prints floats with six digits.
			if e1 != nil || e2 != nil || math.Abs(x-y) > 1e-5*math.Abs(y) {
				t.Errorf("%s, value %d: tidegate %s, mbpoll %s", what, i, got[i], want[i])
			}
		}
	}
	// All four tables as the server holds them.
	same("coils", read("coil:5+60"), mbpoll("0", false, 5, 60))
	same("discrete", read("discrete:5+60"), mbpoll("1", false, 5, 60))
	same("input", read("input:5+60"), mbpoll("3", false, 5, 60))
	same("holding", read("holding:5+60"), mbpoll("4", false, 5, 60))
	same("input u32 abcd", read("input:6+40", "--type", "u32"), unsigned(mbpoll("3:int", true, 6, 20)))
	same("input u32 cdab", read("input:6+40", "--type", "u32", "--order", "cdab"), unsigned(mbpoll("3:int", false, 6, 20)))
	// Values of every type and order, written by one and read by both.
	at := 100
	for typ, values := range map[string][]string{
		"u16": {"0", "1", "65535", "4660"}, "s16": {"-1", "-32768", "32767"}, "bcd16": {"1234", "9999"},
		"u32": {"0", "305419896", "4294967295"}, "s32": {"-2", "-2147483648"}, "f32": {"231.5", "-0.001", "3e38"}, "bcd32": {"12345678"},
		"u64": {"1234605616436508552", "18446744073709551615"}, "s64": {"-3"}, "f64": {"3.141592653589793", "-1e99"},
	} {
		for _, order := range []string{"abcd", "cdab", "badc", "dcba"} {
			for _, v := range values {
				n := int(words(typ))
				reg := fmt.Sprintf("holding:%d", at)
				code, out, errs := runVerb("write", target, reg, "--unit", "17", "--type", typ, "--order", order, "--raw", "--yes", "--socket", none, "--", v)
				if code != 0 || !strings.Contains(out, "read back") {
					t.Fatalf("write %s %s %s: %d\n%s%s", typ, order, v, code, out, errs)
				}
				if got := read(reg, "--type", typ, "--order", order); len(got) != 1 || !equalNumber(got[0], v) {
					t.Errorf("%s %s %s: tidegate reads %v", typ, order, v, got)
				}
				// The registers as mbpoll sees them, put in order by hand.
				var raw []byte
				for _, h := range mbpoll("4:hex", false, at, n) {
					x, err := strconv.ParseUint(strings.TrimPrefix(h, "0x"), 16, 16)
					if err != nil {
						t.Fatal(err)
					}
					raw = append(raw, byte(x>>8), byte(x))
				}
				if got := meaning(typ, order, raw); !equalNumber(got, v) {
					t.Errorf("%s %s %s: mbpoll's registers % x are %s", typ, order, v, raw, got)
				}
				if form := map[string]string{"s32": "4:int", "f32": "4:float"}[typ]; form != "" && (order == "abcd" || order == "cdab") {
					same(typ+" "+order+" "+v, read(reg, "--type", typ, "--order", order), mbpoll(form, order == "abcd", at, 1))
				}
				at += n
			}
		}
	}
	// And written by mbpoll.
	mbpoll("4:float", true, 900, 1, "-12.25")
	same("mbpoll's float", read("holding:900", "--type", "f32"), []string{"-12.25"})
	mbpoll("4:int", false, 902, 1, "-70000")
	same("mbpoll's int", read("holding:902", "--type", "i32", "--order", "cdab"), []string{"-70000"})
	mbpoll("0", false, 900, 1, "1")
	same("mbpoll's coil", read("coil:900"), []string{"1"})
}

// unsigned reads numbers of 32 bits that mbpoll prints with a sign.
func unsigned(values []string) []string {
	for i, v := range values {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			values[i] = strconv.FormatUint(uint64(uint32(n)), 10)
		}
	}
	return values
}

func equalNumber(a, b string) bool {
	if a == b {
		return true
	}
	x, e1 := strconv.ParseFloat(a, 64)
	y, e2 := strconv.ParseFloat(b, 64)
	return e1 == nil && e2 == nil && (x == y || float32(x) == float32(y))
}

// meaning reads registers by the definition of type and order, without the
// code under test: A is the most significant byte of the number.
func meaning(typ, order string, b []byte) string {
	n := len(b)
	out := make([]byte, n)
	for i := range out {
		switch order {
		case "abcd":
			out[i] = b[i]
		case "cdab": // words reversed
			out[i] = b[n-2-i/2*2+i%2]
		case "badc": // bytes of each word reversed
			out[i] = b[i^1]
		case "dcba":
			out[i] = b[n-1-i]
		}
	}
	var x uint64
	for _, c := range out {
		x = x<<8 | uint64(c)
	}
	switch typ {
	case "s16":
		return strconv.Itoa(int(int16(x)))
	case "s32":
		return strconv.Itoa(int(int32(x)))
	case "s64":
		return strconv.FormatInt(int64(x), 10)
	case "f32":
		return strconv.FormatFloat(float64(math.Float32frombits(uint32(x))), 'g', -1, 32)
	case "f64":
		return strconv.FormatFloat(math.Float64frombits(x), 'g', -1, 64)
	case "bcd16", "bcd32":
		return strings.TrimLeft(fmt.Sprintf("%x", x), "0")
	}
	return strconv.FormatUint(x, 10)
}
