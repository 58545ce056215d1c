package driver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// quickServer answers reads of holding registers as fast as it can.
func quickServer(b testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var req [12]byte
				var ans [260]byte
				for {
					if _, err := io.ReadFull(c, req[:]); err != nil {
						return
					}
					n := 2 * int(binary.BigEndian.Uint16(req[10:]))
					copy(ans[:], req[:8])
					binary.BigEndian.PutUint16(ans[4:], uint16(3+n))
					ans[8] = byte(n)
					c.Write(ans[:9+n])
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// BenchmarkTCPFlatOut asks one connection for 100 registers as fast as it
// answers: the way of a poll without its timetable, and the bare socket.
// CPU is of the whole process, the server's half included.
func BenchmarkTCPFlatOut(b *testing.B) {
	report := func(b *testing.B, used time.Duration) {
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
		b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-us/op")
	}
	b.Run("driver", func(b *testing.B) {
		l, err := Open(Options{Name: "b", Connect: "tcp://" + quickServer(b),
			Devices: []Device{{Name: "d", Unit: 1, Points: custom(b, 1).Points, Map: custom(b, 1)}}}, Env{})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		a, _ := newAsk(packager(kindTCP, 1), kindTCP, 1, profile.Holding, 0, 100)
		b.ReportAllocs()
		used := cpu()
		for b.Loop() {
			if _, err := l.query(context.Background(), l.unit(1), a, time.Second, 0); err != nil {
				b.Fatal(err)
			}
		}
		report(b, cpu()-used)
	})
	b.Run("socket", func(b *testing.B) {
		c, err := net.Dial("tcp", quickServer(b))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		req := []byte{0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 100}
		ans := make([]byte, 209)
		used := cpu()
		for b.Loop() {
			c.Write(req)
			if _, err := io.ReadFull(c, ans); err != nil {
				b.Fatal(err)
			}
		}
		report(b, cpu()-used)
	})
}

// BenchmarkBesideLibmodbus reads 100 registers over one connection from a
// libmodbus server in a process of its own, by turns as a C client on
// libmodbus and as the driver with the one thread that the agent gives to
// networks; CPU is of the client alone. Where the kernel puts client and server
// counts for more than either, so they have a processor each, or one together.
// A machine is faster in one second than in the next, so the turns are short and
// each is compared with the one beside it. It fails when the driver is slower or
// costs more: medians of 151 turns.
func BenchmarkBesideLibmodbus(b *testing.B) {
	b.Run("apart", func(b *testing.B) { besideLibmodbus(b, "0", "1") })
	b.Run("together", func(b *testing.B) { besideLibmodbus(b, "0", "0") })
}

func besideLibmodbus(b *testing.B, server, client string) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const turns, requests = 151, 2_000
	bin := libmodbus(b)
	port := peer(b, "taskset", "-c", server, bin, "tcp")
	pin := func(cpus string) {
		if out, err := exec.Command("taskset", "-acp", cpus, strconv.Itoa(os.Getpid())).CombinedOutput(); err != nil {
			b.Fatalf("taskset: %v\n%s", err, out)
		}
	}
	pin(client)
	defer pin(fmt.Sprintf("0-%d", runtime.NumCPU()-1))
	a, _ := newAsk(packager(kindTCP, 17), kindTCP, 17, profile.Holding, 0, 100)
	var theirs, ours, faster, dearer []float64
	for b.Loop() {
		for range turns {
			out, err := exec.Command("taskset", "-c", client, bin, "read", port, strconv.Itoa(requests)).Output()
			var rate, used float64
			if _, e := fmt.Sscan(string(out), &rate, &used); err != nil || e != nil {
				b.Fatalf("the C client: %q, %v", out, errors.Join(err, e))
			}

			l, err := Open(Options{Name: "b", Connect: "tcp://127.0.0.1:" + port,
				Devices: []Device{{Name: "d", Unit: 17, Points: custom(b, 1).Points, Map: custom(b, 1)}}}, Env{})
			if err != nil {
				b.Fatal(err)
			}
			ask := func() {
				ans, err := l.query(context.Background(), l.unit(17), a, time.Second, 0)
				if err != nil || binary.BigEndian.Uint16(ans.data[198:]) != peerTruth(profile.Holding, 99) {
					b.Fatalf("% x, %v", ans.data, err)
				}
			}
			ask() // connects
			before, start := cpu(), time.Now()
			for range requests {
				ask()
			}
			own := requests / time.Since(start).Seconds()
			theirs, ours, faster = append(theirs, rate), append(ours, own), append(faster, own/rate)
			dearer = append(dearer, float64((cpu()-before).Nanoseconds())/1000/requests/used)
			l.Close()
		}
	}
	middle := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(middle(theirs), "libmodbus-requests/s")
	b.ReportMetric(middle(ours), "requests/s")
	b.ReportMetric(middle(faster), "x-faster")
	b.ReportMetric(middle(dearer), "x-cpu")
	if middle(faster) < 1 || middle(dearer) > 1 {
		b.Errorf("%.2f times as fast as libmodbus, at %.2f of its CPU", middle(faster), middle(dearer))
	}
}

// BenchmarkHundredLines runs 100 TCP lines with 50 points every 100 ms for
// the benchmark's time and reports CPU per reading, late and skipped polls.
func BenchmarkHundredLines(b *testing.B) {
	addr := quickServer(b)
	points := custom(b, 50)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var lines []*Line
	done := make(chan error)
	for range 100 {
		l, err := Open(Options{Name: "b", Connect: "tcp://" + addr,
			Devices: []Device{{Name: "d", Unit: 1, Every: 100 * time.Millisecond, Points: points.Points, Map: points}}}, Env{})
		if err != nil {
			b.Fatal(err)
		}
		lines = append(lines, l)
		go func() { done <- l.Run(ctx, func(*telemetry.Group) {}) }()
	}
	time.Sleep(500 * time.Millisecond)
	sum := func() (good, late, skipped uint64) {
		for _, l := range lines {
			d := l.Stats().Devices[0]
			good, late, skipped = good+d.Good, late+d.Late, skipped+d.Skipped
		}
		return
	}
	g0, l0, s0 := sum()
	used := cpu()
	b.ReportAllocs()
	for b.Loop() {
		time.Sleep(time.Second)
	}
	used = cpu() - used
	g1, l1, s1 := sum()
	b.ReportMetric(float64(used.Nanoseconds())/float64(50*(g1-g0)), "cpu-ns/reading")
	b.ReportMetric(float64(50*(g1-g0))/b.Elapsed().Seconds(), "readings/s")
	b.ReportMetric(float64(l1-l0), "late")
	b.ReportMetric(float64(s1-s0), "skipped")
	cancel()
	for range lines {
		<-done
	}
}
