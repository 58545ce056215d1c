package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tidegate/bench/history"
)

// plan is what a run is to do.
type plan struct {
	cuts    int
	perLife int
	most    int
	stop    int
	seed    uint64
	life    int
	lags    []int
	keeps   []float64
	save    string
	verbose bool
	empty   time.Duration
	journal int64 // where the disk has the journal of ext4
}

// sum is what all lives came to.
type sum struct {
	lives, cuts, early, kept, gone, torn, fixed, mute, died, broken, violations int
	aimed                                                                       [len(windows)]int
	counts                                                                      history.Counts
}

// run does all lives and reports. It returns the exit code.
func (p *plan) run(ctx context.Context) int {
	began := time.Now()
	fmt.Printf("powercut: %d cuts, seed %d, lag %v, keep %v\n", p.cuts, p.seed, p.lags, p.keeps)
	s, err := p.lives(ctx)
	s.print(time.Since(began), p.lags)
	switch {
	case ctx.Err() != nil:
		fmt.Println("powercut: interrupted")
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "powercut: the rig failed:", err)
		return 1
	case s.violations > 0:
		fmt.Printf("powercut: FAILED, %d promises broken in %d of %d lives, seed %d\n", s.violations, s.broken, s.lives, p.seed)
		return 1
	case p.life < 0 && s.cuts+p.perLife*s.mute < p.cuts:
		fmt.Printf("powercut: FAILED, only %d of %d cuts were done\n", s.cuts, p.cuts)
		return 1
	}
	if i := slices.Index(s.aimed[:], 0); i >= 0 && p.life < 0 && p.cuts >= 300 {
		fmt.Printf("powercut: FAILED, no cut came at: %s\n", windows[i].name)
		return 1
	}
	fmt.Printf("powercut: every promise was kept, seed %d\n", p.seed)
	return 0
}

func (p *plan) lives(ctx context.Context) (s sum, err error) {
	dir, err := os.MkdirTemp("", "tidegate-powercut-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	fuse, look := filepath.Join(dir, "fuse"), filepath.Join(dir, "mnt")
	for _, d := range []string{fuse, look} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return s, err
		}
	}
	content, journal, err := template(dir, diskSize)
	if err != nil {
		return s, err
	}
	p.journal = journal
	s.counts.Notes = make(map[string]int)
	for no, left := 0, p.cuts; left > 0 && ctx.Err() == nil && s.broken < p.stop; no++ {
		n := min(left, p.perLife)
		left -= n
		if p.life >= 0 && no != p.life {
			continue
		}
		l := &life{p: p, no: no, rng: rand.New(rand.NewPCG(p.seed, uint64(no))), dir: fuse, look: look}
		if err := l.live(ctx, content, n); err != nil {
			return s, fmt.Errorf("life %d: %w", no, err)
		}
		s.add(l)
		all := l.h.Violations()
		s.violations += len(all)
		if len(all) > 0 {
			s.broken++
		}
		for i, v := range all {
			if i == 3 {
				fmt.Printf("        and %d more\n", len(all)-i)
				break
			}
			fmt.Printf("BROKEN: life %d, max_loss %s, lag %d, after %d cuts: %s\n", no, l.o.MaxLoss, l.d.lag, l.cuts, v)
		}
	}
	return s, nil
}

func (s *sum) add(l *life) {
	s.lives++
	s.cuts += l.cuts
	s.early += l.early
	s.kept += l.kept
	s.gone += l.gone
	s.torn += l.torn
	s.fixed += l.fixed
	s.mute += l.mute
	s.died += l.died
	for i, n := range l.aimed {
		s.aimed[i] += n
	}
	s.counts.Add(&l.h.Counts)
}

func (s *sum) print(took time.Duration, lags []int) {
	c := &s.counts
	fmt.Printf("  %d cuts in %d lives (%d during a start), %.2f s each; %d unsynced sectors kept, %d gone\n",
		s.cuts, s.lives, s.early, took.Seconds()/max(1, float64(s.cuts)), s.kept, s.gone)
	fmt.Printf("  batches: %d given, %d durable, %d acknowledged, %d found and compared at %d starts, %d acknowledged ones found again\n",
		c.Given, c.Durable, c.Acked, c.Checked, c.Starts, c.Repeats)
	fmt.Printf("  durable batches lost: %d; dropped for room and told: %d; in memory at a cut: %d; slowest start: %v, most flushes: %d\n",
		c.Lost, c.Dropped, c.Restart, c.Slowest, c.Flushes)
	if lags[0] == 0 && s.mute > 0 {
		fmt.Printf("  file systems that ext4 itself did not mount any more: %d\n", s.mute)
	}
	if lags[0] > 0 {
		fmt.Printf("  of the lost, older than the flushes that were a lie: %d, %d of them by ext4 itself; batches saved by the buffer's own repair: %d; starts with files in quarantine: %d\n",
			c.Beyond, c.Forgotten, c.Salvaged, c.Quarantined)
		fmt.Printf("  stores made anew: %d; starts that a damaged file ended: %d; file systems damaged by the cut itself: %d, of them repaired by e2fsck: %d, lost: %d\n",
			c.Epochs, s.died, s.torn, s.fixed, s.mute)
	}
	fmt.Print("  cuts by moment:")
	for i, w := range windows {
		fmt.Printf(" %s %d%s", w.name, s.aimed[i], map[bool]string{true: ",", false: "\n"}[i < len(windows)-1])
	}
	for what, n := range c.Notes {
		fmt.Printf("  %s: %d\n", what, n)
	}
}
