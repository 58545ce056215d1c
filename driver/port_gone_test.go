package driver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/internal/telemetry"
)

// TestPortMovesAway pulls the adapter, lets it come back under another
// number, and finds it missing at the start.
func TestPortMovesAway(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "by-id")
	o := Options{Name: "b", Connect: "rtu://" + link, Line: "115200 8N1", Timeout: time.Second,
		Devices: []Device{{Name: "d", Unit: 1, Every: 50 * time.Millisecond, Map: custom(t, 2)}}}
	l := open(t, o)
	var got sink
	run(t, l, got.emit)
	until(t, 4*time.Second, "the missing port is told", func() bool { return got.count(0, telemetry.Comm, telemetry.CauseGone) == 1 })
	var e *Error
	if st := l.Stats(); st.State != "gone" || !errors.As(st.Err, &e) || e.Code != "port-missing" || !errors.Is(e, ErrNoPort) {
		t.Errorf("got state %s, error %v", st.State, st.Err)
	} else if !strings.HasPrefix(e.Hint(), "seen:   ports here: ") {
		t.Errorf("hint: %s", e.Hint())
	}
	for i := range 3 {
		held := 0
		s := newSlave(kindRTU, 1)
		master, path := openPTY(t)
		go s.serve(master)
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		good := got.count(0, telemetry.Good, 0)
		took := until(t, 5*time.Second, "polling again", func() bool { return got.count(0, telemetry.Good, 0) > good+2 })
		t.Logf("back %v after the port came", took)
		os.Remove(link)
		master.Close()
		until(t, 3*time.Second, "gone", func() bool { return l.Stats().State == "gone" })
		until(t, 4*time.Second, "told", func() bool { return got.count(0, telemetry.Comm, telemetry.CauseGone) == i+2 })
		for _, fd := range fds(t) {
			// What is left are the test's own holding descriptors.
			if strings.HasPrefix(fd, path+" (deleted)") {
				held++
			}
		}
		if held > i+1 {
			t.Errorf("%d descriptors of the vanished ports are still open", held)
		}
	}
	if st := l.Stats(); st.Opened != 3 {
		t.Errorf("opened %d times, want 3", st.Opened)
	}
}

// TestMissingPortIsCheap: a port that is not there costs next to nothing, in one
// of five spells at least: what a call costs is up to the machine, too.
// Not parallel: nothing else may use the processor.
func TestMissingPortIsCheap(t *testing.T) {
	l := open(t, Options{Name: "b", Connect: "rtu://" + filepath.Join(t.TempDir(), "none"),
		Devices: []Device{{Name: "d", Unit: 1, Every: 100 * time.Millisecond, Map: custom(t, 2)}}})
	run(t, l, func(*telemetry.Group) {})
	time.Sleep(100 * time.Millisecond)
	share := 100.0
	for n := 0; share > 1 && n < 5; n++ {
		used := cpu()
		time.Sleep(3 * time.Second)
		share = 100 * (cpu() - used).Seconds() / 3
		t.Logf("%.2f %% CPU", share)
	}
	if share > 1 {
		t.Errorf("%.2f %% CPU, want at most 1 %%", share)
	}
}

// TestIdlePortVanishes: nobody polls for an hour, yet the port is freed.
func TestIdlePortVanishes(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	link := filepath.Join(t.TempDir(), "p")
	if err := os.Symlink(s.onPTY(t), link); err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Name: "b", Connect: "rtu://" + link, Line: "115200 8N1",
		Devices: []Device{{Name: "d", Unit: 1, Every: time.Hour, Map: custom(t, 2)}}})
	var got sink
	run(t, l, got.emit)
	until(t, 4*time.Second, "first poll", func() bool { return got.count(0, telemetry.Good, 0) == 1 })
	os.Remove(link)
	until(t, 5*time.Second, "gone", func() bool { return l.Stats().State == "gone" })
}

func fds(t testing.TB) []string {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	var out []string
	for _, e := range list {
		if s, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, s)
		}
	}
	return out
}

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
