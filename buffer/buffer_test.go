package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestWayOfABatch(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	if q.Stopped() != "first" || q.Boot() != 1 || len(q.Epoch()) != 8 {
		t.Fatal(q.Stopped(), q.Boot(), q.Epoch())
	}
	for range 30 {
		put(t, q, Data)
	}
	put(t, q, Event)
	if got := all(t, q, Data); len(got) != 30 {
		t.Fatal(got)
	}
	if s := q.Stats(); s.Waiting[Data] != 30 || s.Waiting[Event] != 1 || s.Segments != 0 || s.Oldest != batch(Data, 1).From {
		t.Fatalf("%+v", s)
	}
	mustSync(t, q)
	q.Ack(Data, 1, 2, 3, 7, 30, 30, 99)
	if q.Lowest(Data) != 4 || q.Given(Data) != 30 || q.Lowest(Event) != 1 {
		t.Fatal(q.Lowest(Data), q.Given(Data))
	}
	it, ok, err := q.Prev(Data, 1<<40)
	if err != nil || !ok || it.Seq != 29 {
		t.Fatal(it.Seq, ok, err)
	}
	check(t, it)
	if it, ok, _ = q.Next(Data, 7); !ok || it.Seq != 8 {
		t.Fatal(it.Seq)
	}
	want := all(t, q, Data)
	epoch := q.Epoch()
	mustClose(t, q)
	if _, err := q.Append(Data, Batch{}); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}

	q = mustOpen(t, o)
	if q.Stopped() != "clean" || q.Boot() != 2 || q.Epoch() != epoch || len(q.Losses()) != 0 {
		t.Fatal(q.Stopped(), q.Boot(), q.Epoch(), q.Losses())
	}
	if got := all(t, q, Data); !reflect.DeepEqual(got, want) {
		t.Fatal(got, want)
	}
	if put(t, q, Data) != 31 || put(t, q, Event) != 2 {
		t.Fatal("numbers")
	}
	q.Ack(Data, all(t, q, Data)...)
	q.Ack(Event, 1, 2)
	mustSync(t, q)
	mustClose(t, q)
	if n := segmentFiles(t, o.Dir); len(n) != 0 {
		t.Fatal("delivered segments are left:", n)
	}
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if q.Given(Data) != 31 || q.Lowest(Data) != 32 {
		t.Fatal(q.Given(Data), q.Lowest(Data))
	}
}

// A crash with max_loss above 0: what was durable stands, and one tombstone
// closes exactly what nobody can know.
func TestRestartTombstone(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	for range 10 {
		put(t, q, Data)
	}
	mustSync(t, q)
	for range 5 {
		put(t, q, Data)
	}
	q.Ack(Data, 12)
	crash(q)
	q = mustOpen(t, o)
	if q.Stopped() != "power" {
		t.Fatal(q.Stopped())
	}
	if got := all(t, q, Data); len(got) != 10 || got[9] != 10 {
		t.Fatal(got)
	}
	var data []Loss
	for _, l := range q.Losses() {
		if l.Lane == Data {
			data = append(data, l)
		}
	}
	if len(data) != 1 || data[0].From != 11 || data[0].To != block || data[0].Why != WhyRestart || data[0].Batches != -1 || data[0].Readings != -1 || data[0].T0 == 0 || data[0].T1 < data[0].T0 {
		t.Fatalf("%+v", data)
	}
	if seq := put(t, q, Data); seq != block+1 {
		t.Fatal(seq)
	}
	// It is told until it is acknowledged, also after a clean stop.
	mustClose(t, q)
	q = mustOpen(t, o)
	if lost(q, Data).String() != fmt.Sprintf("[{11 %d}]", block) {
		t.Fatal(q.Losses())
	}
	for _, l := range q.Losses() {
		if err := q.AckLoss(l); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, q)
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if len(q.Losses()) != 0 {
		t.Fatal(q.Losses())
	}
}

// With max_loss 0s nothing that was accepted is in a tombstone: it closes only
// what was reserved and never given. After a clean stop there is none.
func TestNoLossNoTombstone(t *testing.T) {
	o := testOptions(t)
	o.MaxLoss = 0
	first, want := uint64(1), ranges{}
	for round := range 6 {
		q := mustOpen(t, o)
		if got := lost(q, Data); got.String() != want.String() || q.Given(Data) != first-1 {
			t.Fatal(round, got, want, q.Given(Data))
		}
		for range 20 {
			put(t, q, Data)
		}
		if got := all(t, q, Data); len(got) != (round+1)*20-round*3 {
			t.Fatal(len(got))
		}
		q.Ack(Data, first, first+1, first+2)
		mustSync(t, q)
		if err := q.saveState(false); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 {
			mustClose(t, q)
			first += 20
			continue
		}
		crash(q)
		rest := span{first + 20, first - 1 + block} // a start reserves a block anew
		want.add(rest.a, rest.b)
		first = rest.b + 1
	}
}

// A batch that could be given its number a second time does not leave.
func TestNumberDurableBeforeItLeaves(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	defer mustClose(t, q)
	for range block + 10 {
		put(t, q, Data)
	}
	if it, ok, _ := q.Prev(Data, 1<<50); !ok || it.Seq != block {
		t.Fatal(it.Seq)
	}
	if _, ok, _ := q.Next(Data, block+1); ok {
		t.Fatal("a number that is not reserved left")
	}
	if err := q.Sync(time.Hour); err != nil {
		t.Fatal(err)
	}
	if it, ok, _ := q.Next(Data, block+1); !ok || it.Seq != block+1 {
		t.Fatal("the Sync reserves the next block")
	}
}

func TestLockNamesHolder(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	defer mustClose(t, q)
	_, err := Open(o)
	var le *LockError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &le) || le.PID != os.Getpid() || !strings.Contains(err.Error(), filepath.Base(os.Args[0])) {
		t.Fatal(err)
	}
}

func TestSetAside(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	for range 6 {
		put(t, q, Data)
	}
	if err := q.SetAside(Data, 3, WhyPoison); err != nil {
		t.Fatal(err)
	}
	mustSync(t, q)
	if err := q.SetAside(Data, 5, WhyPoison); err != nil {
		t.Fatal(err)
	}
	crash(q)
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if got := all(t, q, Data); !reflect.DeepEqual(got, []uint64{1, 2, 4, 6}) {
		t.Fatal(got)
	}
	l := q.Losses()
	if l[0].From != 3 || l[0].Why != WhyPoison || l[0].Readings != 4 || l[1].From != 5 || l[1].Readings != 6 || l[1].T0 != batch(Data, 5).From {
		t.Fatalf("%+v", l)
	}
}

func TestCatalogs(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	for i := range 20 {
		if err := q.SaveMeta(fmt.Sprint(i), []byte(strings.Repeat(fmt.Sprint("catalog ", i), 1000))); err != nil {
			t.Fatal(err)
		}
	}
	before := q.Stats().Commits
	if err := q.SaveMeta("19", []byte(strings.Repeat("catalog 19", 1000))); err != nil || q.Stats().Commits != before {
		t.Fatal("the same value was written again", err)
	}
	mustClose(t, q)
	for _, name := range stateNames { // either file has them
		if err := os.Remove(filepath.Join(o.Dir, name)); err != nil {
			t.Fatal(err)
		}
		q = mustOpen(t, o)
		for i := range 20 {
			v, ok, err := q.Meta(fmt.Sprint(i))
			if err != nil || ok != (i >= 4) || ok && string(v) != strings.Repeat(fmt.Sprint("catalog ", i), 1000) {
				t.Fatal(i, ok, err)
			}
		}
		mustClose(t, q)
	}
}

func TestTooLarge(t *testing.T) {
	q := mustOpen(t, testOptions(t))
	defer mustClose(t, q)
	if _, err := q.Append(Data, Batch{Bytes: make([]byte, 129<<10)}); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	seq, err := q.Append(Data, Batch{Bytes: make([]byte, 128<<10)})
	if err != nil || seq != 1 {
		t.Fatal(seq, err)
	}
	if _, err := q.Append(Event, Batch{Bytes: make([]byte, 128<<10)}); err != nil {
		t.Fatal(err)
	}
	mustSync(t, q)
	if s := q.Stats(); s.Segments != 2 {
		t.Fatalf("%+v", s)
	}
}

func TestValidate(t *testing.T) {
	d := Defaults()
	d.Validate(func(path, msg, hint string) { t.Error(path, msg, hint) })
	bad := Options{Size: 5, MaxLoss: -1, WhenFull: "shrink", Segment: 3}
	var got []string
	bad.Validate(func(path, msg, hint string) {
		if msg == "" || hint == "" {
			t.Error(path, msg, hint)
		}
		got = append(got, path)
	})
	if want := []string{"dir", "size", "max_loss", "when_full", "segment"}; !reflect.DeepEqual(got, want) {
		t.Fatal(got)
	}
}

// TestDue: data is due by the age of its first reading while it is only in
// memory, and not once it is delivered or on disk. Events are never asked for.
func TestDue(t *testing.T) {
	q := mustOpen(t, testOptions(t))
	defer q.Close()
	due := func(when string, want bool) {
		t.Helper()
		if got := q.Due(time.Minute); got != want {
			t.Errorf("%s: due %v, want %v", when, got, want)
		}
	}
	add := func(l Lane, age time.Duration) uint64 {
		b := numbered(1, 8)
		b.Age = age
		n, err := q.Append(l, b)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	due("nothing there", false)
	add(Event, time.Hour)
	due("an event", false)
	old := add(Data, time.Hour)
	add(Data, 0)
	due("an old batch before a young one", true)
	q.Ack(Data, old)
	due("the old one delivered", false)
	add(Data, time.Hour)
	if err := q.Sync(0); err != nil {
		t.Fatal(err)
	}
	due("all on disk", false)
}
