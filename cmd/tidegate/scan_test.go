package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// told is what a program writes while it runs.
type told struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *told) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *told) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// TestScanInterrupted: who breaks a long scan off learns what it had found and
// how far it was, from his own process as from the agent's, and the exit code
// says that it is not all.
func TestScanInterrupted(t *testing.T) {
	t.Parallel()
	bin, dir := buildBinary(t), t.TempDir()
	line, config := filepath.Join(dir, "line"), filepath.Join(dir, "tidegate.yaml")
	startSim(t, bin, "xy-md02@2", "abb-b-series@3", "--at", "rtu:"+line, "--line", "19200 8E1")
	exists := func(p string) func() bool { return func() bool { _, err := os.Stat(p); return err == nil } }
	waitFor(t, 30*time.Second, "the port", exists(line))
	if err := os.WriteFile(config, []byte("gateway: {id: gw}\nbuses:\n  bus-a:\n    connect: rtu://"+line+"\n    line: 19200 8E1\n    devices: {room: {profile: xy-md02, unit: 2}}\n"+
		"uplink: {url: \"mqtt://127.0.0.1:1\"}\nbuffer: {dir: "+dir+"/buffer}\nstatus: {socket: "+dir+"/agent.sock}\nlog: {level: warn}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	interrupt := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		var errs told
		cmd := exec.Command(bin, append([]string{"scan", "--config=" + config, "--timeout", "1s"}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		far := regexp.MustCompile(`asking units 1 to 247: ([4-9]|[1-9][0-9]) of 247 after`) // unit 3 has answered
		waitFor(t, 60*time.Second, "the scan under way", func() bool { return far.MatchString(errs.String()) })
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
			t.Errorf("%v: exit code %d\n%s", args, code, errs.String())
		}
		return out.String()
	}
	text := interrupt(line, "--baud", "19200", "--mode", "8E1")
	for _, want := range []string{`(?m)^2 +\d+ ms +exception 2`, `(?m)^3 +\d+ ms +exception 2`, `2 devices at 19200 8E1, \d\d+ s`,
		`line: interrupted at "asking units 1 to\s+247", \d+ of 247 done: there may be more`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	start(t, bin, "run", "--config", config)
	waitFor(t, 30*time.Second, "the agent", exists(filepath.Join(dir, "agent.sock")))
	var r scanResult
	if text := interrupt("bus-a", "--json"); json.Unmarshal([]byte(text), &r) != nil || r.Via != "agent" || r.Interrupted == nil ||
		r.Interrupted.Of != 247 || r.Interrupted.Done < 4 || len(r.Units) != 2 || r.Units[1].ID != 3 || r.Line.Baud != 19200 {
		t.Errorf("through the agent: %s", text)
	}
}
