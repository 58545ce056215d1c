package buffer

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// snapshot keeps files of a directory; restore puts them back as they were.
func snapshot(t *testing.T, dir string, names ...string) (restore func()) {
	t.Helper()
	kept := make(map[string][]byte)
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = b
	}
	return func() {
		for name, b := range kept {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestStateForgotten: a disk that lies about flushes has lost the last
// commits of the state, and with them a loss, but not the ride that says that
// its number is done. The number is told all the same.
func TestStateForgotten(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Hour} {
		o := testOptions(t)
		o.MaxLoss = maxLoss
		q := mustOpen(t, o)
		for range 5 {
			put(t, q, Data)
		}
		mustSync(t, q)
		restore := snapshot(t, o.Dir, stateNames[:]...)
		if err := q.SetAside(Data, 2, WhyPoison); err != nil {
			t.Fatal(err)
		}
		q.Ack(Data, 1)
		put(t, q, Data)
		mustSync(t, q)
		crash(q)
		restore()
		q = mustOpen(t, o)
		if got := set(all(t, q, Data)).String(); got != "[{3 6}]" {
			t.Fatal(got)
		}
		if l := lost(q, Data); !l.has(2) || l.has(3) || l.has(6) || !l.has(7) {
			t.Fatal(l)
		}
		mustClose(t, q)
		q = mustOpen(t, o)
		if l := lost(q, Data); !l.has(2) || q.Stopped() != "clean" {
			t.Fatal(l, q.Stopped())
		}
		mustClose(t, q)
	}
}

// TestCleanStopForgotten: the disk goes back to a clean stop although a run
// came after it. Its numbers are not given again, and it is no clean stop.
func TestCleanStopForgotten(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	put(t, q, Data)
	mustClose(t, q)
	restore := snapshot(t, o.Dir, append(stateNames[:], segmentName(Data, 1))...)
	q = mustOpen(t, o)
	left := put(t, q, Data)
	if it, ok, err := q.Prev(Data, 1<<50); err != nil || !ok || it.Seq != left {
		t.Fatal(it.Seq, ok, err)
	}
	mustSync(t, q)
	crash(q)
	restore()
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if l := lost(q, Data); !l.has(left) || q.Given(Data) < left || q.Stopped() != "power" || q.Boot() != 3 {
		t.Fatal(l, q.Given(Data), q.Stopped(), q.Boot())
	}
}

// TestNumbersForgotten: of the writes that make a reservation, the disk loses
// as many of the last as it may lie about. No number that left is given again.
func TestNumbersForgotten(t *testing.T) {
	for lag := range settleFlushes + 1 {
		o := testOptions(t)
		var before []func()
		tune := defaultTuning()
		started := false
		tune.step = func() {
			if _, err := os.Stat(filepath.Join(o.Dir, numbersName)); err == nil && started {
				before = append(before, snapshot(t, o.Dir, numbersName))
			}
		}
		mustClose(t, mustOpen(t, o))
		restoreStates := snapshot(t, o.Dir, stateNames[:]...)
		started = true
		before = append(before, snapshot(t, o.Dir, numbersName))
		q, err := open(o, tune)
		if err != nil {
			t.Fatal(err)
		}
		tune.step = func() {}
		left := put(t, q, Data)
		if it, ok, _ := q.Next(Data, 1); !ok || it.Seq != left {
			t.Fatal("it does not leave")
		}
		crash(q)
		restoreStates()
		// before[0] is what was there; before[i] is after the i-th write.
		before[settleFlushes+1-lag]()
		q = mustOpen(t, o)
		if q.Given(Data) < left {
			t.Fatalf("lag %d: %d is given again", lag, left)
		}
		mustClose(t, q)
	}
}

// A slot that is torn is passed over, and a file of noise is made anew.
func TestNumbersDamaged(t *testing.T) {
	o := testOptions(t)
	mustClose(t, mustOpen(t, o))
	path := filepath.Join(o.Dir, numbersName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng, _ := seed(t)
	want, _, err := readNumbers(o.Dir)
	if err != nil || want.epoch == 0 || want.reserved != [laneCount]uint64{block, block} {
		t.Fatal(want, err)
	}
	for range rounds(t, "BUFFER_DAMAGES", 50) {
		spoilt := append([]byte(nil), b...)
		for range 1 + rng.IntN(10) {
			at := rng.IntN(len(spoilt))
			clear(spoilt[at:min(at+512, len(spoilt))])
		}
		if err := os.WriteFile(path, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := readNumbers(o.Dir); err != nil || got.epoch != want.epoch || got.reserved != want.reserved {
			t.Fatal(got, err)
		}
	}
	for _, n := range []int64{0, 100, pageSize, 1 << 20} {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
		q := mustOpen(t, o)
		if q.Stats().Quarantined > 0 || len(q.Losses()) > 0 && q.Stopped() == "clean" {
			t.Fatal(n, q.Stats(), q.Losses())
		}
		mustClose(t, q)
		if fi, err := os.Stat(path); err != nil || fi.Size() != numberSlots*pageSize {
			t.Fatal(fi, err)
		}
	}
}

// A store whose states are lost has large holes in its segments, one for each
// start: each is closed at once, not number by number.
func TestHolesAtOnce(t *testing.T) {
	o := testOptions(t)
	for range 6 {
		q := mustOpen(t, o)
		put(t, q, Data)
		mustSync(t, q)
		crash(q)
	}
	for _, name := range append(stateNames[:], numbersName) {
		if err := os.Truncate(filepath.Join(o.Dir, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	q := mustOpen(t, o)
	defer mustClose(t, q)
	if n := len(all(t, q, Data)); n != 6 {
		t.Fatal(n)
	}
	if n := q.Stats().Commits; n > 100 {
		t.Fatal(n, "commits")
	}
	if got := lost(q, Data); got.n != q.Given(Data)-6 {
		t.Fatal(got)
	}
}

// With max_loss 0s a batch that is not on disk does not leave.
func TestDurableBeforeItLeaves(t *testing.T) {
	o := testOptions(t)
	o.MaxLoss = 0
	tune := defaultTuning()
	tune.retry = time.Hour
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	put(t, q, Data)
	_ = q.failed(syscall.EIO) // the disk is left alone for a while
	seq, err := q.Append(Data, batch(Data, 2))
	if !errors.Is(err, ErrNotDurable) || seq != 2 {
		t.Fatal(seq, err)
	}
	if it, ok, err := q.Prev(Data, 1<<50); err != nil || !ok || it.Seq != 1 {
		t.Fatal(it.Seq, ok, err)
	}
	q.mu.Lock()
	q.lastError = nil
	q.mu.Unlock()
	mustSync(t, q)
	if it, ok, err := q.Prev(Data, 1<<50); err != nil || !ok || it.Seq != 2 {
		t.Fatal(it.Seq, ok, err)
	}
	mustClose(t, q)
}

// On a very slow disk Open leaves to Sync what it does not get done. Numbers
// are given meanwhile and do not leave, and a power cut in between costs none.
func TestOpenOnSlowDisk(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Hour} {
		o := testOptions(t)
		o.MaxLoss = maxLoss
		before := mustOpen(t, o)
		put(t, before, Data)
		mustClose(t, before)
		tune := defaultTuning()
		tune.settle = 0
		for range 2 {
			q, err := open(o, tune)
			if err != nil {
				t.Fatal(err)
			}
			seq, err := q.Append(Event, batch(Event, 1))
			if err != nil && !errors.Is(err, ErrNotDurable) {
				t.Fatal(err)
			}
			if it, ok, err := q.Next(Event, 1); ok || err != nil || maxLoss > 0 && seq != 1 {
				t.Fatal(it.Seq, ok, err, seq)
			}
			crash(q)
		}
		q, err := open(o, tune)
		if err != nil {
			t.Fatal(err)
		}
		seq := q.Given(Event) + 1
		if _, err := q.Append(Event, batch(Event, seq)); err != nil && !errors.Is(err, ErrNotDurable) {
			t.Fatal(err)
		}
		q.tune.settle = time.Minute
		mustSync(t, q)
		if it, ok, err := q.Next(Event, seq); !ok || err != nil || it.Seq != seq {
			t.Fatal(it.Seq, ok, err)
		}
		crash(q)
	}
}

// TestSnapshots: the meta pages of a segment go back by as many commits as a
// lying disk may take. The pages that they lead to are all still there.
func TestSnapshots(t *testing.T) {
	o := testOptions(t)
	o.Size, o.Segment = 16<<20, 1<<20
	q := mustOpen(t, o)
	defer mustClose(t, q)
	path := filepath.Join(o.Dir, segmentName(Data, 1))
	var metas [][]byte
	for i := range 60 {
		if _, err := q.Append(Data, Batch{Bytes: make([]byte, 100), Count: 1}); err != nil {
			t.Fatal(err)
		}
		mustSync(t, q)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		metas = append(metas, b[:2*pageSize])
		for back := range min(snapshots(o.Segment), i) {
			at := i - back
			torn := filepath.Join(t.TempDir(), "torn")
			if err := os.WriteFile(torn, append(append([]byte(nil), metas[at]...), b[2*pageSize:]...), 0o600); err != nil {
				t.Fatal(err)
			}
			if sum, _, err := inspect(torn, nil); err != nil || sum.count != int64(at+1) {
				t.Fatalf("after %d commits, %d back: %d batches, %v", i+1, back, sum.count, err)
			}
		}
	}
}
