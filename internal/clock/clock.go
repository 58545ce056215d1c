// Package clock says what time it is and how far to trust it.
//
// A small gateway has no battery clock: after a power cut it starts in 1970
// and learns the time minutes later. A Stamp therefore carries what the wall
// clock said, how long the kernel had been up, in which boot, and whether
// the wall clock was synchronised. Resolve turns it into true time later,
// once this boot's offset between uptime and true time is known.
package clock

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stamp is an instant as this gateway saw it.
type Stamp struct {
	Wall   int64  // Unix milliseconds, UTC, as the wall clock said
	Mono   int64  // milliseconds since the kernel booted, suspend included (CLOCK_BOOTTIME)
	Boot   uint32 // number of the kernel boot, counted by Open
	Synced bool   // the wall clock was synchronised
}

// Before returns the instant that lies d before s.
func (s Stamp) Before(d time.Duration) Stamp {
	s.Wall -= d.Milliseconds()
	s.Mono -= d.Milliseconds()
	return s
}

// Clock stamps and resolves. It is safe for concurrent use.
type Clock struct {
	path string

	mu      sync.Mutex
	state   state
	synced  bool
	trusted bool  // whatever the kernel says
	offset  int64 // wall - mono at the last Check, ms
	uptime  uptime
}

type state struct {
	Boots []boot `json:"boots"`
	// Last is the latest wall time known to have passed, Unix ms.
	Last int64 `json:"last"`
}

type boot struct {
	N      uint32 `json:"n"`
	ID     string `json:"id"`
	Offset int64  `json:"offset,omitempty"` // true wall - mono, ms; 0 while unknown
}

// maxBoots is how many boots are remembered: stamps of older ones stay as they are.
const maxBoots = 64

// Open reads the clock's file, counts a new kernel boot if this is one, and
// stores that. A missing file is a first start. A damaged file is started
// anew and reported as an error beside the usable Clock. Path "" keeps
// nothing on disk.
func Open(path string) (*Clock, error) { return open(path, path) }

// Read returns a Clock that knows what the clock's file says and keeps
// nothing on disk: for resolving stamps where no agent runs.
func Read(path string) (*Clock, error) { return open(path, "") }

func open(path, keep string) (*Clock, error) {
	c := &Clock{path: keep}
	var problem error
	if path != "" {
		b, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			problem = fmt.Errorf("clock: %w", err)
		default:
			if err := json.Unmarshal(b, &c.state); err != nil {
				c.state = state{}
				problem = fmt.Errorf("clock: %s is damaged and is started anew: %w", path, err)
			}
		}
	}
	id := bootID()
	var last uint32
	if n := len(c.state.Boots); n > 0 {
		last = c.state.Boots[n-1].N
	}
	fresh := len(c.state.Boots) == 0 || c.state.Boots[len(c.state.Boots)-1].ID != id
	if fresh {
		c.state.Boots = append(c.state.Boots, boot{N: last + 1, ID: id})
		if n := len(c.state.Boots); n > maxBoots {
			c.state.Boots = append([]boot(nil), c.state.Boots[n-maxBoots:]...)
		}
	}
	wall, mono := c.uptime.now()
	c.offset = wall - mono
	c.synced = kernelSynced()
	if c.synced {
		c.state.Boots[len(c.state.Boots)-1].Offset = c.offset
	}
	if fresh || c.synced {
		if err := c.save(wall); err != nil && problem == nil {
			problem = err
		}
	}
	return c, problem
}

// Stamp returns the present instant.
func (c *Clock) Stamp() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, mono := c.uptime.now()
	return Stamp{Wall: wall, Mono: mono, Boot: c.state.Boots[len(c.state.Boots)-1].N, Synced: c.synced}
}

// Resolve returns the true time of a stamp. sure is false when the clock
// was not synchronised then and the offset of that boot is still unknown:
// the wall clock's word of that moment is all there is.
func (c *Clock) Resolve(s Stamp) (t time.Time, sure bool) {
	if s.Synced {
		return time.UnixMilli(s.Wall).UTC(), true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.state.Boots {
		if b.N == s.Boot && b.Offset != 0 {
			return time.UnixMilli(s.Mono + b.Offset).UTC(), true
		}
	}
	return time.UnixMilli(s.Wall).UTC(), false
}

// beat is how far apart the instants are at which the gateway does what has
// time: the quarters of each second of the wall clock. Polls begin at them, so
// the processor is awake then, and is not woken for one thing more.
const beat = 250 * time.Millisecond

// ToBeat is how long to wait for what may happen between least and most from
// now: until the last beat in that time, or most if there is none.
func ToBeat(least, most time.Duration) time.Duration {
	early := time.Duration(time.Now().Add(most).UnixNano() % int64(beat))
	if most-early < least {
		return most
	}
	return most - early
}

// Check looks at the kernel's clock again. It returns by how much the wall
// clock has been stepped since the last Check and whether it is synchronised
// now. When it has just become so, the offset of this boot is stored.
func (c *Clock) Check() (jump time.Duration, synced bool, err error) {
	synced = kernelSynced()
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, mono := c.uptime.now()
	synced = synced || c.trusted
	jump = time.Duration(wall-mono-c.offset) * time.Millisecond
	c.offset = wall - mono
	b := &c.state.Boots[len(c.state.Boots)-1]
	learn := synced && (!c.synced || b.Offset == 0)
	if synced {
		b.Offset = c.offset
	}
	c.synced = synced
	if learn {
		err = c.save(wall)
	}
	return jump, synced, err
}

// Floor returns a time that has certainly passed: the latest time this
// clock ever stored. TLS checks certificates against the later of it and
// the wall clock.
func (c *Clock) Floor() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.UnixMilli(c.state.Last).UTC()
}

// Trust takes the system's clock as synchronised whatever the kernel says of
// it: somebody vouches that it is set by other means, such as a hypervisor, a
// radio clock or a clock with a battery.
func (c *Clock) Trust() error {
	c.mu.Lock()
	c.trusted = true
	c.mu.Unlock()
	_, _, err := c.Check()
	return err
}

// Synced tells whether the wall clock was synchronised at the last Check.
func (c *Clock) Synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// Close stores the time if it is trusted.
func (c *Clock) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.synced {
		return nil
	}
	wall, _ := c.uptime.now()
	return c.save(wall)
}

// save replaces the file in one step: a new file, synced, renamed over the
// old one.
func (c *Clock) save(wall int64) error {
	if c.synced && wall > c.state.Last {
		c.state.Last = wall
	}
	if c.path == "" {
		return nil
	}
	b, err := json.Marshal(c.state)
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	tmp := c.path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, c.path)
	}
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	if d, err := os.Open(filepath.Dir(c.path)); err == nil {
		d.Sync() // the rename is repeated at the next save if this fails
		d.Close()
	}
	return nil
}

// uptime is how far the kernel's uptime is from the runtime's monotonic
// clock, which stands still while the system is suspended.
type uptime struct {
	base  time.Time     // an instant of the monotonic clock, from which look counts
	look  time.Duration // when the kernel was asked last; 0 for never
	ahead time.Duration // uptime - time since base, as it was then
	wall  time.Duration // wall clock - time since base, as it was then
}

// A look at the uptime holds for a second, and as long as the wall clock goes
// as the monotonic one: after a suspend it is ahead.
const (
	lookEvery = time.Second
	drift     = 5 * time.Millisecond
)

// now reads wall clock and uptime together, in milliseconds. What is not a
// look takes no call to the kernel.
func (u *uptime) now() (wall, mono int64) {
	t := time.Now()
	if u.look == 0 {
		u.base = t.Add(-lookEvery)
	}
	since := t.Sub(u.base)
	diff := time.Duration(t.UnixNano()) - since
	if d := diff - u.wall; since-u.look >= lookEvery || d > drift || d < -drift {
		u.look, u.ahead, u.wall = since, bootTime()-since, diff
	}
	return t.UnixMilli(), (since + u.ahead).Milliseconds()
}

// bootTime is how long the kernel has been up. The call never blocks, so the
// runtime is not told of it: that would wake its monitor, a thread of its own,
// for each reading of the clock on an idle processor.
func bootTime() time.Duration {
	var ts unix.Timespec
	for _, id := range [2]uintptr{unix.CLOCK_BOOTTIME, unix.CLOCK_MONOTONIC} { // kernels before 2.6.39 know the second only
		if _, _, failed := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&ts)), 0); failed == 0 {
			break
		}
	}
	return time.Duration(ts.Nano())
}

// kernelSynced asks the kernel whether its clock is disciplined
// (adjtimex(2): state TIME_ERROR or status STA_UNSYNC mean that it is not).
// It does not block either.
func kernelSynced() bool {
	var t unix.Timex
	state, _, failed := unix.RawSyscall(unix.SYS_ADJTIMEX, uintptr(unsafe.Pointer(&t)), 0, 0)
	return failed == 0 && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
