package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// hostile is what no broker may send after its CONNACK: announcements of
// 256 MB, and packets that would make the MQTT library panic or lie.
var hostile = [][]byte{
	{0x30, 0xff, 0xff, 0xff, 0x7f},
	{0x20, 2, 0, 0},
	{0x40, 0},
	{0x90, 4, 0, 1, 0, 0},
	{0x90, 0xff, 0xff, 0xff, 0x7f},
	{0x40, 0x80, 0x80, 0x80, 0x80, 0x01},
	{0x30, 0x81, 0x80, 0x10},
	{0x34, 5, 0, 1, 'a', 0, 1},
	{0xd0, 2, 0, 0},
	{0xe0, 0},
	{0xf0, 0},
	{0x30, 4, 0xff, 0xff, 'a', 'b'},
}

// The moods of a spoiler.
const (
	calm    = iota // passes everything
	cutting        // closes each connection after its CONNACK
	hateful        // says something of hostile after each CONNACK
)

// spoiler stands before a broker that behaves.
type spoiler struct {
	mood atomic.Int32
	hits atomic.Int32 // connections that were cut or spoiled
	mu   sync.Mutex
	open []net.Conn
}

func newSpoiler(b *testing.B, to string) (*spoiler, string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &spoiler{}
	b.Cleanup(func() { ln.Close(); s.reset(calm) })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c, to)
		}
	}()
	return s, ln.Addr().String()
}

// reset changes the mood and closes what is open.
func (s *spoiler) reset(mood int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood.Store(mood)
	s.hits.Store(0)
	for _, c := range s.open {
		c.Close()
	}
	s.open = nil
}

func (s *spoiler) serve(c net.Conn, to string) {
	defer c.Close()
	broker, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer broker.Close()
	s.mu.Lock()
	s.open = append(s.open, c)
	s.mu.Unlock()
	go func() { io.Copy(broker, c); broker.Close() }()
	if _, err := io.CopyN(c, broker, 4); err != nil { // the CONNACK
		return
	}
	switch s.mood.Load() {
	case cutting:
		s.hits.Add(1)
		return
	case hateful:
		// Every second one announces 256 MB: what is only announced costs
		// nothing until it is allocated again and has to be zeroed.
		if n := int(s.hits.Add(1)); n%2 == 1 {
			c.Write(hostile[0])
		} else {
			c.Write(hostile[n/2%len(hostile)])
		}
	}
	io.Copy(c, broker)
}

// confined makes a memory cgroup inside ours (cgroups(7), version 1) and a
// command that runs in it from its first page on.
func confined(b *testing.B, bytes int, program string, args ...string) (*exec.Cmd, string) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		b.Fatal(err)
	}
	dir := ""
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && f[1] == "memory" {
			dir = filepath.Join("/sys/fs/cgroup/memory", f[2], fmt.Sprint("tidegate-", os.Getpid()))
		}
	}
	if dir == "" || os.Mkdir(dir, 0o755) != nil {
		b.Skip("NOT RUN: no memory cgroup can be made (version 1, and root)")
	}
	b.Cleanup(func() { // after the process has ended
		if err := os.Remove(dir); err != nil {
			b.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), []byte(strconv.Itoa(bytes)), 0o644); err != nil {
		b.Fatal(err)
	}
	enter := `echo $$ >"$0/cgroup.procs" && exec "$@"`
	return exec.Command("sh", append([]string{"-c", enter, dir, program}, args...)...), dir
}

// BenchmarkHostile runs the whole program in a memory cgroup of 64 MiB against
// a broker that is good, that closes every connection, and that says after
// each CONNACK what no broker may say. It fails when the program ends, or when
// what is said costs more than 1 MB of resident memory beside connections
// that are only closed. Those cost something, too, once: the heap fills up to
// where the collector begins, and pages of the program file are read that
// nothing needed before. make proof-hostile runs it.
func BenchmarkHostile(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "tidegate")
	build := exec.Command("make", "-C", filepath.Join("..", ".."), "build", "OUT="+bin)
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for range b.N {
		b.Run("64MiB", func(b *testing.B) { measureHostile(b, bin) })
	}
}

func measureHostile(b *testing.B, bin string) {
	dir := b.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.Cleanup(func() { cancel(); wg.Wait() })
	bln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	broker := sim.NewScript(bln, sim.ScriptOptions{})
	b.Cleanup(func() { broker.Close() })
	s, addr := newSpoiler(b, broker.Addr())
	dev := sim.NewSlave()
	dev.Unit(1).Define(profile.Holding, 0, 2)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	wg.Go(func() { dev.ServeTCP(ctx, ln) })
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `gateway: {id: hostile}
buses:
  bus:
    connect: tcp://%s
    devices: {d: {every: 1s, unit: 1, points: {p: {holding: 0, type: u32}}}}
buffer: {dir: %s/buffer}
uplink: {url: "mqtt://%s", keepalive: 2s}
status: {socket: %[2]s/agent.sock}
log: {level: warn}
`, ln.Addr(), dir, addr), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd, group := confined(b, 64<<20, bin, "run", "--config", file)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	defer func() { cmd.Process.Signal(os.Interrupt); <-ended }()

	// phase returns the most resident memory, in MB, and the most of it that
	// is no file's, until a mood lasted so long and so many connections met it.
	phase := func(mood int32, lasts time.Duration, times int32) (most, own float64) {
		s.reset(mood)
		for began := time.Now(); time.Since(began) < lasts || s.hits.Load() < times; time.Sleep(20 * time.Millisecond) {
			select {
			case <-ended:
				text, _ := os.ReadFile(log.Name())
				b.Fatalf("the program has ended after %d hostile connections: %v\n%s", s.hits.Load(), cmd.ProcessState, text[max(0, len(text)-2000):])
			default:
			}
			if time.Since(began) > 10*time.Minute {
				b.Fatalf("%d connections in ten minutes, %d are needed", s.hits.Load(), times)
			}
			most = max(most, residentOf(b, cmd.Process.Pid))
			own = max(own, float64(procField(b, cmd.Process.Pid, "status", "RssAnon"))*1024/1e6)
		}
		return most, own
	}
	phase(calm, 15*time.Second, 0) // what only the start needs is given back
	quiet, quietOwn := phase(calm, 15*time.Second, 0)
	cut, cutOwn := phase(cutting, 0, 30)
	spoilt, spoiltOwn := phase(hateful, 0, int32(4*len(hostile)))
	hits := s.hits.Load()
	phase(calm, 5*time.Second, 0)
	text, err := os.ReadFile(filepath.Join(group, "memory.max_usage_in_bytes"))
	if err != nil {
		b.Fatal(err)
	}
	peak, _ := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
	b.Logf("MB resident, and of it no file's: quiet %.2f %.2f, cut 30 times %.2f %.2f, spoilt %d times %.2f %.2f; peak of the cgroup %.2f",
		quiet, quietOwn, cut, cutOwn, hits, spoilt, spoiltOwn, peak/1e6)
	for name, x := range map[string]float64{"MB-quiet": quiet, "MB-cut": cut, "MB-spoilt": spoilt, "MB-cgroup-peak": peak / 1e6} {
		b.ReportMetric(x, name)
	}
	b.ReportMetric(0, "ns/op")
	if spoilt > cut+1 || spoiltOwn > cutOwn+1 {
		b.Errorf("more than 1 MB beside connections that are only closed")
	}
}
