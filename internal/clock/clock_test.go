package clock

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestResolve: a stamp taken before the clock was right gets its true time
// once the offset of its boot is known, also after further boots.
func TestResolve(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock.json")
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Stamp()
	s.Synced, s.Wall = false, 42 // 1970
	c.state.Boots[0].Offset = 0
	if got, sure := c.Resolve(s); sure || got.UnixMilli() != 42 {
		t.Errorf("unknown offset: %v %v", got, sure)
	}
	c.synced, c.state.Boots[0].Offset = true, 1_764_000_000_000
	if err := c.save(1_764_000_000_000); err != nil {
		t.Fatal(err)
	}
	later, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	later.state.Boots = append(later.state.Boots, boot{N: s.Boot + 1, ID: "another"})
	want := s.Mono + later.state.Boots[0].Offset
	if got, sure := later.Resolve(s); !sure || got.UnixMilli() != want {
		t.Errorf("got %v %v, want %v", got.UnixMilli(), sure, want)
	}
	if later.Floor().UnixMilli() < 1_764_000_000_000 {
		t.Errorf("floor %v", later.Floor())
	}
}

// TestBoots: the same kernel boot keeps its number over restarts of the
// program; another one gets the next number.
func TestBoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock.json")
	for range 3 {
		c, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := c.Stamp().Boot; n != 1 {
			t.Errorf("boot %d, want 1", n)
		}
	}
	if err := os.WriteFile(path, []byte(`{"boots":[{"n":7,"id":"yesterday","offset":5}],"last":9}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := c.Stamp().Boot; n != 8 {
		t.Errorf("boot %d, want 8", n)
	}
	if got, sure := c.Resolve(Stamp{Mono: 10, Boot: 7}); !sure || got != time.UnixMilli(15).UTC() {
		t.Errorf("stamp of the boot before: %v %v", got, sure)
	}
}

// TestDamaged: a damaged file is an error beside a clock that works.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Open(path)
	if err == nil || c == nil {
		t.Fatalf("clock %v, error %v", c, err)
	}
	if d := time.Since(time.UnixMilli(c.Stamp().Wall)); d < 0 || d > time.Minute {
		t.Errorf("stamp is %v off", d)
	}
	if _, err := Open(path); err != nil {
		t.Errorf("second start: %v", err)
	}
}

// The uptime is asked of the kernel again when it may have moved: a suspend
// shows in the wall clock, and nothing is believed for longer than a second.
func TestUptime(t *testing.T) {
	near := func(u *uptime) bool {
		before := bootTime().Milliseconds()
		_, mono := u.now()
		return before-1 <= mono && mono <= bootTime().Milliseconds()+1
	}
	var u uptime
	if !near(&u) {
		t.Fatal("the first look is wrong")
	}
	u.ahead -= time.Hour // as after an hour of suspend: the wall clock has gone on as well
	u.wall -= time.Hour
	if !near(&u) {
		t.Error("a suspend is not noticed")
	}
	u.ahead -= time.Hour
	u.look -= lookEvery
	if !near(&u) {
		t.Error("an old look is believed")
	}
	u.ahead -= time.Hour
	if near(&u) {
		t.Error("the kernel is asked each time")
	}
}

// TestToBeat: a wait ends at the last quarter of a second that it may end at,
// or when it must.
func TestToBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ at, least, most, want time.Duration }{ // in ms
			{0, 500, 1000, 1000},
			{1, 500, 1000, 999},
			{249, 500, 1000, 751},
			{3, 750, 1000, 997},
			{0, 760, 900, 900},
			{240, 5, 9, 9},
			{245, 5, 9, 5},
			{0, 0, 0, 0},
			{7, 100, 3_600_000, 3_599_993},
		} {
			time.Sleep(2*time.Second - time.Duration(time.Now().UnixNano())%time.Second + c.at*time.Millisecond)
			if got := ToBeat(c.least*time.Millisecond, c.most*time.Millisecond); got != c.want*time.Millisecond {
				t.Errorf("%d ms behind a second, between %d and %d ms: %v", c.at, c.least, c.most, got)
			}
		}
	})
}
