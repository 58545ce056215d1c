package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
	"tidegate/internal/status"
)

// TestWear is what the flash has to take: the real agent in its usual
// settings polls points that drift, of mixed kinds, with a broker and without
// one, for as long as TIDEGATE_WEAR says. What it may write and what it may
// take is fixed. As root each buffer lies on an ext4 of its own, and the
// sectors that reach the device are told beside the pages that the buffer
// counts, with the journal of the file system; where points are read often,
// bytes a reading are held for both. make proof-wear runs it.
func TestWear(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("TIDEGATE_WEAR"))
	if err != nil {
		t.Skip("TIDEGATE_WEAR=10m runs it; it takes as long")
	}
	bin := buildBinary(t)
	for _, w := range []wear{
		{name: "50-2s", devices: 1, points: 50, every: "10ms", loss: "2s", written: 4.0, onDevice: 4.0, stored: 2.0},
		{name: "50-10s", devices: 1, points: 50, every: "10ms", loss: "10s", written: 2.0, onDevice: 2.0, stored: 2.0},
		{name: "5000-2s", devices: 100, points: 50, every: "1s", loss: "2s", written: 4.0, stored: 2.0},
		{name: "5000-10s", devices: 100, points: 50, every: "1s", loss: "10s", written: 2.0, stored: 2.0},
		{name: "1-2s", devices: 1, points: 1, every: "1s", loss: "2s"},
		{name: "1-60s", devices: 1, points: 1, every: "1s", loss: "60s", day: 60e6},
		{name: "online", devices: 100, points: 50, every: "1s", loss: "2s", online: true, day: 2e6},
	} {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			w.measure(t, bin, length)
		})
	}
}

// wear is one agent, named by its points and max_loss, and what it may do to
// the flash; 0: only told. Points that are read often take less: a batch of a
// thousand readings has twenty of each, or only one.
type wear struct {
	name                      string
	devices, points           int
	every, loss               string
	online                    bool
	written, onDevice, stored float64 // bytes a reading
	day                       float64 // bytes written a day
}

func (w *wear) measure(t *testing.T, bin string, length time.Duration) {
	dir := t.TempDir()
	broker, err := sim.NewBroker(sim.BrokerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { broker.Close() })
	if err := broker.CA().WriteIdentity(filepath.Join(dir, "pki"), "wear"); err != nil {
		t.Fatal(err)
	}
	if !w.online {
		broker.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	config := "gateway: {id: wear}\nbuses:\n"
	for i := range w.devices {
		config += w.device(t, ctx, i)
	}
	disk := filepath.Join(dir, "disk")
	sectors := ownDisk(t, dir, disk)
	config += fmt.Sprintf("buffer: {dir: %s/buffer, max_loss: %s, size: 512MB}\nuplink: {url: %q, identity: %s/pki}\nstatus: {socket: %s/agent.sock}\nlog: {level: error}\n",
		disk, w.loss, broker.URL(), dir, dir)
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := exec.Command(bin, "run", "--config", file)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { agent.Process.Signal(syscall.SIGTERM); agent.Wait() }
	t.Cleanup(stop)
	look := func() (readings, written, onDevice float64) {
		onDevice = sectors()
		out, _ := exec.Command(bin, "status", "--json", "--config", file).Output()
		var s status.Snapshot
		if err := json.Unmarshal(out, &s); err != nil {
			t.Fatalf("the agent does not answer: %v\n%s", err, out)
		}
		if s.Buffer.LostTotal > 0 || s.Buffer.Error != "" {
			t.Fatalf("%+v", s.Buffer)
		}
		for _, bus := range s.Buses {
			for _, d := range bus.Devices {
				readings += float64(d.Polls-d.Failed) * float64(w.points)
			}
		}
		return readings, float64(s.Buffer.BytesWritten), onDevice
	}
	time.Sleep(10 * time.Second) // the numbers are reserved, and what a start asks is over
	r0, w0, d0 := look()
	began := time.Now()
	time.Sleep(length)
	r1, w1, d1 := look()
	day := 24 * time.Hour.Seconds() / time.Since(began).Seconds()
	readings, written := r1-r0, w1-w0
	stop()
	stored := storedIn(t, filepath.Join(disk, "buffer"))
	t.Logf("%.0f readings in %v: %.0f B written, %.2f a reading, %.2f MB a day; with the journal of the file system %.2f a reading, %.2f MB a day; stored %.2f a reading",
		readings, length, written, written/readings, written*day/1e6, (d1-d0)/readings, (d1-d0)*day/1e6, stored/r1)
	every, err := time.ParseDuration(w.every)
	if err != nil {
		t.Fatal(err)
	}
	if want := float64(w.devices*w.points) * float64(length/every); readings < 0.9*want {
		t.Errorf("%.0f readings of %.0f: the machine is too busy", readings, want)
	}
	if w.written > 0 && written/readings > w.written {
		t.Errorf("%.2f bytes written a reading, at most %.1f", written/readings, w.written)
	}
	if w.onDevice > 0 && (d1-d0)/readings > w.onDevice {
		t.Errorf("%.2f bytes a reading on the device, with the journal, at most %.1f", (d1-d0)/readings, w.onDevice)
	}
	if w.stored > 0 && stored/r1 > w.stored {
		t.Errorf("%.2f bytes stored a reading, at most %.1f", stored/r1, w.stored)
	}
	if w.day > 0 && written*day > w.day {
		t.Errorf("%.1f MB written a day, at most %.0f", written*day/1e6, w.day/1e6)
	}
}

// device serves points of mixed kinds that drift, and returns its
// configuration: of ten points seven are measured, one counts, one is a
// contact and one a float.
func (w *wear) device(t *testing.T, ctx context.Context, no int) string {
	s := sim.NewSlave()
	rng := rand.New(rand.NewPCG(uint64(no), 1))
	at := make([]float64, w.points)
	for k := range at {
		at[k] = 200 + 50*rng.Float64()
	}
	row := 0
	s.Unit(1).Live(profile.Holding, 0, 2*w.points, func(_ time.Time, regs []uint16) {
		row++
		for k := range at {
			at[k] += 0.2 * rng.NormFloat64()
			x := uint32(int32(math.Round(at[k] * 10)))
			switch k % 10 {
			case 7:
				x = uint32(100_000 + 3*row)
			case 8:
				x = uint32(row / 50 % 2)
			case 9:
				x = math.Float32bits(float32(math.Round(at[k]*100) / 100))
			}
			regs[2*k], regs[2*k+1] = uint16(x>>16), uint16(x)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.ServeTCP(ctx, ln)
	text := fmt.Sprintf("  bus%d:\n    connect: tcp://%s\n    devices:\n      d%d:\n        every: %s\n        unit: 1\n        points:\n", no, ln.Addr(), no, w.every)
	for k := range w.points {
		kind := "type: s32, scale: 0.1"
		switch k % 10 {
		case 7:
			kind = "type: u32, scale: 0.01"
		case 8:
			kind = "type: u32, bit: 0"
		case 9:
			kind = "type: f32"
		}
		text += fmt.Sprintf("          p%d: {holding: %d, %s}\n", k, 2*k, kind)
	}
	return text
}

// ownDisk mounts an ext4 in a file, if root may, and returns how many bytes
// have reached it; else NaN.
func ownDisk(t *testing.T, dir, at string) func() float64 {
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	none := func() float64 { return math.NaN() }
	if os.Geteuid() != 0 {
		return none
	}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 1<<30); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Logf("no disk of its own: %v %s", err, out)
			return none
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	var st syscall.Stat_t
	if err := syscall.Stat(at, &st); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&0xfff00)
	return func() float64 {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseFloat(strings.Fields(string(b))[6], 64)
		if err != nil {
			t.Fatal(err)
		}
		return 512 * n
	}
}

// storedIn is what segments take. They have all their blocks from the start;
// behind their last page stand zeros.
func storedIn(t *testing.T, dir string) (sum float64) {
	paths, err := filepath.Glob(filepath.Join(dir, "data-*.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		used := len(bytes.TrimRight(b, "\x00"))
		sum += float64((used + 4095) / 4096 * 4096)
	}
	return sum
}
