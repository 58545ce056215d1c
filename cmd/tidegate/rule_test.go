package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// TestRuleTravels: a device whose value rises and falls, the real main, a
// broker: what the cloud reads on the event topic, and what watch shows.
func TestRuleTravels(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })

	events := make(chan string, 100)
	broker, err := sim.NewBroker(sim.BrokerOptions{OnPublish: func(topic string, payload []byte) {
		if !strings.HasSuffix(topic, "/event") {
			return
		}
		var m struct {
			Lane    string
			Records []struct {
				Dev    string
				Values json.RawMessage
			}
		}
		text := ""
		if err := json.Unmarshal(payload, &m); err != nil || m.Lane != "event" {
			text = string(payload)
		}
		for _, r := range m.Records {
			text += r.Dev + string(r.Values)
		}
		select {
		case events <- text:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { broker.Close() })
	if err := broker.CA().WriteIdentity(filepath.Join(dir, "pki"), "gw"); err != nil {
		t.Fatal(err)
	}
	slave := sim.NewSlave()
	meter := slave.Unit(1)
	meter.Set(profile.Holding, 0, 2300)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { slave.ServeTCP(ctx, ln) })

	config := filepath.Join(dir, "tidegate.yaml")
	text := fmt.Sprintf(`gateway: {id: gw}
buses:
  plant:
    connect: tcp://%s
    devices:
      meter: {unit: 1, every: 50ms, points: {volts: {holding: 0, scale: 0.1, unit: V}}}
rules:
  over-voltage: {when: meter/volts > 253, for: 1s, clear: meter/volts < 250, severity: critical}
buffer: {dir: %s, size: 64MB}
uplink: {url: %q, identity: %s}
status: {socket: %s}
`, ln.Addr(), filepath.Join(dir, "buffer"), broker.URL(), filepath.Join(dir, "pki"), filepath.Join(dir, "agent.sock"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := buildBinary(t)
	var log strings.Builder
	agent := exec.Command(bin, "run", "--config", config)
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			agent.Process.Signal(syscall.SIGTERM)
			agent.Wait()
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-events:
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("no event, want %s", want)
		}
	}
	rules := func(state, value string) string {
		return fmt.Sprintf(`meter{"volts":%s}rules{"over-voltage":%q,"over-voltage_severity":"critical","over-voltage_value":%s}`, value, state, value)
	}
	expect(rules("cleared", "230.0"))
	raised := time.Now()
	meter.Set(profile.Holding, 0, 2541)
	expect(rules("raised", "254.1"))
	if d := time.Since(raised); d < 700*time.Millisecond { // by the time of the readings, and the first may have been asked before
		t.Errorf("raised after %v, must hold for 1s", d)
	}
	out, err := exec.Command(bin, "watch", "--config", config, "--count", "1", "rules").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "rules/over-voltage ") || !strings.Contains(string(out), "raised") ||
		!strings.Contains(string(out), "254.1 V") {
		t.Errorf("watch: %v\n%s", err, out)
	}
	meter.Set(profile.Holding, 0, 2510) // between the two
	time.Sleep(300 * time.Millisecond)
	meter.Set(profile.Holding, 0, 2499)
	expect(rules("cleared", "249.9"))
	stop()
	if !strings.Contains(log.String(), "rule over-voltage is raised") {
		t.Error("the log says nothing of it")
	}
}
