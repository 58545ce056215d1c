package sim

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/driver/profile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// need skips loudly when a peer is missing; in CI that is a failure.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	missing(t, program)
	return ""
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", what)
	}
	t.Skipf("NOT RUN: %s is missing", what)
}

// peerUnit is the unit that testdata/peer and mbpoll know.
func peerUnit() *Slave {
	s := NewSlave()
	u := s.Unit(17)
	for i := range 40 {
		on := uint16(0)
		if i%3 == 0 {
			on = 1
		}
		u.Set(profile.Coils, uint16(i), on)
		u.Set(profile.Discrete, uint16(100+i), 1-on)
	}
	for i := range 125 {
		u.Set(profile.Holding, uint16(i), uint16(7+517*i))
		u.Set(profile.Input, uint16(1000+i), uint16(9+331*i))
	}
	u.Define(profile.Holding, 3000, 1)
	u.Trap(profile.Holding, 3000, 1, Fault{Kind: Exception, Code: 4})
	return s
}

// serveOn serves s in the background on a line of this kind and returns the
// port for a master: a path or a number.
func serveOn(t *testing.T, s *Slave, kind string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var port string
	var serve func() error
	if strings.HasSuffix(kind, "tcp") {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port = fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
		serve = func() error { return s.ServeTCP(ctx, ln) }
		if kind == "rtu+tcp" {
			serve = func() error { return s.ServeRTUOverTCP(ctx, ln, Wire{}) }
		}
	} else {
		master, path, err := OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { master.Close() })
		port = path
		serve = func() error { return s.ServeRTU(ctx, master, Wire{}) }
		if kind == "ascii" {
			serve = func() error { return s.ServeASCII(ctx, master, Wire{}) }
		}
	}
	wg.Go(func() {
		if err := serve(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return port
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPymodbusMaster(t *testing.T) {
	python := "/usr/bin/python3" // where Debian's python3-pymodbus lives
	if err := exec.Command(python, "-c", "import pymodbus.client, pymodbus.server, serial").Run(); err != nil {
		if python = need(t, "python3"); exec.Command(python, "-c", "import pymodbus.client, pymodbus.server, serial").Run() != nil {
			missing(t, "pymodbus or pyserial")
		}
	}
	for _, kind := range []string{"rtu", "ascii", "tcp", "rtu+tcp"} {
		t.Run(kind, func(t *testing.T) {
			s := peerUnit()
			out := run(t, python, filepath.Join("testdata", "peer", "master.py"), kind, serveOn(t, s, kind))
			if !strings.Contains(out, "ok ") || s.Stats().Damaged != 0 {
				t.Errorf("%s%+v", out, s.Stats())
			}
		})
	}
}

func TestLibmodbusMaster(t *testing.T) {
	gcc := need(t, "gcc")
	if exec.Command("pkg-config", "--exists", "libmodbus").Run() != nil {
		missing(t, "libmodbus-dev")
	}
	flags := strings.Fields(run(t, "pkg-config", "--cflags", "--libs", "libmodbus"))
	program := filepath.Join(t.TempDir(), "master")
	run(t, gcc, append([]string{"-Wall", "-o", program, filepath.Join("testdata", "peer", "master.c")}, flags...)...)
	for _, kind := range []string{"rtu", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			s := peerUnit()
			out := run(t, program, kind, serveOn(t, s, kind))
			if !strings.Contains(out, "ok ") || s.Stats().Damaged != 0 {
				t.Errorf("%s%+v", out, s.Stats())
			}
		})
	}
}

func TestMbpollMaster(t *testing.T) {
	mbpoll := need(t, "mbpoll")
	for _, kind := range []string{"rtu", "tcp"} {
		s := peerUnit()
		port := serveOn(t, s, kind)
		line := []string{"-m", "rtu", "-b", "9600", "-P", "none"}
		target := port
		if kind == "tcp" {
			line, target = []string{"-m", "tcp", "-p", port}, "127.0.0.1"
		}
		poll := func(values []string, args ...string) string {
			all := append(append(append([]string{}, line...), "-0", "-1", "-q", "-o", "3", "-a", "17"), args...)
			return run(t, mbpoll, append(append(all, target), values...)...)
		}
		for _, c := range []struct {
			args, values []string
			want         string
		}{
			{[]string{"-t", "0", "-r", "3", "-c", "2"}, nil, "[3]: \t1\n[4]: \t0\n"},
			{[]string{"-t", "1", "-r", "103", "-c", "2"}, nil, "[103]: \t0\n[104]: \t1\n"},
			{[]string{"-t", "3", "-r", "1002", "-c", "2"}, nil, "[1002]: \t671\n[1003]: \t1002\n"},
			{[]string{"-t", "4", "-r", "2", "-c", "1"}, nil, "[2]: \t1041\n"},
			{[]string{"-t", "4", "-r", "2"}, []string{"77", "78"}, "Written 2 references."},
			{[]string{"-t", "4", "-r", "2", "-c", "2"}, nil, "[2]: \t77\n[3]: \t78\n"},
			{[]string{"-t", "0", "-r", "1"}, []string{"1"}, "Written 1 references."},
			{[]string{"-t", "0", "-r", "1", "-c", "1"}, nil, "[1]: \t1\n"},
		} {
			if out := poll(c.values, c.args...); !strings.Contains(out, c.want) {
				t.Errorf("%s %v %v: %q is not in\n%s", kind, c.args, c.values, c.want, out)
			}
		}
	}
}
