package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// BenchmarkAgent measures the whole program at its reference load: 100 Modbus
// TCP devices with 50 float32 points each, every second, over TLS with client
// certificates. It reports CPU and memory of the agent's process alone, bytes
// written to disk, polls that were not on time with the longest time for which
// a processor stood still, and beside them the CPU of bare loops that send the same requests and throw the answers away ("floor",
// without decoding, buffering and sending). make proof-load runs it. With
// TIDEGATE_TELEGRAF Telegraf polls the same devices at the same time and sends
// to the same broker, and the ratios of the two are reported: make proof-beside.
func BenchmarkAgent(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "tidegate")
	build := exec.Command("make", "-C", filepath.Join("..", ".."), "build", "OUT="+bin)
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for _, every := range []time.Duration{time.Second, 100 * time.Millisecond} {
		b.Run(every.String(), func(b *testing.B) {
			for range b.N {
				measureAgent(b, bin, every)
			}
		})
	}
}

const (
	loadDevices = 100
	loadPoints  = 50
	loadTime    = 20 * time.Second
	warmUp      = 6 * time.Second
)

func measureAgent(b *testing.B, bin string, every time.Duration) {
	dir := b.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	var heard atomic.Int64 // messages of Telegraf
	broker, err := sim.NewBroker(sim.BrokerOptions{OnPublish: func(topic string, _ []byte) {
		if topic == "telegraf" {
			heard.Add(1)
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer broker.Close()
	if err := broker.CA().WriteIdentity(filepath.Join(dir, "pki"), "load"); err != nil {
		b.Fatal(err)
	}
	var addrs []string
	var slaves []*sim.Slave
	config := "gateway: {id: load}\nbuses:\n"
	for i := range loadDevices {
		s := sim.NewSlave()
		s.Unit(1).Live(profile.Holding, 0, 2*loadPoints, func(now time.Time, regs []uint16) {
			for k := range loadPoints {
				x := math.Float32bits(float32(math.Round(23000+1000*math.Sin(float64(now.UnixMilli())/3e4+float64(k))) / 100))
				regs[2*k], regs[2*k+1] = uint16(x>>16), uint16(x)
			}
		})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() { s.ServeTCP(ctx, ln) })
		addrs, slaves = append(addrs, ln.Addr().String()), append(slaves, s)
		config += fmt.Sprintf("  bus%d:\n    connect: tcp://%s\n    devices:\n      d%d:\n        every: %v\n        unit: 1\n        points:\n", i, ln.Addr(), i, every)
		for k := range loadPoints {
			config += fmt.Sprintf("          p%d: {holding: %d, type: f32}\n", k, 2*k)
		}
	}
	floor := bareLoops(b, addrs, every)
	config += fmt.Sprintf("buffer: {dir: %s/buffer}\nuplink: {url: %q, identity: %s/pki, batch: {max_readings: 10000, max_bytes: 1MB}}\nstatus: {socket: %s/agent.sock}\nlog: {level: warn}\n",
		dir, broker.URL(), dir, dir)
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	stalls := exec.Command(os.Args[0], "-test.run", "^TestStalls$")
	stalls.Env = append(os.Environ(), "TIDEGATE_STALLS="+(warmUp+loadTime).String())
	var stalled bytes.Buffer
	stalls.Stdout = &stalled
	if err := stalls.Start(); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(bin, "run", "--config", file)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }()
	telegraf := os.Getenv("TIDEGATE_TELEGRAF")
	peer := 0
	if telegraf != "" {
		peer = startTelegraf(b, telegraf, dir, broker.URL(), addrs, every)
	}
	answers := func() (n float64) {
		for _, s := range slaves {
			n += float64(s.Stats().Answers)
		}
		return n
	}
	time.Sleep(warmUp)
	cpu, written, answered := cpuOf(b, cmd.Process.Pid), writtenBy(b, cmd.Process.Pid), answers()
	var peerCPU time.Duration
	if peer > 0 {
		peerCPU = cpuOf(b, peer)
	}
	time.Sleep(loadTime)
	readings := float64(loadDevices*loadPoints) * float64(loadTime/every)
	if peer > 0 {
		if n := heard.Load(); n < int64(loadTime/time.Second)/2 {
			b.Fatalf("Telegraf has sent %d messages", n)
		}
		others := (answers()-answered)*loadPoints - readings // what is not the agent's is Telegraf's
		each := (cpuOf(b, peer) - peerCPU).Seconds() * 1e6 / others
		b.ReportMetric(each, "telegraf-us-CPU/reading")
		b.ReportMetric(each*readings/1e6/(cpuOf(b, cmd.Process.Pid)-cpu).Seconds(), "telegraf-CPU/agent-CPU")
		b.ReportMetric(residentOf(b, peer)/residentOf(b, cmd.Process.Pid), "telegraf-RSS/agent-RSS")
		b.ReportMetric(others/readings, "telegraf-polls/agent-polls")
	}
	b.ReportMetric((cpuOf(b, cmd.Process.Pid)-cpu).Seconds()*1e6/readings, "us-CPU/reading")
	b.ReportMetric(floor.Seconds()*1e6/readings, "floor-us-CPU/reading")
	b.ReportMetric(float64(writtenBy(b, cmd.Process.Pid)-written)/readings, "B-disk/reading")
	b.ReportMetric(residentOf(b, cmd.Process.Pid), "MB-RSS")
	out, err := exec.Command(bin, "status", "--json", "--config", file).Output()
	if err != nil {
		b.Fatalf("the agent is not healthy: %v\n%s", err, out)
	}
	late := 0.0
	for _, part := range strings.Split(string(out), `"late":`)[1:] {
		n, _ := strconv.Atoi(part[:strings.IndexAny(part, ",}")])
		late += float64(n)
	}
	b.ReportMetric(late, "late-polls")
	if err := stalls.Wait(); err != nil {
		b.Fatalf("%v\n%s", err, stalled.Bytes())
	}
	_, text, _ := strings.Cut(stalled.String(), "STALL ")
	text, _, _ = strings.Cut(text, "\n")
	stall, err := time.ParseDuration(text)
	if err != nil {
		b.Fatalf("stalls: %v\n%s", err, stalled.Bytes())
	}
	b.ReportMetric(stall.Seconds()*1e3, "ms-stall")
	b.ReportMetric(0, "ns/op")
}

// startTelegraf starts Telegraf with the work of the agent: the same points of
// the same devices in one request each, JSON, sent every second with quality 1.
func startTelegraf(b *testing.B, bin, dir, url string, addrs []string, every time.Duration) (pid int) {
	conf := fmt.Sprintf("[agent]\n  interval = %q\n  flush_interval = \"1s\"\n  precision = \"1ms\"\n  omit_hostname = true\n  quiet = true\n"+
		"[[outputs.mqtt]]\n  servers = [%q]\n  topic = \"telegraf\"\n  qos = 1\n  client_id = \"telegraf\"\n  layout = \"batch\"\n  data_format = \"json\"\n"+
		"  tls_ca = \"%[3]s/ca.crt\"\n  tls_cert = \"%[3]s/client.crt\"\n  tls_key = \"%[3]s/client.key\"\n", every, url, filepath.Join(dir, "pki"))
	fields := ""
	for k := range loadPoints {
		fields += fmt.Sprintf("    {address=%d, name=\"p%d\", type=\"FLOAT32\"},\n", 2*k, k)
	}
	for i, addr := range addrs {
		conf += fmt.Sprintf("[[inputs.modbus]]\n  name = \"d%d\"\n  controller = \"tcp://%s\"\n  configuration_type = \"request\"\n"+
			"  [[inputs.modbus.request]]\n    slave_id = 1\n    byte_order = \"ABCD\"\n    register = \"holding\"\n    fields = [\n%s    ]\n", i, addr, fields)
	}
	file := filepath.Join(dir, "telegraf.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(bin, "--config", file)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

// bareLoops is the CPU of this process for the same requests on as many
// connections, less the devices' share, which is the same in both runs: the
// loops run in a thread of their own and read its clock.
func bareLoops(b *testing.B, addrs []string, every time.Duration) time.Duration {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "^TestBareLoops$")
	cmd.Env = append(os.Environ(), "TIDEGATE_LOOPS="+strings.Join(addrs, " "), "TIDEGATE_EVERY="+every.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	_, text, _ := strings.Cut(string(out), "CPU ")
	text, _, _ = strings.Cut(text, "\n")
	d, err := time.ParseDuration(text)
	if err != nil {
		b.Fatalf("bare loops: %v\n%s", err, out)
	}
	return d
}

// TestBareLoops is the child process of BenchmarkAgent's floor; by itself it
// checks that the loop of one device gets its answers.
func TestBareLoops(t *testing.T) {
	addrs, every, length := strings.Fields(os.Getenv("TIDEGATE_LOOPS")), time.Second, loadTime
	if d, err := time.ParseDuration(os.Getenv("TIDEGATE_EVERY")); err == nil {
		every = d
	}
	if len(addrs) == 0 {
		s := sim.NewSlave()
		s.Unit(1).Define(profile.Holding, 0, 2*loadPoints)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.ServeTCP(ctx, ln)
		addrs, every, length = []string{ln.Addr().String()}, 20*time.Millisecond, 200*time.Millisecond
		defer func() {
			if n := s.Stats().Answers; n < 3 {
				t.Errorf("%d answers", n)
			}
		}()
	}
	end := time.Now().Add(length)
	var before, after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	var wg sync.WaitGroup
	for i, addr := range addrs {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			request := []byte{0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 2 * loadPoints}
			answer := make([]byte, 9+4*loadPoints)
			for next := time.Now().Add(time.Duration(i%16) * every / 16); next.Before(end); next = next.Add(every) {
				time.Sleep(time.Until(next))
				c.SetDeadline(next.Add(time.Second))
				c.Write(request)
				if _, err := io.ReadFull(c, answer); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	used := func(r *syscall.Rusage) int64 { return r.Utime.Nano() + r.Stime.Nano() }
	fmt.Printf("CPU %v\n", time.Duration(used(&after)-used(&before)))
}

// TestStalls is the child process of BenchmarkAgent that finds out for how long
// the machine stands still: on each processor a thread sleeps for 2 ms, over and
// over, and notes how much longer it took. By itself it checks that they run.
func TestStalls(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("TIDEGATE_STALLS"))
	if err != nil {
		length = 100 * time.Millisecond
	}
	cpus := runtime.NumCPU()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cpus + 1)) // a thread keeps its P while it sleeps here
	end := time.Now().Add(length)
	var longest, sleeps atomic.Int64
	var wg sync.WaitGroup
	for cpu := range cpus {
		wg.Go(func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				t.Error(err)
				return
			}
			nap := unix.NsecToTimespec(int64(2 * time.Millisecond))
			for was := time.Now(); was.Before(end); {
				syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&nap)), 0, 0)
				now := time.Now()
				sleeps.Add(1)
				if d := int64(now.Sub(was) - 2*time.Millisecond); d > longest.Load() {
					longest.Store(d)
				}
				was = now
			}
		})
	}
	wg.Wait()
	if sleeps.Load() < 3 {
		t.Errorf("%d sleeps", sleeps.Load())
	}
	fmt.Printf("STALL %v\n", time.Duration(longest.Load()))
}

// cpuOf is user and system time of a process, from /proc (proc(5), fields
// 14 and 15 of stat, in ticks of 10 ms).
func cpuOf(b *testing.B, pid int) time.Duration {
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(s[strings.LastIndexByte(string(s), ')')+2:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func procField(b *testing.B, pid int, file, name string) int64 {
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(s), name+":")
	if !ok {
		b.Fatalf("process %d has no %s: it has ended, or was killed", pid, name)
	}
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func residentOf(b *testing.B, pid int) float64 {
	return float64(procField(b, pid, "status", "VmRSS")) * 1024 / 1e6
}

func writtenBy(b *testing.B, pid int) int64 { return procField(b, pid, "io", "write_bytes") }
