package driver

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/driver/profile"
)

// missing skips the test loudly, or fails it where everything must be there.
func missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("NOT RUN: %s: %v", what, err)
	}
	t.Skipf("NOT RUN: %s: %v", what, err)
}

// peerTruth is what the programs in testdata/peer hold at an address.
func peerTruth(tab profile.Table, a int) uint16 { return uint16(int(tab)*7919 + a*257 + 3) }

func peerBytes(tab profile.Table, addr, count uint16) []byte {
	if tab.Bits() {
		out := make([]byte, (count+7)/8)
		for i := range count {
			if peerTruth(tab, int(addr+i))%3 == 0 {
				out[i/8] |= 1 << (i % 8)
			}
		}
		return out
	}
	var out []byte
	for i := range count {
		v := peerTruth(tab, int(addr+i))
		out = append(out, byte(v>>8), byte(v))
	}
	return out
}

// peer starts a program and returns the first line it prints. It ends when
// its standard input is closed, or is killed.
func peer(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var problems strings.Builder
	cmd.Stderr = &problems
	if err := cmd.Start(); err != nil {
		missing(t, name, err)
	}
	t.Cleanup(func() {
		in.Close()
		kill := time.AfterFunc(500*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		in.Close()
		cmd.Wait()
		missing(t, name, errors.New(problems.String()))
	}
	go io.Copy(io.Discard, out)
	return strings.TrimSpace(line)
}

// ptyPair joins two ptys with socat and returns both ends.
func ptyPair(t *testing.T) (a, b string) {
	t.Helper()
	if _, err := exec.LookPath("socat"); err != nil {
		missing(t, "socat", err)
	}
	dir := t.TempDir()
	a, b = filepath.Join(dir, "a"), filepath.Join(dir, "b")
	cmd := exec.Command("socat", "pty,raw,echo=0,link="+a, "pty,raw,echo=0,link="+b)
	if err := cmd.Start(); err != nil {
		missing(t, "socat", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	until(t, 5*time.Second, "socat made its ports", func() bool {
		_, e1 := os.Stat(a)
		_, e2 := os.Stat(b)
		return e1 == nil && e2 == nil
	})
	return a, b
}

// libmodbus builds the C peer.
func libmodbus(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "libmodbus")
	args := []string{"-O1", "-o", bin, "testdata/peer/libmodbus.c"}
	flags, err := exec.Command("pkg-config", "--cflags", "--libs", "libmodbus").Output()
	if err != nil {
		flags = []byte("-I/usr/include/modbus -lmodbus")
	}
	if out, err := exec.Command("cc", append(args, strings.Fields(string(flags))...)...).CombinedOutput(); err != nil {
		missing(t, "libmodbus (package libmodbus-dev) with a C compiler", errors.New(string(out)+err.Error()))
	}
	return bin
}

// readAll reads all tables in many shapes, and one address that is not there.
func readAll(t *testing.T, connect string) {
	l := open(t, Options{Name: "peer", Connect: connect, Line: lineOf(connect), Timeout: time.Second,
		Devices: []Device{{Name: "d", Unit: 17, Every: time.Hour, Map: custom(t, 2)}}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	reads := 0
	for tab := profile.Coils; tab <= profile.Input; tab++ {
		counts := []uint16{1, 2, 7, 60, 125}
		if tab.Bits() {
			counts = []uint16{1, 8, 9, 22, 500, 987}
		}
		for _, count := range counts {
			for _, addr := range []uint16{0, 1, 13, 1000 - count} {
				if int(addr)+int(count) > 1000 {
					continue
				}
				r, err := l.Exchange(ctx, 17, tab, addr, count)
				if err != nil {
					t.Fatalf("%v %d+%d: %v", tab, addr, count, err)
				}
				if want := peerBytes(tab, addr, count); string(r.Data) != string(want) {
					t.Errorf("%v %d+%d: got % x, want % x", tab, addr, count, r.Data, want)
				}
				reads++
			}
		}
		_, err := l.Exchange(ctx, 17, tab, 1000, 1)
		var e *Error
		if !errors.Is(err, Exception(2)) || !errors.As(err, &e) || e.Code != "address" {
			t.Errorf("%v 1000: got %v, want exception 2", tab, err)
		}
	}
	t.Logf("%d reads agree; %+v", reads, l.Stats())
}

func lineOf(connect string) string {
	if strings.HasPrefix(connect, "tcp:") {
		return ""
	}
	return "115200 8N1"
}

func TestPeerLibmodbusTCP(t *testing.T) {
	t.Parallel()
	bin := libmodbus(t)
	readAll(t, "tcp://127.0.0.1:"+peer(t, bin, "tcp"))
}

func TestPeerLibmodbusRTU(t *testing.T) {
	t.Parallel()
	bin := libmodbus(t)
	a, b := ptyPair(t)
	peer(t, bin, "rtu", a)
	readAll(t, "rtu://"+b)
}

func TestPeerPymodbus(t *testing.T) {
	t.Parallel()
	for _, framing := range []string{"rtu", "ascii"} {
		t.Run(framing, func(t *testing.T) {
			t.Parallel()
			a, b := ptyPair(t)
			peer(t, "/usr/bin/python3", "testdata/peer/pymodbus_rtu.py", a, framing)
			time.Sleep(500 * time.Millisecond) // "ready" comes before its port is open
			readAll(t, framing+"://"+b)
		})
	}
}

// TestPeerScan: units that none of us wrote are found at their setting, among
// others that are not there.
func TestPeerScan(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"libmodbus", "pymodbus"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := ptyPair(t)
			if name == "libmodbus" {
				peer(t, libmodbus(t), "rtu", a)
			} else {
				peer(t, "/usr/bin/python3", "testdata/peer/pymodbus_rtu.py", a, "rtu")
				time.Sleep(500 * time.Millisecond) // "ready" comes before its port is open
			}
			r, err := Scan(t.Context(), "rtu://"+b, ScanOptions{Lines: []string{"115200 8N1"}, IDs: []int{3, 16, 17, 18, 40}, Profiles: profiles(t)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Units) != 1 || r.Units[0].ID != 17 || r.Units[0].Answer != "registers" || r.Line != "115200 8N1" {
				t.Errorf("%+v", r)
			}
			for _, u := range r.Units {
				if u.Best > 0 {
					t.Errorf("unit %d is taken for a %s", u.ID, u.Matches[0].Profile)
				}
			}
		})
	}
}
