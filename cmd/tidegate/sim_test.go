package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/internal/sim"
	"tidegate/internal/status"
)

// TestSimPeers: mbpoll, which none of us wrote, reads and writes devices of
// tidegate sim, on a pty and over TCP, and reads what tidegate read reads.
func TestSimPeers(t *testing.T) {
	t.Parallel()
	mbpoll, err := exec.LookPath("mbpoll")
	if err != nil {
		missing(t, "mbpoll")
	}
	bin := buildBinary(t)
	line := filepath.Join(t.TempDir(), "line")
	for _, c := range []struct {
		at   string
		poll []string
	}{
		{"rtu:" + line, []string{"-m", "rtu", "-b", "9600", "-P", "none", line}},
		{"tcp:127.0.0.1:15540", []string{"-m", "tcp", "-p", "15540", "127.0.0.1"}},
	} {
		t.Run(c.at[:3], func(t *testing.T) {
			cmd := exec.Command(bin, "sim", "eastron-sdm120@3", "wellpro-wp8026adam@4", "carlo-gavazzi-em340@5", "--at", c.at,
				"--set", "voltage_l1@3=231.25", "--set", "voltage_l1@5=229.4", "--line", "9600 8N1")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Signal(syscall.SIGINT)
				if err := cmd.Wait(); err != nil {
					t.Errorf("sim: %v\n%s", err, out.String())
				}
				if _, err := os.Lstat(line); err == nil {
					t.Error("the link is left behind")
				}
			}()
			poll := func(args ...string) string {
				t.Helper()
				var text []byte
				for range 150 {
					text, err = exec.Command(mbpoll, append(append([]string{"-1", "-q"}, args...), c.poll...)...).CombinedOutput()
					if err == nil {
						break
					}
					time.Sleep(200 * time.Millisecond)
				}
				if err != nil {
					t.Fatalf("mbpoll %v: %v\n%s", args, err, text)
				}
				return string(text)
			}
			// 32-bit floats are big endian there with -B; -r counts from 1.
			if text := poll("-a", "3", "-t", "3:float", "-B", "-r", "1"); !strings.Contains(text, "231.25") {
				t.Errorf("unit 3: %s", text)
			}
			if text := poll("-a", "5", "-t", "4:int", "-r", "1"); !regexp.MustCompile(`\t2294\b`).MatchString(text) {
				t.Errorf("unit 5: %s", text)
			}
			target := c.at
			read := exec.Command(bin, "read", target, "--unit", "3", "30001", "--type", "f32")
			if text, err := read.CombinedOutput(); err != nil || !strings.Contains(string(text), "231.25") {
				t.Errorf("tidegate read: %v\n%s", err, text)
			}
			// What is written stays.
			write := exec.Command(mbpoll, append(append([]string{"-1", "-q", "-a", "5", "-t", "4", "-r", "1"}, c.poll...), "1234")...)
			if text, err := write.CombinedOutput(); err != nil {
				t.Errorf("mbpoll writes: %v\n%s", err, text)
			}
			if text := poll("-a", "5", "-t", "4", "-r", "1"); !regexp.MustCompile(`\t1234\b`).MatchString(text) {
				t.Errorf("after the write: %s", text)
			}
		})
	}
}

// startSim runs tidegate sim until the test ends.
func startSim(t *testing.T, bin string, args ...string) {
	t.Helper()
	cmd := exec.Command(bin, append([]string{"sim"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("sim: %v", err)
		}
	})
}

// TestSimSunSpec: simulated devices of SunSpec are told apart by a scan, and
// read by the names of their points.
func TestSimSunSpec(t *testing.T) {
	t.Parallel()
	bin, dir := buildBinary(t), t.TempDir()
	startSim(t, bin, "sunspec-inverter@1", "sunspec-meter@2", "--at", "tcp:127.0.0.1:15541", "--set", "voltage_l1@1=231.5", "--set", "power@2=-3450")
	var text []byte
	var err error
	for range 150 {
		if text, err = exec.Command(bin, "scan", "tcp:127.0.0.1:15541", "--ids", "1-2").CombinedOutput(); err == nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	for _, want := range []string{`1 .*sunspec-inverter \(`, `2 .*sunspec-meter \(`, `models 1, 101, 160`} {
		if !regexp.MustCompile(want).Match(text) {
			t.Errorf("scan: %v: no %s in\n%s", err, want, text)
		}
	}
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(`
gateway: {id: gw-sun}
buffer: {dir: `+dir+`/buffer, size: 64MB}
uplink: {url: "mqtt://127.0.0.1:9"}
status: {socket: `+dir+`/agent.sock}
buses:
  roof:
    connect: tcp://127.0.0.1:15541
    devices:
      inverter: {profile: sunspec-inverter}
      grid: {profile: sunspec-meter, unit: 2}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	for point, want := range map[string]string{"inverter/voltage_l1": "231.5 V", "grid/power": "-3450 W"} {
		if text, err := exec.Command(bin, "--config", file, "read", point).CombinedOutput(); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("read %s: %v\n%s", point, err, text)
		}
	}
}

// TestScanSpeeds: meters of three speeds on one segment are all found, and what
// is to be pasted holds those of one speed, and says why and what to do of the
// others.
func TestScanSpeeds(t *testing.T) {
	t.Parallel()
	bin, dir := buildBinary(t), t.TempDir()
	startSim(t, bin, "mbus-water@1", "mbus-heat@11223344", "mbus-water@2", "mbus-water@3", "--at", "serial:"+dir+"/cellar",
		"--line", "2400 8E1", "--line", "300 8E1@2", "--line", "9600 8E1@11223344")
	for range 300 {
		if _, err := os.Lstat(dir + "/cellar"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	var out, said strings.Builder
	cmd := exec.Command(bin, "scan", dir+"/cellar", "--mbus", "--ids", "1-3", "--timeout", "400ms", "--config")
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	text := strings.Join(strings.Fields(said.String()), " ")
	if w := `line: 2400 8E1.*line: 300 8E1.*line: 9600 8E1.*4 devices at 2400 8E1, 300 8E1, 9600 8E1,.*2 meters at another setting than 2400 8E1`; !regexp.MustCompile(w).MatchString(text) {
		t.Errorf("no %s in\n%s", w, said.String())
	}
	head, devices, _ := strings.Cut(out.String(), "    devices:\n")
	head = strings.ReplaceAll(head, "\n    # ", " ")
	for _, w := range []string{`    line: 2400 8E1 `, `\(mbus-water, water\) answers at 300 8E1, not at 2400 8E1: .* \(CI field BB\).* line: 300 8E1\.`,
		`Meter 11223344\S+ \(mbus-heat, heat\) answers at 9600 8E1`} {
		if !regexp.MustCompile(w).MatchString(head) {
			t.Errorf("no %s in\n%s", w, head)
		}
	}
	if n := strings.Count(devices, "profile: mbus-water"); n != 2 || strings.Contains(devices, "heat") {
		t.Errorf("%d devices:\n%s", n, devices)
	}
}

// TestSimUsage: what sim cannot do is said before anything is made.
func TestSimUsage(t *testing.T) {
	t.Parallel()
	bin, link := buildBinary(t), filepath.Join(t.TempDir(), "none")
	for want, args := range map[string][]string{
		"there is no unit 7": {"mbus-water@1", "--at", "serial:" + link, "--line", "300 8E1@7"},
		"have a speed each":  {"eastron-sdm630@1", "--at", "rtu:" + link, "--line", "9600 8E1@1"},
		"have two addresses": {"eastron-sdm630@1", "--at", "rtu:" + link, "--fault", "primary-only@1"},
		"does not fit --at":  {"eastron-sdm630", "--at", "serial:" + link},
		"names no port":      {"eastron-sdm630", "--at", "tcp:127.0.0.1"},
	} {
		cmd := exec.Command(bin, append([]string{"sim", "--for", "1s"}, args...)...)
		if text, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 64 || !strings.Contains(strings.Join(strings.Fields(string(text)), " "), want) {
			t.Errorf("%v: exit code %d, not %q\n%s", args, cmd.ProcessState.ExitCode(), want, text)
		}
	}
}

// TestScanPrimaryOnly: a meter that answers to its primary address alone is
// found at a speed at which nobody answers a call to all, and what takes too
// long to be asked is said with the command for it.
func TestScanPrimaryOnly(t *testing.T) {
	t.Parallel()
	bin, dir := buildBinary(t), t.TempDir()
	startSim(t, bin, "mbus-water@1", "mbus-gas@2", "--at", "serial:"+dir+"/cellar",
		"--line", "2400 8E1", "--line", "9600 8E1@2", "--fault", "primary-only@2")
	for range 300 {
		if _, err := os.Lstat(dir + "/cellar"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, err := exec.Command(bin, "scan", dir+"/cellar", "--mbus", "--ids", "1-2", "--timeout", "400ms").CombinedOutput()
	plain := strings.Join(strings.Fields(string(text)), " ")
	for _, want := range []string{"asking primary addresses at 300 8E1, 2 s", `2 \d+ ms telegram mbus-gas .*line: 9600 8E1`, "2 devices at 2400 8E1, 9600 8E1"} {
		if err != nil || !regexp.MustCompile(want).MatchString(plain) {
			t.Errorf("%v: no %s in\n%s", err, want, text)
		}
	}
	var out strings.Builder
	r := &status.Scan{MBus: true, Units: []status.ScanUnit{{ID: 1, Answer: "telegram"}}, NotAsked: []status.ScanRest{{Line: "300 8E1", Seconds: 375}}}
	printScan(&out, "./cellar", r)
	r.Bus = "cellar"
	printScan(&out, "cellar", r)
	for _, want := range []string{"300 8E1, which takes 7 min:\n  tidegate scan ./cellar --mbus --baud 300 --mode 8E1\n", "  tidegate scan cellar --mbus --baud 300 --mode 8E1 --pause 8m\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
	if lines, err := scanLines("300", "", true); err != nil || !slices.Equal(lines, []string{"300 8E1"}) {
		t.Errorf("--mbus --baud 300: %v, %v", lines, err)
	}
	if lines, err := scanLines("", "8n1", true); err != nil || !slices.Equal(lines, []string{"2400 8N1", "300 8N1", "9600 8N1"}) {
		t.Errorf("--mbus --mode 8n1: %v, %v", lines, err)
	}
}

// TestReadOut: without an agent, meters on an M-Bus and of IEC 62056-21 are
// read out once. One that is silent, a point that does not come and a device
// that talks by itself are said to be so.
func TestReadOut(t *testing.T) {
	t.Parallel()
	bin, dir := buildBinary(t), t.TempDir()
	for _, args := range [][]string{
		{"mbus-water@5", "mbus-heat@11223344", "mbus-gas@9", "--at", "serial:" + dir + "/cellar", "--line", "2400 8E1", "--fault", "silent@9"},
		{"iec62056-21", "--at", "serial:" + dir + "/meter", "--line", "300 7E1", "--set", "voltage_l1=231.5"},
		{"iec62056-21", "--at", "serial+tcp:127.0.0.1:15545", "--fault", "short"},
		{"dsmr-p1", "--at", "serial:" + dir + "/p1"},
	} {
		startSim(t, bin, args...)
	}
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(`
gateway: {id: gw-cellar}
buffer: {dir: DIR/buffer, size: 64MB}
uplink: {url: "mqtt://127.0.0.1:9"}
status: {socket: DIR/agent.sock}
buses:
  cellar:
    connect: serial://DIR/cellar
    line: 2400 8E1
    devices:
      water: {profile: mbus-water, unit: 5}
      heat: {profile: mbus-heat, address: "11223344"}
      gas: {profile: mbus-gas, unit: 9}
  head:
    connect: serial://DIR/meter
    line: 300 7E1
    devices:
      meter: {profile: iec62056-21}
  noise:
    connect: serial+tcp://127.0.0.1:15545
    devices:
      noisy: {profile: iec62056-21}
  house:
    connect: serial://DIR/p1
    line: 115200 8N1
    devices:
      p1: {profile: dsmr-p1}
`, "DIR", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"cellar", "meter", "p1"} {
		for range 300 {
			if _, err := os.Lstat(filepath.Join(dir, link)); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for _, c := range []struct {
		name string
		exit int
		want []string
	}{
		{"water", 0, []string{`(?m)^water/water_volume +[\d.]+ m3 +good  read now \(\d+ ms\)$`, `(?m)^water/meter_id `}},
		{"heat/meter_id", 0, []string{`^heat/meter_id  "11223344"  good  read now \(\d+ ms\)\n$`}},
		{"gas", 1, []string{`gas \(cellar\).*\[bus-silent\]`, `4 requests, 0 bytes back`, `try: +tidegate scan cellar --mbus`}},
		{"meter", 0, []string{`(?m)^meter/voltage_l1 +231\.500 V +good  read now`, `(?m)^meter/energy_import `}},
		{"noisy/voltage_l1", 1, []string{`noisy \(noise\).*\[(line-settings|damaged|short)\]`}},
		{"p1", 69, []string{`p1 talks by itself and cannot be asked +\[listening\]`, `tidegate watch p1`}},
	} {
		cmd := exec.Command(bin, "--config", file, "read", c.name)
		text, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != c.exit {
			t.Errorf("read %s: exit code %d, want %d\n%s", c.name, got, c.exit, text)
		}
		for _, w := range c.want {
			if !regexp.MustCompile(w).Match(text) {
				t.Errorf("read %s: no %s in\n%s", c.name, w, text)
			}
		}
	}
}

// TestAddressTLS: a device of pymodbus over TLS is read and written at an
// address, with the files on the command line and not without.
func TestAddressTLS(t *testing.T) {
	t.Parallel()
	if exec.Command("/usr/bin/python3", "-c", "import pymodbus").Run() != nil {
		missing(t, "pymodbus")
	}
	bin, dir := buildBinary(t), t.TempDir()
	ca, err := sim.NewCA("plant")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ca.WriteIdentity(dir, "gateway"), ca.WriteServer(dir, "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(addr)
	peer := exec.Command("/usr/bin/python3", filepath.Join("..", "..", "driver", "testdata", "peer", "pymodbus_tls.py"), port,
		file("ca.crt"), file("server.crt"), file("server.key"))
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		peer.Process.Kill()
		peer.Wait()
	}()
	files := []string{"--tls-ca", file("ca.crt"), "--tls-cert", file("client.crt"), "--tls-key", file("client.key")}
	read := func(flags ...string) (string, error) {
		text, err := exec.Command(bin, append([]string{"read", "tls:" + addr, "holding:13", "--unit", "17", "--timeout", "5s"}, flags...)...).CombinedOutput()
		return string(text), err
	}
	var text string
	for range 300 {
		if text, err = read(files...); err == nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if err != nil || !strings.Contains(text, "27101") {
		t.Fatalf("%v\n%s", err, text)
	}
	if text, err := read(); err == nil || !strings.Contains(text, "--tls-ca") {
		t.Errorf("without files: %v\n%s", err, text)
	}
	if text, err := read(append(files, "--tls-name", "another.example")...); err == nil || !strings.Contains(text, "another.example") {
		t.Errorf("another name: %v\n%s", err, text)
	}
	write := append([]string{"write", "tls:" + addr, "holding:13", "4711", "--unit", "17", "--raw", "--yes", "--timeout", "5s"}, files...)
	if text, err := exec.Command(bin, write...).CombinedOutput(); err != nil {
		t.Errorf("write: %v\n%s", err, text)
	}
	if text, err := read(files...); err != nil || !strings.Contains(text, "4711") {
		t.Errorf("after the write: %v\n%s", err, text)
	}
}
