package driver

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/goburrow/modbus"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// ptyBus is a line of units in real time: requests come over a pty, each byte
// takes its time, and what the line could do at most is counted along.
type ptyBus struct {
	mode   lineMode
	turn   time.Duration
	dead   int // units 1 to dead do not answer
	master *os.File
	pk     modbus.Packager
	enc    *slave

	mu       sync.Mutex
	ideal    time.Duration // of the exchanges with units that answer
	alive    int           // requests to them
	shortest time.Duration
	last     time.Time // when the last bytes of an answer went
}

// at waits until a moment, the last part of it awake.
func at(t time.Time) {
	if d := time.Until(t) - 300*time.Microsecond; d > 0 {
		time.Sleep(d)
	}
	for time.Now().Before(t) {
		runtime.Gosched()
	}
}

func (p *ptyBus) serve() {
	buf := make([]byte, 64)
	for n := 0; ; {
		k, err := p.master.Read(buf[n:])
		if err != nil {
			return
		}
		got := time.Now()
		if n += k; n < 8 {
			continue
		}
		n = 0
		pdu, err := p.pk.Decode(buf[:8])
		if err != nil {
			continue
		}
		char := p.mode.char()
		unit, count := buf[0], binary.BigEndian.Uint16(pdu.Data[2:])
		p.mu.Lock()
		if !p.last.IsZero() {
			if s := got.Sub(p.last); p.shortest == 0 || s < p.shortest {
				p.shortest = s
			}
		}
		p.last = time.Time{}
		if int(unit) > p.dead {
			p.alive++
			p.ideal += time.Duration(8+5+2*int(count))*char + p.turn + p.mode.silence()
		}
		p.mu.Unlock()
		if int(unit) <= p.dead {
			continue
		}
		ans := p.enc.encode(unit, pdu.FunctionCode, append([]byte{byte(2 * count)}, make([]byte, 2*count)...), nil)
		begin := got.Add(8*char + p.turn)
		step := max(1, int(2*time.Millisecond/char))
		var last time.Time // before the write: the line may have the bytes before it returns
		for i := 0; i < len(ans); {
			j := min(i+step, len(ans))
			at(begin.Add(time.Duration(j) * char))
			last = time.Now()
			p.master.Write(ans[i:j])
			i = j
		}
		p.mu.Lock()
		p.last = last
		p.mu.Unlock()
	}
}

func (p *ptyBus) sums() (ideal time.Duration, alive int, shortest time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ideal, p.alive, p.shortest
}

// BenchmarkBus polls 32 units with two stretches of 10 registers each as fast
// as the line allows, over a pty paced at 9600 and 115200 baud with 5 ms of
// turnaround. It reports the share of the line's physical limit that the
// units that are there get (bytes, turnaround and one silence of 3.5
// characters, 1.75 ms above 19200 baud), and the shortest silence before a
// request in characters. With dead units: after the first half minute, when
// they were found out. make proof-bus runs it.
func BenchmarkBus(b *testing.B) {
	for _, line := range []string{"9600 8N1", "115200 8N1"} {
		for _, dead := range []int{0, 1, 8} {
			b.Run(fmt.Sprintf("%s/dead=%d", line[:len(line)-4], dead), func(b *testing.B) {
				for range b.N {
					measureBus(b, line, dead)
				}
			})
		}
	}
}

func measureBus(b *testing.B, line string, dead int) {
	mode, err := parseLine(line)
	if err != nil {
		b.Fatal(err)
	}
	master, path := openPTY(b)
	bus := &ptyBus{mode: mode, turn: 5 * time.Millisecond, dead: dead, master: master, pk: packager(kindRTU, 1), enc: newSlave(kindRTU, 1)}
	done := make(chan struct{})
	go func() { defer close(done); bus.serve() }()
	points := make([]profile.Point, 20)
	for i := range points {
		a := i
		if i >= 10 {
			a += 6
		}
		points[i] = profile.Point{Name: fmt.Sprintf("p%d", i), Holding: &a}
	}
	m, issues := profile.Custom("bus", points, nil)
	if len(issues) > 0 {
		b.Fatal(issues)
	}
	o := Options{Name: "bus", Connect: "rtu://" + path, Line: line}
	for u := 1; u <= 32; u++ {
		o.Devices = append(o.Devices, Device{Name: fmt.Sprintf("d%d", u), Unit: u, Every: 100 * time.Millisecond, Map: m, Points: points})
	}
	l, err := Open(o, Env{})
	if err != nil {
		b.Fatal(err)
	}
	stop := run(b, l, func(*telemetry.Group) {})
	warm := 2 * time.Second
	if dead > 0 {
		warm = 30 * time.Second
	}
	time.Sleep(warm)
	began := time.Now()
	i0, n0, _ := bus.sums()
	time.Sleep(30 * time.Second)
	i1, n1, shortest := bus.sums()
	took := time.Since(began)
	stop()
	l.Close()
	master.Close()
	<-done
	b.ReportMetric(100*float64(i1-i0)/float64(took), "%limit")
	b.ReportMetric(float64(n1-n0)/took.Seconds(), "requests/s")
	b.ReportMetric(float64(shortest)/float64(mode.char()), "chars-silence")
	b.ReportMetric(0, "ns/op")
}
