package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
	"tidegate/internal/status"
)

// BenchmarkMany runs the whole program with 1,000 devices of 10 points behind
// 100 Modbus TCP endpoints, every second, records over TLS. It reports CPU and
// memory of the agent's process, its threads, and the polls that were late or
// skipped. make proof-many runs it.
func BenchmarkMany(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "tidegate")
	build := exec.Command("make", "-C", filepath.Join("..", ".."), "build", "OUT="+bin)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for range b.N {
		measureMany(b, bin, 100, 10, 10)
	}
}

func measureMany(b *testing.B, bin string, endpoints, units, points int) {
	dir := b.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	broker, err := sim.NewBroker(sim.BrokerOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer broker.Close()
	if err := broker.CA().WriteIdentity(filepath.Join(dir, "pki"), "many"); err != nil {
		b.Fatal(err)
	}
	config := "gateway: {id: many}\nbuses:\n"
	for i := range endpoints {
		s := sim.NewSlave()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		config += fmt.Sprintf("  bus%d:\n    connect: tcp://%s\n    devices:\n", i, ln.Addr())
		for u := 1; u <= units; u++ {
			s.Unit(byte(u)).Live(profile.Holding, 0, 2*points, func(now time.Time, regs []uint16) {
				for k := range regs {
					regs[k] = uint16(now.UnixMilli()/100) + uint16(k*u)
				}
			})
			config += fmt.Sprintf("      d%d-%d:\n        every: 1s\n        unit: %d\n        points:\n", i, u, u)
			for k := range points {
				config += fmt.Sprintf("          p%d: {holding: %d, type: u32}\n", k, 2*k)
			}
		}
		wg.Go(func() { s.ServeTCP(ctx, ln) })
	}
	config += fmt.Sprintf("buffer: {dir: %s/buffer}\nuplink: {url: %q, identity: %s/pki, batch: {max_readings: 10000, max_bytes: 1MB}}\nstatus: {socket: %s/agent.sock}\nlog: {level: warn}\n",
		dir, broker.URL(), dir, dir)
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(bin, "run", "--config", file)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }()
	snapshot := func() (polls, failed, late, skipped uint64) {
		out, _ := exec.Command(bin, "status", "--json", "--config", file).Output()
		var s status.Snapshot
		if err := json.Unmarshal(out, &s); err != nil {
			b.Fatalf("the agent does not answer: %v\n%s", err, out)
		}
		for _, bus := range s.Buses {
			for _, d := range bus.Devices {
				polls, failed, late, skipped = polls+d.Polls, failed+d.Failed, late+d.Late, skipped+d.Skipped
			}
		}
		return
	}
	time.Sleep(10 * time.Second) // the start asks everything at once
	p0, f0, l0, s0 := snapshot()
	cpu := cpuOf(b, cmd.Process.Pid)
	time.Sleep(loadTime)
	used := cpuOf(b, cmd.Process.Pid) - cpu
	p1, f1, l1, s1 := snapshot()
	b.ReportMetric(residentOf(b, cmd.Process.Pid), "MB-RSS")
	b.ReportMetric(float64(procField(b, cmd.Process.Pid, "status", "Threads")), "threads")
	b.ReportMetric(used.Seconds()*1e6/float64(max(p1-p0, 1)*uint64(points)), "us-CPU/reading")
	b.ReportMetric(float64(p1-p0)/(loadTime.Seconds()*float64(endpoints*units)), "polls/slot")
	b.ReportMetric(float64(f1-f0), "failed")
	b.ReportMetric(float64(l1-l0), "late-polls")
	b.ReportMetric(float64(s1-s0), "skipped")
	b.ReportMetric(0, "ns/op")
}
