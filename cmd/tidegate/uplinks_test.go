package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/internal/account"
	"tidegate/internal/sim"
	"tidegate/internal/status"
)

// TestSeveralUplinks sends to two brokers from one buffer: a cloud over TLS
// that must have everything, and a local mosquitto that need not. The local
// one goes away and comes back, then the cloud does, and the agent is killed
// while the cloud is away.
func TestSeveralUplinks(t *testing.T) {
	if _, err := exec.LookPath("mosquitto_sub"); err != nil {
		missing(t, "mosquitto_sub")
	}
	t.Parallel()
	w := newWorld(t, buildBinary(t))
	port := startBroker(t, w.dir)
	sub := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "tg/#", "-t", "ready", "-F", "%t %x")
	out, err := sub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var heard sync.WaitGroup
	local, subscribed := account.New(), false
	heard.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			topic, text, _ := strings.Cut(lines.Text(), " ")
			payload, err := hex.DecodeString(text)
			mu.Lock()
			if topic == "ready" {
				subscribed = true
			} else if err := local.Add(topic, payload); err != nil {
				t.Error(err)
			}
			mu.Unlock()
			if err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() { sub.Process.Kill(); heard.Wait(); sub.Wait() })
	here := func() account.Report { mu.Lock(); defer mu.Unlock(); return local.Report() }
	cloud := func() account.Report { w.mu.Lock(); defer w.mu.Unlock(); return w.book.Report() }
	waitFor(t, 20*time.Second, "the subscription", func() bool {
		exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "ready", "-n").Run()
		mu.Lock()
		defer mu.Unlock()
		return subscribed
	})

	link, err := sim.NewLink("127.0.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	w.config("2s", "")
	path := filepath.Join(w.dir, "tidegate.yaml")
	src, _ := os.ReadFile(path)
	src = bytes.Replace(src, []byte("uplink: {"), []byte("uplinks:\n  local: {required: false, client_id: local, keepalive: 2s, url: mqtt://"+link.Addr()+"}\n  cloud: {"), 1)
	src = bytes.Replace(src, []byte(", batch: {max_age: 200ms}"), nil, 1)
	src = bytes.Replace(src, []byte("local: {"), []byte("local: {batch: {max_age: 200ms}, "), 1)
	w.write("tidegate.yaml", string(src))
	stored := func() []string {
		files, _ := filepath.Glob(filepath.Join(w.dir, "buffer", "data-*.db"))
		return files
	}

	cmd, log := w.start()
	waitFor(t, 30*time.Second, "batches at both", func() bool { return cloud().Received > 10 && here().Received > 10 })
	if f := stored(); len(f) > 0 {
		t.Errorf("both brokers are there, and %v was written", f)
	}
	if r := here(); len(r.Lanes) > 0 && r.Dropped > 0 {
		t.Errorf("the local broker was there, and missed something:\n%s", r.Text())
	}

	link.Refuse() // the one that is not required is away: nothing is kept for it
	was := cloud().Received
	waitFor(t, 60*time.Second, "the cloud goes on", func() bool { return cloud().Received > was+10 })
	if f := stored(); len(f) > 0 {
		t.Errorf("the cloud has everything, and %v was written", f)
	}
	if err := link.Pass(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 60*time.Second, "the tombstone of what the local broker missed", func() bool { return here().Dropped >= 5 })
	if r := here(); r.Broken {
		t.Errorf("the local account:\n%s", r.Text())
	}

	w.broker.Cut() // the required one is away: all is kept, the other gets it live
	was = here().Received
	waitFor(t, 60*time.Second, "the local broker goes on", func() bool { return here().Received > was+10 })
	waitFor(t, 30*time.Second, "the buffer on disk", func() bool { return len(stored()) > 0 })
	gone := cloud().Received
	if err := w.broker.Restore(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 60*time.Second, "the cloud has the backlog", func() bool { return cloud().Received > gone+10 })
	if r := here(); r.Broken || r.Repeats > 0 {
		t.Errorf("the local account:\n%s", r.Text())
	}

	w.broker.Cut()
	was = here().Received
	waitFor(t, 60*time.Second, "the local broker goes on again", func() bool { return here().Received > was+10 })
	polls := w.counts()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatalf("the agent ended by itself: %v\n%s", err, log)
	}
	cmd.Wait()
	cmd, log = w.start()
	w.polled(polls)
	if err := w.broker.Restore(); err != nil {
		t.Fatal(err)
	}
	report := w.settle(cmd, log)
	if report.Broken || report.Late > 0 {
		t.Errorf("the account of the cloud:\n%s", report.Text())
	}
	waitFor(t, 20*time.Second, "the end at the local broker", func() bool { r := here(); return r.Late == 0 && !r.Broken })
	r := here()
	t.Logf("cloud: %d batches, %d repeats, %d in tombstones; local: %d batches, %d repeats, %d in tombstones",
		report.Received, report.Repeats, report.Dropped, r.Received, r.Repeats, r.Dropped)
	if r.Verdict == account.Complete || !strings.Contains(r.Text(), "expired") {
		t.Errorf("the local account:\n%s", r.Text())
	}
}

// TestBacklogOf: what is told of one of several uplinks.
func TestBacklogOf(t *testing.T) {
	t.Parallel()
	for want, u := range map[string]status.NamedUplink{
		"":                                       {Required: true},
		"not required":                           {},
		"1 batch to be delivered":                {Required: true, Batches: 1},
		"2 batches to be delivered, 1 tombstone": {Required: true, Batches: 2, Tombstones: 1},
		"not required, 3 tombstones":             {Tombstones: 3},
	} {
		if got := backlogOf(u); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
