package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSystemd: the agent says READY once it polls, feeds the watchdog, tells
// its state, and says STOPPING (sd_notify(3)).
func TestSystemd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, buildBinary(t))
	w.config("2s", "")
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(w.bin, "run", "--config", filepath.Join(w.dir, "tidegate.yaml"))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=2000000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	heard := ""
	until := func(what string) {
		t.Helper()
		buf := make([]byte, 4096)
		for end := time.Now().Add(2 * time.Minute); !strings.Contains(heard, what); {
			l.SetReadDeadline(end)
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("no %s: %v; heard %q", what, err, heard)
			}
			heard += fmt.Sprintf("%s\n", buf[:n])
		}
	}
	until("READY=1")
	until("STATUS=ok")
	until("WATCHDOG=1")
	cmd.Process.Signal(os.Interrupt)
	until("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
