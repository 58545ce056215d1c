package buffer

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// crashes takes a copy of the directory at every step of a run, as a crash
// there would leave it, with what was promised by then.
type crashes struct {
	t      *testing.T
	o      Options
	q      *Queue
	under  string
	steps  int
	images []image0
	acked  [laneCount]ranges
	want   [laneCount]ranges // durable, not acknowledged, not dropped
}

type image0 struct {
	dir   string
	given [laneCount]uint64
	acked [laneCount]ranges
	want  [laneCount]ranges
}

func (c *crashes) step() {
	if c.steps++; c.steps > 150 && c.steps%6 != 0 {
		return
	}
	im := image0{dir: filepath.Join(c.under, strconv.Itoa(len(c.images)))}
	copyDir(c.t, c.o.Dir, im.dir)
	for l := range Lane(laneCount) {
		im.acked[l], im.want[l] = c.acked[l].clone(), c.want[l].clone()
		if c.q != nil {
			im.given[l] = c.q.Given(l)
		}
	}
	c.images = append(c.images, im)
}

// TestCrashAtEveryStep opens each of those copies. What was durable is held,
// nothing is missing silently, and nothing looks like damage.
func TestCrashAtEveryStep(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Hour} {
		c := &crashes{t: t, o: testOptions(t), under: fastDir(t)}
		c.o.MaxLoss, c.o.Size = maxLoss, 3_300_000
		tune := defaultTuning()
		tune.step, tune.memory = c.step, 200<<10
		q, err := open(c.o, tune)
		if err != nil {
			t.Fatal(err)
		}
		c.q = q
		durable := func(l Lane) {
			for n := uint64(1); n <= q.Given(l); n++ {
				if !c.acked[l].has(n) && !lost(q, l).has(n) {
					c.want[l].add(n, n)
				}
			}
		}
		for i := range 220 {
			l := Data
			if i%9 == 0 {
				l = Event
			}
			put(t, q, l)
			if i%6 == 0 {
				mustSync(t, q)
				if maxLoss > 0 || i%30 == 0 {
					durable(Data)
					durable(Event)
				}
			}
			if i%4 == 0 { // an acknowledgement before it is due, and one after
				for _, n := range []uint64{q.Given(Data), q.Lowest(Data) + 3} {
					c.acked[Data].add(n, n)
					q.Ack(Data, n)
				}
			}
			if i == 60 || i == 150 { // drained
				for l := range Lane(laneCount) {
					for _, n := range all(t, q, l) {
						c.acked[l].add(n, n)
						q.Ack(l, n)
					}
				}
				mustSync(t, q)
			}
			if i == 100 {
				low := q.Lowest(Data)
				c.acked[Data].add(low, low) // either is right while it is being set aside
				if err := q.SetAside(Data, low, WhyPoison); err != nil {
					t.Fatal(err)
				}
			}
			if i == 170 && maxLoss > 0 { // the disk hangs, and memory overflows
				q.disk.Lock()
				for range 60 {
					put(t, q, Data)
				}
				q.disk.Unlock()
				mustSync(t, q)
			}
		}
		c.want = [laneCount]ranges{} // from here on the oldest goes
		for i := range 320 {
			put(t, q, Data)
			if i%4 == 0 {
				mustSync(t, q)
			}
		}
		mustClose(t, q)
		c.step()

		restart, full := 0, 0
		for i, im := range c.images {
			o := c.o
			o.Dir = im.dir
			q := mustOpen(t, o)
			for l := range Lane(laneCount) {
				here, told := set(all(t, q, l)), lost(q, l)
				if q.Given(l) < im.given[l] {
					t.Fatalf("image %d: %s: given %d after %d", i, l, q.Given(l), im.given[l])
				}
				for n := uint64(1); n <= q.Given(l); n++ {
					switch {
					case here.has(n) && told.has(n):
						t.Fatalf("image %d: %s %d is held and told as lost", i, l, n)
					case im.want[l].has(n) && !im.acked[l].has(n) && !here.has(n):
						t.Fatalf("image %d: %s %d was durable and is gone (told: %v): %+v", i, l, n, told.has(n), q.Losses())
					case !here.has(n) && !told.has(n) && !im.acked[l].has(n):
						t.Fatalf("image %d: %s %d is missing silently", i, l, n)
					}
				}
			}
			for _, x := range q.Losses() {
				switch x.Why {
				case WhyCorrupt:
					t.Fatalf("image %d of max_loss %s: a crash looks like damage: %+v", i, maxLoss, x)
				case WhyRestart:
					restart++
					if maxLoss == 0 && im.given[x.Lane] > x.From { // Append may be about to return that one
						t.Fatalf("image %d: %+v with max_loss 0s after %d", i, x, im.given[x.Lane])
					}
				case WhyFull:
					full++
					if x.Readings < 0 || x.Batches < 0 {
						t.Fatalf("image %d: %+v", i, x)
					}
				}
			}
			if q.Stats().Quarantined > 0 {
				t.Fatalf("image %d: a crash looks like damage", i)
			}
			mustClose(t, q)
			os.RemoveAll(im.dir)
		}
		t.Logf("max_loss %s: %d crashes, %d restart and %d full tombstones", maxLoss, len(c.images), restart, full)
		if full == 0 {
			t.Fatal("the cap was not reached")
		}
	}
}

// TestCrashInRepair does the same while a damaged segment is repaired.
func TestCrashInRepair(t *testing.T) {
	rng, _ := seed(t)
	s := makeStore(t, 120)
	path := segmentFiles(t, s.dir)[0]
	s.damage(t, rng, path, "noise")
	s.damage(t, rng, path, "page")
	want := s.without(path, Data, s.intact(t, path))
	c := &crashes{t: t, o: s.o, under: fastDir(t)}
	tune := defaultTuning()
	tune.step = c.step
	q, err := open(s.o, tune)
	if err != nil {
		t.Fatal(err)
	}
	all(t, q, Data)
	first := q.Losses()
	mustClose(t, q)
	for i, im := range c.images {
		o := s.o
		o.Dir = im.dir
		q := mustOpen(t, o)
		here, told := set(all(t, q, Data)), lost(q, Data)
		for n := uint64(1); n <= q.Given(Data); n++ {
			if want.has(n) && !here.has(n) || s.held[Data].has(n) && here.has(n) == told.has(n) {
				t.Fatalf("image %d: %d: held %v, told %v, whole %v", i, n, here.has(n), told.has(n), want.has(n))
			}
		}
		var again []Loss
		for _, x := range q.Losses() {
			if x.Why != WhyRestart {
				again = append(again, x)
			}
		}
		if !slices.EqualFunc(again, first, func(a, b Loss) bool { return a.From == b.From && a.To == b.To && a.Why == b.Why }) {
			t.Fatalf("image %d: told %v, then %v", i, first, again)
		}
		mustClose(t, q)
	}
	t.Logf("%d crashes", len(c.images))
}

// TestCutWhileOpen cuts the file of a segment to every length class while
// several readers use it: none hangs, none gets a wrong byte, and what is
// gone is told.
func TestCutWhileOpen(t *testing.T) {
	for _, size := range []int64{0, 100, pageSize, pageSize + 100, 2 * pageSize, 5 * pageSize} {
		o := testOptions(t)
		tune := defaultTuning()
		tune.cache = 0
		q, err := open(o, tune)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			put(t, q, Data)
		}
		mustSync(t, q)
		all(t, q, Data)
		q.Ack(Data, 1)
		if err := os.Truncate(segmentFiles(t, o.Dir)[0], size); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(o.Dir, stateNames[0]), size); err != nil {
			t.Fatal(err)
		}
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for from := uint64(1); ; from++ {
					it, ok, err := q.Next(Data, from)
					if err != nil {
						t.Error(err)
						return
					}
					if !ok {
						return
					}
					from = it.Seq
				}
			})
		}
		readers.Wait()
		var acked ranges
		acked.add(1, 1)
		put(t, q, Data)
		mustSync(t, q)
		account(t, q, Data, &acked)
		mustClose(t, q)
		q = mustOpen(t, o)
		account(t, q, Data, &acked)
		mustClose(t, q)
	}
}

// TestBroughtBack: a disk that confirmed too early lost the meta page of the
// last commit, but the records stand there. They are found, and no number of
// theirs is given again. Where they stand nothing is written: the disk may lose
// the commit that stores them again.
func TestBroughtBack(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Hour} {
		o := testOptions(t)
		o.MaxLoss = maxLoss
		q := mustOpen(t, o)
		undo := undoable(t, q)
		want := uint64(6)
		put(t, q, Data)
		if maxLoss > 0 {
			want = uint64(10)
			for range 4 {
				put(t, q, Data)
			}
		}
		mustSync(t, q)
		crash(q)
		undo()
		path := segmentFiles(t, o.Dir)[0]
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // found at the first start, stored again, there at the second
			q = mustOpen(t, o)
			if got := set(all(t, q, Data)); got.n != want || !got.covers(1, want) || q.Given(Data) < want || lost(q, Data).has(want) {
				t.Fatal(got, q.Given(Data), q.Losses())
			}
			if q.Stats().Quarantined > 0 {
				t.Fatal("it was taken for damage")
			}
			mustSync(t, q)
			crash(q)
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
				t.Fatal("what was found was written over", err)
			}
		}
	}
}

// TestBroughtBackByRepair: what memory has no room for is brought back by a
// repair, and not told as lost.
func TestBroughtBackByRepair(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	undo := undoable(t, q)
	for range 10 {
		put(t, q, Data)
	}
	mustSync(t, q)
	crash(q)
	undo()
	tune := defaultTuning()
	tune.memory = 64
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	if got := set(all(t, q, Data)); got.n != 15 || !got.covers(1, 15) || lost(q, Data).count(1, 15) > 0 {
		t.Fatal(got, q.Losses())
	}
	crash(q)
}
