package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"tidegate/bench/history"
	"tidegate/bench/writer"
)

// sweep is one fault at every call of a kind.
type sweep struct {
	call    string
	fault   string // as strace writes it
	name    string
	forever bool // every call from the n-th on fails
}

// calls are all that change the disk.
var calls = []string{"fdatasync", "pwrite64", "ftruncate", "unlinkat", "fsync", "renameat", "fallocate"}

// watched are the calls that are counted: those, and how a file is opened.
var watched = append(slices.Clone(calls), "openat")

func all() (list []sweep) {
	for _, c := range calls {
		list = append(list, sweep{call: c, fault: "signal=KILL", name: "kill@" + c})
	}
	for _, c := range []string{"fdatasync", "pwrite64", "fsync"} {
		list = append(list, sweep{call: c, fault: "error=EIO", name: "eio@" + c})
	}
	for _, c := range []string{"pwrite64", "fallocate"} {
		list = append(list, sweep{call: c, fault: "error=ENOSPC", name: "enospc@" + c})
	}
	return append(list,
		sweep{call: "openat", fault: "error=EMFILE", name: "emfile@openat"},
		sweep{call: "fdatasync", fault: "error=EIO", name: "eio-for-ever@fdatasync", forever: true},
		sweep{call: "pwrite64", fault: "error=ENOSPC", name: "enospc-for-ever@pwrite64", forever: true},
		sweep{call: "pwrite64", fault: "error=EROFS", name: "erofs-for-ever@pwrite64", forever: true})
}

// places is at how many places a fault is tried that does not go away.
const places = 6

type sweeps struct {
	commits, step, jobs, point int
	seed                       uint64
	base, only                 string
	dir                        string
	self                       string

	mu     sync.Mutex
	points int
	broken []string
	sum    history.Counts
}

// point is one run with one fault.
type point struct {
	sweep
	n       int
	maxLoss time.Duration
	abandon bool
}

func (s *sweeps) run(ctx context.Context) int {
	dir, err := os.MkdirTemp(s.base, "tidegate-faults-")
	if err != nil {
		return s.failed(err)
	}
	defer os.RemoveAll(dir)
	s.dir, s.sum.Notes = dir, make(map[string]int)
	if s.self, err = os.Executable(); err != nil {
		return s.failed(err)
	}
	for _, maxLoss := range []time.Duration{0, 2 * time.Second} {
		count, err := s.count(ctx, maxLoss)
		if err != nil {
			return s.failed(err)
		}
		fmt.Printf("faults: a run of %d commits, max_loss %s, seed %d: %s\n", s.commits, maxLoss, s.seed, count)
		for _, w := range all() {
			if !strings.Contains(w.name, s.only) {
				continue
			}
			if count.calls[w.call] == 0 {
				return s.failed(fmt.Errorf("the run makes no call of %s", w.call))
			}
			if err := s.sweep(ctx, w, maxLoss, count); err != nil {
				return s.failed(err)
			}
		}
	}
	c := &s.sum
	fmt.Printf("faults: %d places, %d starts checked, %d batches found and compared, durable batches lost: %d, starts that found damage: %d\n",
		s.points, c.Starts, c.Checked, c.Lost, c.Quarantined)
	fmt.Printf("faults: dropped for room and told: %d, in memory when it ended: %d, slowest start: %v, notes: %v\n", c.Dropped, c.Restart, c.Slowest, c.Notes)
	if len(s.broken) > 0 {
		fmt.Printf("faults: FAILED, %d promises broken, seed %d\n", len(s.broken), s.seed)
		return 1
	}
	fmt.Printf("faults: every promise was kept, seed %d\n", s.seed)
	return 0
}

// memory is a directory in memory where there is one: it is faster.
func memory() string {
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func (s *sweeps) failed(err error) int {
	fmt.Fprintln(os.Stderr, "faults: the rig failed:", err)
	return 1
}

func (s *sweeps) options(dir string, maxLoss time.Duration) writer.Options {
	return writer.Options{Dir: dir, Size: 2_700_000, Segment: 256 << 10, MaxLoss: maxLoss, Seed: s.seed, Commits: s.commits}
}

// counted is how often a run makes each call.
type counted struct {
	calls map[string]int
	open  map[string]int // of them, until it was open
	close map[string]int // of them, until Close is called
}

func (c *counted) String() string {
	var parts []string
	for _, name := range watched {
		parts = append(parts, fmt.Sprintf("%s %d", name, c.calls[name]))
	}
	return strings.Join(parts, ", ")
}

// count does a run without a fault.
func (s *sweeps) count(ctx context.Context, maxLoss time.Duration) (*counted, error) {
	one := func(commits int, abandon bool) (map[string]int, error) {
		dir, err := os.MkdirTemp(s.dir, "count-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		o := s.options(filepath.Join(dir, "buffer"), maxLoss)
		o.Commits, o.Look, o.Abandon = commits, commits == 0, abandon
		h := &history.Life{Honest: true, MaxLoss: maxLoss}
		text, _, err := s.traced(ctx, h, o, dir, watched, "")
		if err != nil {
			return nil, err
		}
		if v := h.Violations(); len(v) > 0 || commits > 0 && h.Clean() == abandon {
			return nil, fmt.Errorf("the run fails without a fault: %v", v)
		}
		n := make(map[string]int)
		for _, c := range watched {
			n[c] = strings.Count(text, " "+c+"(")
		}
		return n, nil
	}
	c := &counted{}
	var err error
	if c.open, err = one(0, false); err != nil {
		return nil, err
	}
	if c.close, err = one(s.commits, true); err != nil {
		return nil, err
	}
	c.calls, err = one(s.commits, false)
	return c, err
}

// sweep tries a fault at every place.
func (s *sweeps) sweep(ctx context.Context, w sweep, maxLoss time.Duration, count *counted) error {
	first, last, step := 1, count.calls[w.call], s.step
	if w.forever { // a disk that fails while it is opened is told by Open
		first, last = count.open[w.call]+1, count.close[w.call]
		step = max(1, (last-first)/places)
	}
	var todo []point
	for n := first; n <= last; n += step {
		if s.point == 0 || n == s.point {
			// Every second run ends without Close, where that is after the fault.
			todo = append(todo, point{w, n, maxLoss, w.forever || n%2 == 0 && n <= count.close[w.call]})
		}
	}
	began, before := time.Now(), len(s.broken)
	work := make(chan point)
	failures := make(chan error, s.jobs)
	var workers sync.WaitGroup
	for range s.jobs {
		workers.Go(func() {
			for p := range work {
				if err := s.insist(ctx, p); err != nil {
					select {
					case failures <- fmt.Errorf("%s %d: %w", p.name, p.n, err):
					default:
					}
				}
			}
		})
	}
	for _, p := range todo {
		if ctx.Err() != nil || len(failures) > 0 {
			break
		}
		work <- p
	}
	close(work)
	workers.Wait()
	select {
	case err := <-failures:
		return err
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Printf("  %-24s max_loss %-3s %4d places, %d broken, %.0f s\n", w.name, maxLoss, len(todo), len(s.broken)-before, time.Since(began).Seconds())
	return nil
}

// patience is how often a run is done in which the fault does not fire: on a
// slow disk more waits for one commit, and a run makes a few calls less.
const patience = 3

// insist tries until the fault has fired, and notes what came of it.
func (s *sweeps) insist(ctx context.Context, p point) error {
	for i := 1; ; i++ {
		h, fired, err := s.try(ctx, p)
		if err != nil {
			return err
		}
		if !fired {
			if i < patience && len(h.Violations()) == 0 {
				continue
			}
			h.Violate("the fault did not fire")
		}
		s.note(p, h)
		return nil
	}
}

// try does one run with one fault and looks at what it leaves. An error
// concerns the rig.
func (s *sweeps) try(ctx context.Context, p point) (h *history.Life, fired bool, err error) {
	dir, err := os.MkdirTemp(s.dir, "run-")
	if err != nil {
		return nil, false, err
	}
	defer os.RemoveAll(dir)
	o := s.options(filepath.Join(dir, "buffer"), p.maxLoss)
	o.Abandon, o.Stubborn = p.abandon, p.forever
	h = &history.Life{Honest: true, MaxLoss: p.maxLoss}
	when := fmt.Sprint(p.n)
	if p.forever {
		when += "+"
	}
	text, ended, err := s.traced(ctx, h, o, dir, []string{p.call}, fmt.Sprintf("inject=%s:%s:when=%s", p.call, p.fault, when))
	if err != nil {
		return nil, false, err
	}
	fired = strings.Contains(text, "(INJECTED)")
	if p.fault == "signal=KILL" {
		fired = strings.Contains(text, "+++ killed by SIGKILL +++")
	} else if ended != "" {
		h.Violate("the writer ended: %s", ended)
	}
	// What is there? Does it go on from there? And is it still there then?
	for i, next := range []writer.Options{{Look: true}, {Commits: 4}, {Look: true}} {
		next.Dir, next.Size, next.Segment, next.MaxLoss, next.Seed = o.Dir, o.Size, o.Segment, o.MaxLoss, s.seed+uint64(i)+1
		if len(h.Violations()) == 0 {
			ended, err := s.plain(ctx, h, next)
			if err != nil {
				return nil, false, err
			}
			if ended != "" || !h.Ready() {
				h.Violate("start %d after the fault: %s", i+1, ended)
			}
		}
	}
	return h, fired, nil
}

// note counts a run in and tells of broken promises.
func (s *sweeps) note(p point, h *history.Life) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.points++
	s.sum.Add(&h.Counts)
	for _, v := range h.Violations() {
		v = fmt.Sprintf("%s, place %d, max_loss %s: %s", p.name, p.n, p.maxLoss, v)
		s.broken = append(s.broken, v)
		if len(s.broken) <= 20 {
			fmt.Println("BROKEN:", v)
		}
	}
}

// traced runs a writer under strace and returns what strace saw, and how the
// writer ended if it was not well.
func (s *sweeps) traced(ctx context.Context, h *history.Life, o writer.Options, dir string, trace []string, inject string) (text, ended string, err error) {
	log := filepath.Join(dir, "strace")
	args := []string{"-f", "-q", "-e", "trace=" + strings.Join(trace, ","), "-o", log}
	if inject != "" {
		args = append(args, "-e", inject)
	}
	ended, err = s.writer(h, exec.CommandContext(ctx, "strace", append(append(args, s.self, "writer"), o.Args()...)...))
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile(log)
	return string(b), ended, err
}

func (s *sweeps) plain(ctx context.Context, h *history.Life, o writer.Options) (ended string, err error) {
	return s.writer(h, exec.CommandContext(ctx, s.self, append([]string{"writer"}, o.Args()...)...))
}

func (s *sweeps) writer(h *history.Life, cmd *exec.Cmd) (ended string, err error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.Up()
	if err := cmd.Start(); err != nil {
		return "", err
	}
	trouble := ""
	err = history.Read(out, func(line string) {
		if line != "" && line[0] == history.KindError {
			trouble = line
		}
		h.Line(line)
	})
	if wait := cmd.Wait(); wait != nil {
		var exit *exec.ExitError
		if !errors.As(wait, &exit) {
			return "", wait
		}
		text := complaint.String()
		ended = fmt.Sprintf("%v %s %s", wait, trouble, text[:min(len(text), 600)])
	}
	h.Down(0)
	return ended, err
}
