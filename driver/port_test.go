package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// TestOpenErrors: the codes of a port that cannot be opened.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	_, path := openPTY(t)
	m, _ := parseLine("9600 8N1")
	st, err := openPort(path, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	plain, fifo, socket := filepath.Join(dir, "file"), filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	if err := errors.Join(os.WriteFile(plain, []byte("abc"), 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for p, want := range map[string][2]string{ // code, and how what was seen begins
		path: {"port-busy", ""}, filepath.Join(dir, "none"): {"port-missing", "ports here: "},
		plain: {"not-serial", "it is a file of 3 bytes; ports here: "}, dir: {"not-serial", "it is a directory; "},
		fifo: {"not-serial", "it is a pipe; "}, socket: {"not-serial", "it is a socket; "},
		"/dev/null": {"not-serial", "it is a device without line settings; "},
	} {
		_, err := openPort(p, m, nil)
		var e *Error
		if !errors.As(err, &e) || e.Code != want[0] || !errors.Is(err, ErrGone) || !strings.HasPrefix(e.Seen, want[1]) {
			t.Errorf("%s: got %v, want code and facts %q", p, err, want)
		} else if e.Code == "not-serial" && (e.Likely == "" || e.Try == "" || strings.Count(e.Hint(), "\n") > 6) {
			t.Errorf("%s: no hint, or one of more than 8 lines with the error:\n%s", p, e.Hint())
		}
	}
	if f, err := os.CreateTemp("/dev/shm", "port"); err == nil { // where the names of devices are
		_, err := openPort(f.Name(), m, nil)
		if e := (*Error)(nil); !errors.As(err, &e) || e.Likely != likelyWritten || !strings.HasPrefix(e.Try, "remove the file") {
			t.Errorf("%s: %v", f.Name(), err)
		}
		f.Close()
		os.Remove(f.Name())
	}
	st.Close()
	if _, err := st.ReadSome(make([]byte, 1), time.Now()); !errors.Is(err, ErrGone) {
		t.Errorf("read after close: %v", err)
	}
	if err := st.WriteAll([]byte{1}, time.Now()); !errors.Is(err, ErrGone) {
		t.Errorf("write after close: %v", err)
	}
	st, err = openPort(path, m, nil)
	if err != nil {
		t.Fatalf("the port is not free after Close: %v", err)
	}
	began := time.Now()
	if _, err := st.ReadSome(make([]byte, 1), began.Add(50*time.Millisecond)); !errors.Is(err, ErrTimeout) || time.Since(began) < 50*time.Millisecond {
		t.Errorf("a silent port: %v after %v", err, time.Since(began))
	}
	// Nobody reads the other side: the write gives up at its deadline.
	if err := st.WriteAll(make([]byte, 1<<20), time.Now().Add(50*time.Millisecond)); !errors.Is(err, ErrTimeout) {
		t.Errorf("a stuck port: %v", err)
	}
	st.Close()
}

func TestParseConnect(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]endpoint{
		"rtu:///dev/ttyUSB0":               {kindRTU, true, false, "/dev/ttyUSB0"},
		"ascii:///dev/ttyS1":               {kindASCII, true, false, "/dev/ttyS1"},
		"serial:///dev/serial/by-id/usb-x": {kindListen, true, false, "/dev/serial/by-id/usb-x"},
		"tcp://10.0.0.5:502":               {kindTCP, false, false, "10.0.0.5:502"},
		"tls://plc.local":                  {kindTCP, false, true, "plc.local:802"},
		"tls://10.0.0.5:8802":              {kindTCP, false, true, "10.0.0.5:8802"},
		"tcp://10.0.0.5":                   {kindTCP, false, false, "10.0.0.5:502"},
		"rtu+tcp://gw.local:4001":          {kindRTU, false, false, "gw.local:4001"},
		"serial+tcp://[::1]:4001":          {kindListen, false, false, "[::1]:4001"},
	} {
		if got, err := parseConnect(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "rtu://ttyUSB0", "rtu:/x?y", "tcp://:502", "tcp://h:0", "tcp://h:99999", "rtu+tcp://h", "udp://h:1", "tcp://u@h:1", "tcp://h:1/x", "/dev/ttyUSB0"} {
		if got, err := parseConnect(s); err == nil {
			t.Errorf("%q was taken: %+v", s, got)
		}
	}
	for _, s := range []string{"9600", "9600 9N1", "10 8N1", "9600 8X1", "9600 8N3", "9600 8N1 x"} {
		if _, err := parseLine(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if m, err := parseLine("9600 8E1"); err != nil || m.bits != 11 || m.silence() < 4*time.Millisecond || m.silence() > 4020*time.Microsecond {
		t.Errorf("9600 8E1: %+v %v %v", m, m.silence(), err)
	}
}

// TestTimetable: slots stay on the grid, a pause makes no burst, and a step
// of the wall clock moves the next slot by at most half a period.
func TestTimetable(t *testing.T) {
	t.Parallel()
	for _, every := range []time.Duration{100 * time.Millisecond, time.Second, 7 * time.Second, time.Hour} {
		g := newGrid("bus", "device", 1, every)
		now := time.Now()
		due, _ := g.after(now, now)
		if d := due.Sub(now); d < every/2 || d > every*3/2 {
			t.Errorf("%v: the second slot is %v after the first", every, d)
		}
		for range 1000 {
			next, skipped := g.after(due, due.Add(every/20))
			if skipped != 0 || next.Sub(due) != every {
				t.Fatalf("%v: next after %v, %d skipped", every, next.Sub(due), skipped)
			}
			if off := (next.UnixNano() - g.phase) % int64(every); off != 0 {
				t.Fatalf("%v: %v off the grid", every, time.Duration(off))
			}
			due = next
		}
		next, skipped := g.after(due, due.Add(10*every+every/2))
		if skipped != 9 || next.Sub(due) != 10*every {
			t.Errorf("%v: after a pause of 10.5 periods: next %v, %d skipped", every, next.Sub(due), skipped)
		}
	}
	for _, c := range []struct {
		devices int
		every   time.Duration
		want    int
	}{
		{1, time.Second, 4}, {4, time.Second, 4}, {5, time.Second, 16}, {99, time.Second, 16},
		{1, 10 * time.Second, 40}, {5, 10 * time.Second, 40}, {1, 200 * time.Millisecond, 2},
		{1, 100 * time.Millisecond, 1}, {1, 20 * time.Millisecond, 1}, {5, 100 * time.Millisecond, 16}, {5, 1, 1},
	} {
		phases := map[int64]bool{}
		for i := range 1000 {
			phases[newGrid("bus", strconv.Itoa(i), c.devices, c.every).phase] = true
		}
		if len(phases) != c.want {
			t.Errorf("%d devices on a line, every %v, have %d phases, not %d", c.devices, c.every, len(phases), c.want)
		}
	}
	for _, names := range []string{"bus%[1]d/meter%[1]d", "bus%[1]d/d%[1]d", "bus/meter-%d", "hall%d/meter", "m%[1]d/m%[1]d"} {
		on := map[int64]int{}
		for i := range 100 {
			line, device, _ := strings.Cut(fmt.Sprintf(names, i), "/")
			on[newGrid(line, device, 1, time.Second).phase]++
		}
		for phase, n := range on {
			if n > 40 {
				t.Errorf("%s: %d of 100 devices are polled at phase %v", names, n, time.Duration(phase))
			}
		}
	}
	if a, b := newGrid("bus", "a", 2, time.Second), newGrid("bus", "b", 2, time.Second); a.phase == b.phase {
		t.Error("two devices have one phase")
	}
}

// TestMidway: a group is stamped half way between request and answer.
func TestMidway(t *testing.T) {
	t.Parallel()
	const delay = 2 * time.Second
	asked := make(chan time.Time, 1)
	s := newSlave(kindTCP, 1)
	s.plan = func(int, byte, uint16) fault {
		select {
		case asked <- time.Now():
		default:
		}
		return fault{delay: delay}
	}
	got := make(chan [2]time.Time, 1)
	run(t, bus(t, s, "tcp", 20*delay), func(g *telemetry.Group) {
		select {
		case got <- [2]time.Time{time.UnixMilli(g.At.Wall), time.Now()}:
		default:
		}
	})
	from, to := <-asked, <-got
	if d := to[0].Sub(from); d < delay/4 { // a request that came late is stamped the earlier
		t.Errorf("stamped %v after the request, which took %v to answer", d, delay)
	}
	if d := to[1].Sub(to[0]); d < delay/4 {
		t.Errorf("stamped %v before the answer, which took %v", d, delay)
	}
}

// TestListen: a talking device over a pty, with noise; its groups, its
// silence at the start, its loss.
func TestListen(t *testing.T) {
	t.Parallel()
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	p, err := lib.Get("plantower-pms5003")
	if err != nil {
		t.Skip(err)
	}
	var frame []byte
	for _, e := range p.Examples {
		if !e.Reject && len(e.Frame) == 32 {
			frame = []byte(e.Frame)
			break
		}
	}
	if frame == nil {
		t.Skip("the profile has no example")
	}
	master, path := openPTY(t)
	l := open(t, Options{Name: "air", Connect: "serial://" + path,
		Devices: []Device{{Name: "roof", Profile: "plantower-pms5003", Map: p, Every: time.Second, Base: 40}}})
	var got sink
	run(t, l, got.emit)
	until(t, 2*time.Second, "not yet", func() bool { return got.count(40, telemetry.Init, telemetry.CauseNotYet) == 1 })
	for i := range 5 {
		master.Write([]byte{0x42, 0x00, byte(i), 0x42})
		master.Write(frame[:7])
		time.Sleep(10 * time.Millisecond)
		master.Write(frame[7:])
	}
	until(t, 2*time.Second, "five frames", func() bool {
		got.mu.Lock()
		defer got.mu.Unlock()
		n := 0
		for _, g := range got.groups {
			if g.Readings[0].Quality == telemetry.Good {
				n++
			}
		}
		return n == 5
	})
	if _, err := l.Exchange(context.Background(), 1, profile.Holding, 0, 1); !errors.Is(err, ErrRequest) {
		t.Errorf("asking a talker: %v", err)
	}
	master.Close()
	until(t, 3*time.Second, "gone", func() bool { return got.count(40, telemetry.Comm, telemetry.CauseGone) == 1 })
}

// TestPortHolder: a port locked by another process is refused, and the
// process is named.
func TestPortHolder(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("no flock(1)")
	}
	_, path := openPTY(t)
	cmd := exec.Command("flock", path, "sleep", "20")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	m, _ := parseLine("9600 8N1")
	var e *Error
	until(t, 3*time.Second, "the lock is held", func() bool {
		st, err := openPort(path, m, nil)
		if err == nil {
			st.Close()
			return false
		}
		return errors.As(err, &e)
	})
	if e.Code != "port-busy" || !errors.Is(e, ErrBusy) || !strings.Contains(e.Seen, "process "+strconv.Itoa(cmd.Process.Pid)+" (flock)") {
		t.Errorf("got %v: %s", e, e.Hint())
	}
}

// TestPermission runs as root only to find a user who may not.
func TestPermission(t *testing.T) {
	t.Parallel()
	_, path := openPTY(t)
	seen, try := permissionFacts(path)
	if !strings.HasPrefix(seen, "owner ") || !strings.Contains(seen, "mode ") || !strings.Contains(seen, "you are ") {
		t.Errorf("seen: %s", seen)
	}
	t.Log(seen, try)
	e := openError(path, unix.EACCES)
	if e.Code != "port-permission" || !errors.Is(e, ErrPermission) {
		t.Errorf("got %v", e)
	}
}

// TestBlackHole: packets that vanish end in conn-timeout, in time.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, _ := unix.Getsockname(fd)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*unix.SockaddrInet4).Port))
	// A full queue of connections that nobody accepts: the kernel drops the next.
	for range 4 {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err == nil {
			defer c.Close()
		}
	}
	began := time.Now()
	_, err = dialTCP(context.Background(), addr, 300*time.Millisecond)
	var e *Error
	if !errors.As(err, &e) || e.Code != "conn-timeout" || time.Since(began) > 20*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

// TestPorts reads a made-up sysfs: no port is opened.
func TestPorts(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	sys, dev := filepath.Join(root, "sys"), filepath.Join(root, "dev")
	mk := func(path, content string) {
		os.MkdirAll(filepath.Dir(path), 0o755)
		os.WriteFile(path, []byte(content), 0o644)
	}
	usb := filepath.Join(sys, "devices/usb1/1-1")
	mk(usb+"/idVendor", "0403")
	mk(usb+"/manufacturer", "FTDI\n")
	mk(usb+"/product", "FT232R USB UART\n")
	mk(usb+"/serial", "A900WXPC\n")
	os.MkdirAll(usb+"/1-1:1.0/ttyUSB0", 0o755)
	os.MkdirAll(filepath.Join(sys, "bus/usb-serial/drivers/ftdi_sio"), 0o755)
	os.Symlink("../../../../bus/usb-serial/drivers/ftdi_sio", usb+"/1-1:1.0/ttyUSB0/driver")
	os.MkdirAll(filepath.Join(sys, "class/tty/ttyUSB0"), 0o755)
	os.Symlink(usb+"/1-1:1.0/ttyUSB0", filepath.Join(sys, "class/tty/ttyUSB0/device"))
	mk(filepath.Join(sys, "class/tty/ttyS0/type"), "0\n") // no UART there
	os.MkdirAll(filepath.Join(sys, "class/tty/ttyS0/device"), 0o755)
	mk(filepath.Join(sys, "class/tty/ttyS1/type"), "4\n")
	os.MkdirAll(filepath.Join(sys, "class/tty/ttyS1/device"), 0o755)
	os.MkdirAll(filepath.Join(sys, "class/tty/tty1"), 0o755) // a console
	mk(filepath.Join(dev, "ttyUSB0"), "")
	os.MkdirAll(filepath.Join(dev, "serial/by-id"), 0o755)
	os.Symlink("../../ttyUSB0", filepath.Join(dev, "serial/by-id/usb-FTDI"))
	ports, err := portsUnder(sys, dev)
	if err != nil || len(ports) != 2 {
		t.Fatalf("%+v, %v", ports, err)
	}
	if p := ports[0]; p.Path != filepath.Join(dev, "ttyS1") || p.ByID != "" {
		t.Errorf("%+v", p)
	}
	if p := ports[1]; p.ByID != filepath.Join(dev, "serial/by-id/usb-FTDI") || p.Driver != "ftdi_sio" ||
		p.Vendor != "FTDI FT232R USB UART" || p.Serial != "A900WXPC" {
		t.Errorf("%+v", p)
	}
	if ports, err := portsUnder(filepath.Join(root, "none"), dev); err != nil || len(ports) != 0 {
		t.Errorf("no sysfs: %v, %v", ports, err)
	}
}
