package buffer

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// account fails unless every number of a lane up to the last one is held,
// told as lost, or was acknowledged, and none is two of them.
func account(t *testing.T, q *Queue, l Lane, acked *ranges) (held, gone uint64) {
	t.Helper()
	here, told := set(all(t, q, l)), lost(q, l)
	for n := uint64(1); n <= q.Given(l); n++ {
		in := 0
		for _, r := range []*ranges{here, told, acked} {
			if r != nil && r.has(n) {
				in++
			}
		}
		if in != 1 {
			t.Fatalf("%s %d: held %v, told %v", l, n, here.has(n), told.has(n))
		}
	}
	return here.n, told.n
}

// TestQuota fills the buffer several times over. The sum of all files never
// exceeds the cap by one byte, the oldest data goes and is told with exact
// counts, and events stay.
func TestQuota(t *testing.T) {
	o := testOptions(t)
	o.Size = 5_000_001
	q := mustOpen(t, o)
	readings := make(map[uint64]int64)
	most := int64(0)
	full := func() {
		t.Helper()
		var sum int64
		for _, n := range files(t, o.Dir) {
			sum += n
		}
		most = max(most, sum)
		if sum > o.Size {
			t.Fatalf("%d bytes of %d: %v", sum, o.Size, files(t, o.Dir))
		}
	}
	for i := range 3000 {
		n := put(t, q, Data)
		readings[n] = int64(batch(Data, n).Count)
		if i%40 == 0 {
			put(t, q, Event)
		}
		if i%10 == 0 {
			mustSync(t, q)
			full()
		}
		if i == 1500 {
			if err := q.SaveMeta("k", body(Data, 1, 20000)); err != nil {
				t.Fatal(err)
			}
		}
		if i == 2000 {
			mustClose(t, q)
			q = mustOpen(t, o)
		}
	}
	mustSync(t, q)
	held, gone := account(t, q, Data, nil)
	if e, lostEvents := account(t, q, Event, nil); lostEvents > 0 || e != 75 {
		t.Fatal("events were dropped before data", e, lostEvents)
	}
	var batches, count int64
	for _, x := range q.Losses() {
		if x.Why != WhyFull || x.Batches != int64(x.To-x.From+1) {
			t.Fatalf("%+v", x)
		}
		batches += x.Batches
		count += x.Readings
		for n := x.From; n <= x.To; n++ {
			count -= readings[n]
		}
		if x.T0 != batch(Data, x.From).From || x.T1 != batch(Data, x.To).To {
			t.Fatalf("%+v", x)
		}
	}
	if uint64(batches) != gone || count != 0 || gone == 0 {
		t.Fatal(batches, gone, count)
	}
	t.Logf("%d held, %d dropped, at most %d of %d bytes, %v", held, gone, most, o.Size, q.Stats())
	if most < o.Size*6/10 {
		t.Fatal("the cap is not used")
	}
	// Events go last of all, but they go.
	for i := range 1200 {
		put(t, q, Event)
		if i%20 == 0 {
			mustSync(t, q)
			full()
		}
	}
	mustSync(t, q)
	if held, gone = account(t, q, Event, nil); gone == 0 || held == 0 {
		t.Fatal(held, gone)
	}
	held, gone = account(t, q, Data, nil)
	mustClose(t, q)
	// A smaller cap is obeyed at the next start.
	o.Size = 2_500_000
	q = mustOpen(t, o)
	full()
	account(t, q, Data, nil)
	mustClose(t, q)
}

// TestPartlyDelivered drops a segment of which something was delivered.
func TestPartlyDelivered(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	defer mustClose(t, q)
	var acked ranges
	for range 40 {
		put(t, q, Data)
	}
	mustSync(t, q)
	for _, n := range []uint64{2, 3, 9, 30} {
		q.Ack(Data, n)
		acked.add(n, n)
	}
	for q.Lowest(Data) == 1 {
		put(t, q, Data)
		mustSync(t, q)
	}
	account(t, q, Data, &acked)
	for _, x := range q.Losses() {
		want := int64(0)
		for n := x.From; n <= x.To; n++ {
			want += int64(batch(Data, n).Count)
		}
		if x.Readings != want {
			t.Fatalf("%+v, want %d readings", x, want)
		}
	}
}

func wchar(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip("no /proc/self/io:", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no wchar")
	return 0
}

// TestElision: what is acknowledged before it is due never touches the disk.
// The only cost of a healthy link is one reservation per 32768 numbers.
func TestElision(t *testing.T) {
	o := testOptions(t)
	tune := defaultTuning()
	tune.riding, tune.idle = 0, 0 // nothing is put off
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, q)
	run := func(n int) (io, written, commits int64) {
		before, io0 := q.Stats(), wchar(t)
		for i := range n {
			put(t, q, Data)
			if i%3 == 0 {
				it, ok, err := q.Next(Data, 1)
				if err != nil || !ok {
					t.Fatal(ok, err)
				}
				for k := it.Seq; k <= q.Given(Data); k++ {
					q.Ack(Data, k)
				}
			}
			if err := q.Sync(2 * time.Second); err != nil {
				t.Fatal(err)
			}
		}
		s := q.Stats()
		return wchar(t) - io0, s.Written - before.Written, s.Commits - before.Commits
	}
	mtime := func() (out []int64) {
		for _, name := range append(segmentFiles(t, o.Dir), o.Dir, q.states[0].path, q.states[1].path) {
			fi, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fi.ModTime().UnixNano(), fi.Size(), int64(fi.Sys().(*syscall.Stat_t).Blocks))
		}
		return out
	}
	was := mtime()
	// The Go runtime wakes its poller with writes of 8 bytes to an eventfd.
	if io, written, commits := run(block - block/8); io >= 512 || io%8 != 0 || written != 0 || commits != 0 {
		t.Fatalf("wrote %d bytes (%d by our count) in %d commits while the link was healthy", io, written, commits)
	}
	for i, v := range mtime() {
		if v != was[i] {
			t.Fatal("a file was touched")
		}
	}
	const blocks = 3
	io, written, commits := run(blocks * block)
	if commits != blocks*(settleFlushes+1) {
		t.Fatalf("%d commits for %d blocks", commits, blocks)
	}
	t.Logf("a reservation costs %d bytes (%d by our count) for %d numbers", io/blocks, written/blocks, block)
	if len(segmentFiles(t, o.Dir)) != 0 {
		t.Fatal("segments were made")
	}
	if io > blocks*100_000 || written < io*9/10 || written > io*11/10 {
		t.Fatal(io, written)
	}
}

// An acknowledgement of what is on disk costs no commit: it rides in the next
// one, or goes alone after a while.
func TestAcksRide(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	for range 20 {
		put(t, q, Data)
	}
	mustSync(t, q)
	before := q.Stats().Commits
	q.Ack(Data, 1, 2, 3)
	mustSync(t, q)
	if q.Stats().Commits != before {
		t.Fatal("an acknowledgement was committed by itself")
	}
	put(t, q, Data)
	mustSync(t, q)
	crash(q)
	q = mustOpen(t, o)
	if q.Lowest(Data) != 4 {
		t.Fatal("it did not ride along", q.Lowest(Data))
	}
	q.Ack(Data, 4)
	q.mu.Lock()
	q.ackDirty = time.Now().Add(-31 * time.Second)
	q.mu.Unlock()
	if err := q.Sync(time.Hour); err != nil {
		t.Fatal(err)
	}
	crash(q)
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if q.Lowest(Data) != 5 {
		t.Fatal("it was not written after 30 s", q.Lowest(Data))
	}
}

// TestHungDisk: while a commit hangs, Append goes on, memory stays bounded,
// and what had to go is told.
func TestHungDisk(t *testing.T) {
	o := testOptions(t)
	tune := defaultTuning()
	tune.memory = 256 << 10
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	q.disk.Lock() // a commit that hangs
	for range 10 {
		put(t, q, Event)
	}
	for range 300 {
		put(t, q, Data)
		if m := q.Stats().Memory; m > tune.memory {
			t.Fatal(m, "bytes in memory")
		}
	}
	held, gone := account(t, q, Data, nil)
	if gone == 0 || held == 0 {
		t.Fatal(held, gone)
	}
	if e, lostEvents := account(t, q, Event, nil); e != 10 || lostEvents != 0 {
		t.Fatal("events went before data")
	}
	q.disk.Unlock()
	mustSync(t, q)
	account(t, q, Data, nil)
	crash(q)
	if q, err = open(o, tune); err != nil {
		t.Fatal(err)
	}
	account(t, q, Data, nil)
	mustClose(t, q)
}

// TestCommitFails breaks the file under a commit. The outcome is unknown, so
// the segment is given up for writing and everything goes into a fresh one.
func TestCommitFails(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Second} {
		o := testOptions(t)
		o.MaxLoss = maxLoss
		q := mustOpen(t, o)
		for range 5 {
			put(t, q, Data)
			mustSync(t, q)
		}
		q.tail[Data].file.file.Close()
		put(t, q, Data)
		mustSync(t, q)
		if n := len(segmentFiles(t, o.Dir)); n != 2 {
			t.Fatal(n, "segments")
		}
		q.states[0].b.file.Close()
		if err := q.SetAside(Data, 2, WhyPoison); err != nil {
			t.Fatal(err)
		}
		q.states[1].b.file.Close()
		q.Ack(Data, 4)
		if err := q.saveState(false); err != nil {
			t.Fatal(err)
		}
		crash(q)
		q = mustOpen(t, o)
		if got := set(all(t, q, Data)).String(); got != "[{1 1} {3 3} {5 6}]" {
			t.Fatal(got)
		}
		if l := lost(q, Data); !l.has(2) || l.has(6) {
			t.Fatal(l)
		}
		mustClose(t, q)
	}
}

// mountSmall mounts a file system of a few megabytes.
func mountSmall(t *testing.T, size string) (dir string, resize func(size string)) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must be able to mount a small tmpfs:", err)
		}
		t.Skip("NOT TESTED: the full disk. A small tmpfs cannot be mounted (run as root):", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, func(size string) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk: the disk has less room than the cap. It goes on in memory,
// says so, loses nothing silently, and goes on by itself when there is room.
func TestFullDisk(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Second} {
		t.Run("max_loss "+maxLoss.String(), func(t *testing.T) {
			dir, resize := mountSmall(t, "2m")
			o := testOptions(t)
			o.Dir, o.MaxLoss = filepath.Join(dir, "buffer"), maxLoss
			tune := defaultTuning()
			tune.retry, tune.memory = 0, 512<<10
			q, err := open(o, tune)
			if err != nil {
				t.Fatal(err)
			}
			var errs, dropped int
			for i := 0; i < 600 && dropped < 20; i++ {
				seq, err := q.Append(Data, batch(Data, q.Given(Data)+1))
				if err != nil {
					if !errors.Is(err, ErrNotDurable) || maxLoss > 0 || seq != q.Given(Data) {
						t.Fatal(seq, err)
					}
					errs++
				}
				if err := q.Sync(0); err != nil {
					errs++
					if !errors.Is(err, syscall.ENOSPC) {
						t.Fatal(err)
					}
					if q.Stats().LastError == "" {
						t.Fatal("Stats says nothing")
					}
				}
				dropped = int(lost(q, Data).n)
			}
			if errs == 0 {
				t.Fatal("the disk was not full")
			}
			if maxLoss == 0 {
				if it, ok, _ := q.Prev(Data, 1<<60); ok && it.Seq > q.limitOf(Data) {
					t.Fatal("a batch left that is not durable")
				}
			}
			resize("8m")
			began := time.Now()
			mustSync(t, q)
			if s := q.Stats(); s.Memory != 0 || s.LastError != "" {
				t.Fatalf("%+v", s)
			}
			held, gone := account(t, q, Data, nil)
			t.Logf("%d errors, %d held, %d told as lost, went on in %v", errs, held, gone, time.Since(began))
			crash(q)
			if q, err = open(o, tune); err != nil {
				t.Fatal(err)
			}
			if h, _ := account(t, q, Data, nil); h != held {
				t.Fatal(h, held)
			}
			mustClose(t, q)
		})
	}
}

// A file that is not ours fills the disk: what was preallocated is ours.
func TestForeignFile(t *testing.T) {
	dir, _ := mountSmall(t, "4m")
	o := testOptions(t)
	o.Dir = filepath.Join(dir, "buffer")
	q := mustOpen(t, o)
	put(t, q, Data)
	put(t, q, Event)
	mustSync(t, q)
	f, err := os.Create(filepath.Join(dir, "foreign"))
	if err != nil {
		t.Fatal(err)
	}
	for junk := make([]byte, 4096); err == nil; {
		_, err = f.Write(junk)
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	for range 10 { // a quarter of a segment
		put(t, q, Data)
		put(t, q, Event)
		mustSync(t, q)
	}
	if len(q.Losses()) != 0 {
		t.Fatal(q.Losses())
	}
	crash(q)
	q = mustOpen(t, o) // and it starts on a full disk
	if h := all(t, q, Data); len(h) != 11 {
		t.Fatal(h)
	}
	mustClose(t, q)
}

// TestTogether has everybody at work at once, for the race detector.
func TestTogether(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Second} {
		o := testOptions(t)
		o.MaxLoss, o.Size = maxLoss, 64<<20
		tune := defaultTuning()
		tune.cache, tune.riding = 30<<10, time.Millisecond
		q, err := open(o, tune)
		if err != nil {
			t.Fatal(err)
		}
		const each = 150
		var writers, others sync.WaitGroup
		stop := make(chan struct{})
		for range 2 {
			writers.Go(func() {
				for range each {
					if _, err := q.Append(Data, Batch{Bytes: body(Data, 1, 3000), Count: 1}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		var acked [laneCount]ranges
		for up := range 2 {
			others.Go(func() {
				for {
					var it Item
					var ok bool
					var err error
					if up == 0 {
						it, ok, err = q.Next(Data, 1)
					} else {
						it, ok, err = q.Prev(Data, 1<<60)
					}
					if err != nil {
						t.Error(err)
					}
					if ok {
						q.Ack(Data, it.Seq)
						acked[up].add(it.Seq, it.Seq)
						continue
					}
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
				}
			})
		}
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-q.Changed():
				case <-time.After(time.Millisecond):
				}
				if err := q.Sync(0); err != nil {
					t.Error(err)
				}
				q.Stats()
				q.Losses()
				q.Lowest(Data)
			}
		})
		writers.Wait()
		for q.Lowest(Data) <= q.Given(Data) {
			time.Sleep(time.Millisecond)
		}
		close(stop)
		others.Wait()
		acked[0].union(&acked[1])
		if acked[0].n != 2*each || q.Given(Data) != 2*each || len(q.Losses()) != 0 {
			t.Fatal(acked[0].n, q.Given(Data), q.Losses())
		}
		mustClose(t, q)
	}
}

// TestEverySyncIsOn: what a kill cannot show. No file is ever opened without
// flushes. Only segments, which can be salvaged, are without a list of free pages.
func TestEverySyncIsOn(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	defer mustClose(t, q)
	put(t, q, Data)
	put(t, q, Event)
	mustSync(t, q)
	for _, b := range []*boltFile{q.states[0].b, q.states[1].b, q.tail[Data].file, q.tail[Event].file} {
		if b.db.NoSync || b.db.NoFreelistSync != (b.hold > 0) || b.db.NoGrowSync || b.db.Info().PageSize != pageSize {
			t.Fatalf("%+v", b.db)
		}
	}
}
