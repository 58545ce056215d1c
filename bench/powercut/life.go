package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidegate/bench/history"
	"tidegate/bench/writer"
)

const (
	diskSize = 24 << 20
	maxDeath = 2 // so often may a damaged file end the process before it is set aside
	patience = 20 * time.Second
)

// life is one buffer from its first start through a number of cuts.
type life struct {
	p     *plan
	no    int
	rng   *rand.Rand // drawn from in the same way whatever the kernel does
	d     *disk
	dir   string // of the rig
	look  string // where the file system is mounted
	o     writer.Options
	h     *history.Life
	ready atomic.Bool
	found []byte       // the disk before the last start, if it is to be saved
	said  bytes.Buffer // what the writers said, likewise

	kept  int
	gone  int
	cuts  int
	early int               // cuts before a start was over
	torn  int               // file systems that were not whole after a cut
	fixed int               // of them, had to be repaired before they could be mounted or used
	mute  int               // file systems that could not be mounted
	died  int               // starts that a damaged file ended
	aimed [len(windows)]int // cuts by window
}

// end is how a writer ended.
type end struct {
	cut    bool // by the power
	signal bool // by us or by the kernel
	badFS  bool // the file system is damaged
	hung   bool
	text   string
}

// live runs a life. A broken promise is in l.h.Violations; an error concerns
// the rig itself.
func (l *life) live(ctx context.Context, content []byte, cuts int) error {
	lag := l.p.lags[l.no%len(l.p.lags)]
	l.d = newDisk(content, lag)
	l.h = &history.Life{Honest: lag == 0, MaxLoss: []time.Duration{0, 2 * time.Second}[l.no/len(l.p.lags)%2], Flushes: l.d.confirmed, Lag: lag}
	l.o = writer.Options{Dir: filepath.Join(l.look, "buffer"), Size: 3_400_000 + l.rng.Int64N(3_000_000), Segment: 256 << 10, MaxLoss: l.h.MaxLoss}
	// A small segment has no room to keep its last commits apart. A disk that
	// lies may then take older batches that share a page with the newest.
	if l.h.Exact = lag > 0 && l.no/len(l.p.lags)/2%2 == 0; l.h.Exact {
		l.o.Size, l.o.Segment = 15_000_000+l.rng.Int64N(1_000_000), 1<<20
	}
	if l.p.verbose {
		l.h.Log = func(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }
	}
	server, err := serve(l.dir, l.d)
	if err != nil {
		return fmt.Errorf("no FUSE: %w", err)
	}
	defer func() {
		for range 100 {
			if server.Unmount() == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	deaths, repair := 0, false
	for i := 0; i <= cuts && ctx.Err() == nil && len(l.h.Violations()) == 0; i++ {
		last := i == cuts
		if l.p.save != "" {
			l.found = append(l.found[:0], l.d.now...)
			fmt.Fprintf(&l.said, "# start %d\n", i)
		}
		whole := true
		if lag > 0 {
			if whole, err = sound(filepath.Dir(l.dir), l.d.now); err != nil {
				return err
			}
		}
		m, repaired, err := mount(filepath.Join(l.dir, "disk"), l.look, lag > 0, repair)
		repair = false
		// A start that was cut tells nothing, so the next one bears it.
		l.h.Broken = l.h.Broken && !l.h.Ready() || repaired || !whole
		if repaired {
			l.fixed++
		}
		if repaired || !whole {
			l.torn++
		}
		// The disk has lost the file system, and the buffer with it. On an honest
		// disk ext4 itself may be in the middle of a block when the power goes.
		if err != nil && (lag > 0 || errors.Is(err, unix.EBADMSG)) {
			l.mute++
			l.h.Count("file system lost: " + err.Error())
			return l.keepEvidence()
		}
		if err != nil {
			return err
		}
		w := l.rng.IntN(2 * len(windows))
		if w >= len(windows) || last {
			w = 0
		} else if l.cuts == 0 && w > 0 {
			w = windowCreation
		}
		if w == windowSalvage {
			some := false
			if some, err = l.spoil(); !some {
				w = 0
			}
		}
		var e end
		var hit bool
		if err == nil {
			e, hit, err = l.start(ctx, last, &windows[w])
		}
		if un := m.unmount(); err == nil {
			err = un
		}
		if lag > 0 && errors.Is(err, unix.EBADMSG) { // the rig has met what the next start of the machine repairs
			repair = true
			i--
			l.d.powerOn(rand.New(rand.NewPCG(l.rng.Uint64(), 0)), 1, l.p.journal)
			continue
		}
		if err != nil {
			return err
		}
		l.h.Down(l.d.confirmed())
		off := !l.d.disarm()
		keep, sectors := l.p.keeps[l.rng.IntN(len(l.p.keeps))], rand.New(rand.NewPCG(l.rng.Uint64(), 0))
		early := off && !l.h.Ready()
		switch {
		case ctx.Err() != nil:
			return nil
		case e.hung:
			l.h.Violate("start %d: after %v it was still at work; ready: %v, flushes: %d", i, patience, l.h.Ready(), l.d.confirmed())
		case off && !last:
			l.cuts++
			if early {
				l.early++
			}
			if w == 0 || hit {
				l.aimed[w]++
			}
			deaths = 0
		case last && e.text == "":
		case lag > 0 && !l.h.Ready() && e.signal && deaths < maxDeath: // by the next starts it must be set aside
			deaths++
			l.died++
			i--
			l.d.powerOn(sectors, 1, l.p.journal)
			continue
		case lag > 0 && e.badFS: // ext4 has found out, and the next start of the machine repairs it
			repair = true
			i--
			l.d.powerOn(sectors, 1, l.p.journal)
			continue
		default:
			l.h.Violate("start %d: the writer ended by itself: %s", i, e.text)
		}
		if l.p.verbose {
			fmt.Printf("life %d start %d: max_loss %s, lag %d, keep %v, %d writes, %d flushes, early %v, aimed at %s: %v\n",
				l.no, i, l.o.MaxLoss, lag, keep, l.d.writes, l.d.flushes, early, windows[w].name, hit)
		}
		if len(l.h.Violations()) > 0 {
			if err := l.keepEvidence(); err != nil {
				return err
			}
		}
		if l.h.Ready() || l.h.Spared == nil {
			l.h.Spared, l.h.Forgot = make(map[history.Batch]bool), false
		}
		kept, gone, moved, before := l.d.powerOn(sectors, keep, l.p.journal)
		l.kept, l.gone = l.kept+kept, l.gone+gone
		if lag > 0 && kept > 0 && gone > 0 {
			if moved {
				l.h.Forgot = true
				l.h.Count("cuts that left another head of the journal")
			}
			other := bytes.Clone(l.d.now)
			copy(other[l.p.journal:], before)
			if err := l.inventory(other, l.h.Spared); err != nil {
				l.h.Count("with the journal of before it was of no use: " + err.Error())
			}
		}
	}
	return nil
}

// start runs a writer until the power goes; if last is set, it only looks.
// hit tells whether the cut was aimed by the window.
func (l *life) start(ctx context.Context, last bool, w *window) (e end, hit bool, err error) {
	l.o.Seed, l.o.Look = l.rng.Uint64(), last
	at, early := 1+int(float64(l.p.most-1)*l.rng.Float64()*l.rng.Float64()), l.rng.IntN(4) == 0
	within := 1 + int(float64(w.most)*l.rng.Float64())
	if w.match != nil { // should it not open, the cut comes late
		early, at = false, 2*l.p.most
	}
	self, err := os.Executable()
	if err != nil {
		return e, false, err
	}
	var aimed atomic.Bool
	unwatch, err := w.watch(l.o.Dir, func() bool {
		if !w.start && !l.ready.Load() {
			return false
		}
		l.d.sooner(within)
		aimed.Store(true)
		return true
	})
	if err != nil {
		return e, false, err
	}
	defer unwatch()
	l.ready.Store(false)
	cmd := exec.CommandContext(ctx, self, append([]string{"writer"}, l.o.Args()...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return e, false, err
	}
	l.h.Up()
	if early && !last {
		l.d.arm(1 + at/4)
	}
	if err := cmd.Start(); err != nil {
		return e, false, err
	}
	done, over := make(chan struct{}), make(chan struct{})
	if l.p.empty > 0 {
		defer emptying(l.look, l.p.empty)()
	}
	late := time.NewTimer(patience)
	go func() {
		defer close(over)
		defer late.Stop()
		select {
		case <-l.d.cut:
		case <-late.C:
			e.hung = true
		case <-done:
			return
		}
		_ = cmd.Process.Kill()
	}()
	var trouble string
	err = history.Read(out, func(line string) {
		if line != "" && line[0] == history.KindError {
			trouble = line
		}
		if l.p.save != "" {
			l.said.WriteString(line + "\n")
		}
		was := l.h.Ready()
		l.h.Line(line)
		if !was && l.h.Ready() && !early && !last {
			l.ready.Store(true)
			l.d.sooner(at)
		}
	})
	close(done)
	<-over
	if wait := cmd.Wait(); wait != nil {
		var exit *exec.ExitError
		if !errors.As(wait, &exit) {
			return e, false, wait
		}
		status, _ := exit.Sys().(syscall.WaitStatus)
		e.signal = status.Signaled() || status.ExitStatus() == 2 // the exit code of a Go panic
		says := func(errno syscall.Errno) bool { return strings.Contains(trouble, errno.Error()) }
		// Where bitmaps are damaged, ext4 finds no room.
		e.badFS = says(unix.EBADMSG) || says(unix.EUCLEAN) || l.h.Broken && says(unix.ENOSPC)
		e.text = fmt.Sprintf("%v %s %s", wait, trouble, first(complaint.String(), 600))
	} else if !last {
		e.text = "without a reason"
	}
	return e, aimed.Load(), err
}

func first(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return s
}

// keepEvidence saves the disk as the start that failed found it, and what all
// writers of this life have said.
func (l *life) keepEvidence() error {
	if l.p.save == "" {
		return nil
	}
	base := filepath.Join(l.p.save, fmt.Sprintf("seed-%d-lag-%d-life-%d", l.p.seed, l.d.lag, l.no))
	if err := os.WriteFile(base+".img", l.found, 0o600); err != nil {
		return err
	}
	fmt.Printf("%s.img: the disk as the last start found it; %s.txt: what was said\n", base, base)
	return os.WriteFile(base+".txt", l.said.Bytes(), 0o600)
}
