package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// small options: many segments in little space. With BUFFER_ENCRYPTED set, all
// tests run with a key.
func testOptions(t testing.TB) Options {
	o := Options{Dir: filepath.Join(fastDir(t), "buffer"), Size: 6 << 20, Segment: 256 << 10, MaxLoss: 2 * time.Second, WhenFull: dropOldest}
	if os.Getenv("BUFFER_ENCRYPTED") != "" {
		o.KeyFile = keyFile(t, 1)
	}
	return o
}

func mustOpen(t testing.TB, o Options) *Queue {
	t.Helper()
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func mustClose(t testing.TB, q *Queue) {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustSync(t testing.TB, q *Queue) {
	t.Helper()
	if err := q.Sync(0); err != nil {
		t.Fatal(err)
	}
}

// crash leaves the queue as a killed process would: nothing more is written,
// and the locks are given back.
func crash(q *Queue) {
	q.disk.Lock()
	defer q.disk.Unlock()
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.abandon()
}

// body is a batch whose bytes can be told from its lane and number.
func body(l Lane, seq uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(l)+1, seq))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}

func sizeOf(l Lane, seq uint64) int {
	return []int{40, 300, 1000, 2500, 9000, 20000}[rand.New(rand.NewPCG(seq, uint64(l)+77)).IntN(6)]
}

// put appends the batch that belongs to the next number.
func put(t fataler, q *Queue, l Lane) uint64 {
	t.Helper()
	want := q.Given(l) + 1
	seq, err := q.Append(l, batch(l, want))
	if err != nil {
		t.Fatal(err)
	}
	if seq != want {
		t.Fatalf("Append gave %d, want %d", seq, want)
	}
	return seq
}

func batch(l Lane, seq uint64) Batch {
	return Batch{Bytes: body(l, seq, sizeOf(l, seq)), Count: int(seq%100) + 1, From: 1_700_000_000_000 + int64(seq)*1000, To: 1_700_000_000_900 + int64(seq)*1000}
}

// check fails when an item is not what was appended.
func check(t fataler, it Item) {
	t.Helper()
	want := batch(it.Lane, it.Seq)
	if !bytes.Equal(it.Bytes, want.Bytes) || it.Count != want.Count || it.From != want.From || it.To != want.To {
		t.Fatalf("%s %d: wrong content (%d bytes, want %d; count %d, want %d)", it.Lane, it.Seq, len(it.Bytes), len(want.Bytes), it.Count, want.Count)
	}
}

// all returns the numbers of what is held, each checked.
func all(t fataler, q *Queue, l Lane) []uint64 {
	t.Helper()
	var out []uint64
	for from := uint64(1); ; {
		it, ok, err := q.Next(l, from)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		check(t, it)
		if it.Seq < from {
			t.Fatalf("Next(%d) gave %d", from, it.Seq)
		}
		out = append(out, it.Seq)
		from = it.Seq + 1
	}
}

// lost is the set of numbers in the ledger.
func lost(q *Queue, l Lane) *ranges {
	var r ranges
	for _, x := range q.Losses() {
		if x.Lane == l {
			r.add(x.From, x.To)
		}
	}
	return &r
}

func set(nums []uint64) *ranges {
	var r ranges
	for _, n := range nums {
		r.add(n, n)
	}
	return &r
}

func (r *ranges) String() string { return fmt.Sprint(r.s) }

// files lists the files under a directory with their sizes.
func files(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	out := make(map[string]int64)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(dir, path)
			out[rel] = fileBytes(fi)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*-*.db"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range list {
		if _, _, ok := parseName(filepath.Base(p)); ok {
			out = append(out, p)
		}
	}
	return out
}

func seed(t testing.TB) (*rand.Rand, uint64) {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("BUFFER_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &s); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (again: BUFFER_SEED=%d)", s, s)
	return rand.New(rand.NewPCG(s, 1)), s
}

// fataler is what *testing.T and *trial.T have in common here.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// fastDir is a directory in memory where there is one: what is tested is what
// we do, not how fast the disk of the builder is.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tidegate-buffer-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// rounds is how often a test is to do its thing.
func rounds(t testing.TB, env string, n int) int {
	t.Helper()
	if v := os.Getenv(env); v != "" {
		if _, err := fmt.Sscan(v, &n); err != nil {
			t.Fatal(env, err)
		}
	}
	return n
}

// undoable stores five batches. What it returns takes back the later commits of
// their segment, as a disk does that confirmed too early: the records stay.
func undoable(t *testing.T, q *Queue) func() {
	t.Helper()
	for range 5 {
		put(t, q, Data)
	}
	mustSync(t, q)
	path := segmentFiles(t, q.dir)[0]
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(old[:2*pageSize], 0); err != nil {
			t.Fatal(err)
		}
	}
}
