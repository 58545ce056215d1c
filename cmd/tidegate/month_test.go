package main

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/internal/clock"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

// TestMonth is an outage of a month on a small card: 50 points every 5 s, 26
// million readings, into a buffer of 16 MB, by the simulated clock. The cap
// holds all the time. Then the link is back: the real agent delivers what is
// left, live data goes on, and tidegate verify finds the account complete but
// for the tombstones, which it lists. The race detector would make minutes of
// it, so it runs without: what it runs is under the detector in other tests.
func TestMonth(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Parallel()
		out, err := exec.Command("go", "test", "-count=1", "-timeout=15m", "-run=^TestMonth$", "-v", ".").CombinedOutput()
		t.Logf("%s", out)
		if err != nil || strings.Count(string(out), "    --- PASS: TestMonth/") != 2 {
			t.Error(err)
		}
		return
	}
	bin := buildBinary(t)
	for _, policy := range []string{"drop-oldest", "thin"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			month(t, bin, policy)
		})
	}
}

const (
	monthPoints = 50
	monthPeriod = 5 * time.Second
	monthBatch  = time.Minute // by simulated time
	monthSize   = 16_000_000
)

func month(t *testing.T, bin, policy string) {
	dir := t.TempDir()
	var mu sync.Mutex
	var lines strings.Builder
	fresh := 0 // batches that are no history
	broker, err := sim.NewBroker(sim.BrokerOptions{OnPublish: func(topic string, payload []byte) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&lines, "%s %s\n", topic, payload)
		if strings.HasSuffix(topic, "/up") && !strings.Contains(string(payload), `"h":true`) && strings.Contains(string(payload), `"records"`) {
			fresh++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { broker.Close() })
	if err := broker.CA().WriteIdentity(filepath.Join(dir, "pki"), "month"); err != nil {
		t.Fatal(err)
	}
	text := "gateway: {id: month}\nbuses:\n  plant:\n    connect: tcp://127.0.0.1:9\n    devices:\n      meter:\n        every: 5s\n        unit: 1\n        points:\n"
	for i := range monthPoints {
		text += fmt.Sprintf("          p%d: {holding: %d, type: s32, scale: 0.01}\n", i, 2*i)
	}
	text += fmt.Sprintf("buffer: {dir: %s/buffer, size: 16MB, when_full: %s}\nuplink: {url: %q, identity: %s/pki}\nstatus: {socket: %s/agent.sock}\nlog: {level: warn}\n",
		dir, policy, broker.URL(), dir, dir)
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems, err := config.Load(file)
	if err != nil || cfg == nil {
		t.Fatal(err, problems)
	}
	stored := fillMonth(t, cfg, dir)

	agent := exec.Command(bin, "run", "--config", file)
	var log strings.Builder
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(8 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, _ := exec.Command(bin, "status", "--json", "--config", file).Output()
		mu.Lock()
		n := fresh
		mu.Unlock()
		if n > 0 && strings.Contains(string(out), `"batches":0`) && strings.Contains(string(out), `"tombstones":0`) {
			break
		}
		if time.Now().After(end) {
			agent.Process.Kill()
			t.Fatalf("the backlog did not drain in 8 min: %s\n%s", out, log.String())
		}
	}
	agent.Process.Signal(syscall.SIGTERM)
	if err := agent.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log.String())
	}
	mu.Lock()
	messages := lines.String()
	mu.Unlock()
	if err := os.WriteFile(filepath.Join(dir, "messages"), []byte(messages), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := exec.Command(bin, "verify", filepath.Join(dir, "messages"))
	out, err := verify.CombinedOutput()
	t.Logf("%s: %d batches of a month were left\n%s", policy, stored, out)
	if err != nil || !strings.Contains(string(out), "complete except tombstones") {
		t.Fatalf("%v", err)
	}
	why := "full"
	if policy == "thin" {
		why = "thinned"
		for _, word := range []string{`"min"`, `"max"`, `"last"`, `"thinned"`} {
			if !strings.Contains(messages, word) {
				t.Errorf("no message says %s", word)
			}
		}
	}
	if !strings.Contains(string(out), why) {
		t.Errorf("no tombstone says %s", why)
	}
}

// fillMonth is the month itself. It returns how many batches are left.
func fillMonth(t *testing.T, cfg *config.Config, dir string) int64 {
	o := cfg.Buffer
	o.Thin = telemetry.Thin
	q, err := buffer.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	catalog := cfg.Catalog()
	if err := q.SaveMeta("catalog/"+catalog.Hash(), catalog.Encode()); err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-30 * 24 * time.Hour).Truncate(time.Minute)
	var groups []telemetry.Group
	var raw []byte
	batches := int(30 * 24 * time.Hour / monthBatch)
	for n := range batches {
		groups = groups[:0]
		for k := range int(monthBatch / monthPeriod) {
			at := start.Add(time.Duration(n)*monthBatch + time.Duration(k)*monthPeriod).UnixMilli()
			g := telemetry.Group{At: clock.Stamp{Wall: at, Mono: at - start.UnixMilli(), Boot: 1, Synced: true}}
			for p := range monthPoints {
				v := 23000 + 300*math.Sin(float64(at)/9e5+float64(p)) + float64((n*7+k*3+p*5)%11)
				g.Readings = append(g.Readings, telemetry.Reading{Point: uint32(p), Value: telemetry.IntValue(int64(v), 2)})
			}
			groups = append(groups, g)
		}
		b := telemetry.Batch{Catalog: catalog.Hash(), Boot: 1, Synced: true, Groups: groups}
		if raw, err = telemetry.AppendBatch(raw[:0], &b); err != nil {
			t.Fatal(err)
		}
		if _, err := q.Append(buffer.Data, buffer.Batch{Bytes: raw, Count: monthPoints * len(groups),
			From: groups[0].At.Wall, To: groups[len(groups)-1].At.Wall}); err != nil {
			t.Fatal(err)
		}
		if n%20 == 19 {
			if err := q.Sync(0); err != nil {
				t.Fatal(err)
			}
			if used := sizeOfDir(t, cfg.Buffer.Dir); used > monthSize {
				t.Fatalf("after %d of %d minutes the buffer takes %d bytes", n+1, batches, used)
			}
		}
	}
	if err := q.Sync(0); err != nil {
		t.Fatal(err)
	}
	s := q.Stats()
	if s.LostBatches == 0 && s.Thinned == 0 {
		t.Fatal("the buffer was never full")
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	return s.Waiting[buffer.Data]
}

// sizeOfDir adds up what the files take: their length or their blocks,
// whatever is more.
func sizeOfDir(t *testing.T, dir string) (sum int64) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			sum += max(fi.Size(), fi.Sys().(*syscall.Stat_t).Blocks*512)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
