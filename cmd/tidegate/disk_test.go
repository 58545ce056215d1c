package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSlowFlash lets every flush of the disk take 5 s while the broker is
// away: the polls go on as if nothing was, and nothing is lost.
func TestSlowFlash(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("NOT TESTED: slow flash. strace is not installed")
	}
	w := newWorld(t, buildBinary(t))
	w.config("2s", "")
	cmd, log := w.start()
	w.polled(20)
	trace := filepath.Join(w.dir, "strace")
	slow := exec.Command("strace", "-f", "-p", strconv.Itoa(cmd.Process.Pid), "-o", trace, "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=5s")
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	defer slow.Process.Kill()
	w.broker.Cut()
	began := time.Now()
	delayed := func() int {
		b, _ := os.ReadFile(trace)
		return strings.Count(string(b), "fdatasync(")
	}
	for delayed() < 3 {
		if time.Since(began) > 3*time.Minute {
			t.Fatal("no flush was delayed")
		}
		time.Sleep(20 * time.Millisecond)
	}
	ended := time.Now()
	if err := slow.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	slow.Wait()
	if err := w.broker.Restore(); err != nil {
		t.Fatal(err)
	}
	report := w.settle(cmd, log)
	if report.Broken || report.Late > 0 || report.Dropped > 0 {
		t.Errorf("the account is not complete:\n%s", report.Text())
	}
	if runs, polls := w.missing(); polls > 0 {
		t.Errorf("%d polls did not arrive: %v\n%s", polls, runs, log)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, when := range w.when {
		last := began
		for _, at := range when {
			if at.After(began) && at.Before(ended) {
				if at.Sub(last) > 4*time.Second {
					t.Errorf("device %d: no poll for %v while a flush took 5 s", i+1, at.Sub(last))
				}
				last = at
			}
		}
		if last == began {
			t.Errorf("device %d was not polled", i+1)
		}
	}
	t.Logf("%d flushes of 5 s in %v", delayed(), ended.Sub(began))
}

// TestUnwritableBuffer starts the agent on a disk that is full, or read-only:
// it polls and delivers, says what is wrong, and recovers by itself.
func TestUnwritableBuffer(t *testing.T) {
	for name, fault := range map[string]struct {
		options    string
		flags      uintptr
		heal, says string
	}{
		"full":      {options: "size=64k", heal: "size=64m", says: "no space left on device"},
		"read-only": {options: "size=64m", flags: syscall.MS_RDONLY, heal: "size=64m", says: "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, buildBinary(t))
			dir := filepath.Join(w.dir, "buffer")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount("tmpfs", dir, "tmpfs", fault.flags, fault.options); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatal("CI must be able to mount a tmpfs:", err)
				}
				t.Skip("NOT TESTED: a disk that cannot be written. A tmpfs cannot be mounted (run as root):", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
			w.config("2s", "")
			cmd, log := w.start()
			w.polled(60)
			status := func() (reasons string) {
				out, _ := exec.Command(w.bin, "status", "--json", "--config", filepath.Join(w.dir, "tidegate.yaml")).Output()
				var s struct{ Reasons []struct{ Code, Text string } }
				_ = json.Unmarshal(out, &s)
				for _, r := range s.Reasons {
					reasons += r.Code + ": " + r.Text + "\n"
				}
				return reasons
			}
			wait := func(what string, ok func() bool) {
				t.Helper()
				for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%s\n%s\n%s", what, status(), log)
					}
				}
			}
			wait("the status does not say what is wrong", func() bool {
				s := status()
				return strings.Contains(s, "disk: ") && strings.Contains(s, "readings are only in memory") && strings.Contains(s, fault.says)
			})
			wait("nothing is delivered", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.book.Report().Received > 5
			})
			if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fault.heal); err != nil {
				t.Fatal(err)
			}
			wait("it does not recover", func() bool { return !strings.Contains(status(), "disk: ") })
			report := w.settle(cmd, log)
			if report.Broken || report.Late > 0 || report.Dropped > 0 || len(report.Lanes) == 0 {
				t.Errorf("the account is not complete:\n%s", report.Text())
			}
			if _, polls := w.missing(); polls > 0 {
				t.Errorf("%d polls did not arrive", polls)
			}
			if _, err := os.Stat(filepath.Join(dir, "state.db")); err != nil {
				t.Error(err)
			}
		})
	}
}
