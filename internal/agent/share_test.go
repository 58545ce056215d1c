package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/internal/telemetry"
	"tidegate/internal/trial"
)

// cloud is what one broker has taken: the account of a receiver.
type cloud struct {
	got  [len(lanes)]map[uint64]int // how often each number came
	told [len(lanes)]buffer.Numbers // numbers in tombstones
}

func newClouds(n int) (c []*cloud) {
	for range n {
		x := &cloud{}
		for l := range x.got {
			x.got[l] = map[uint64]int{}
		}
		c = append(c, x)
	}
	return c
}

// lacks returns the first number of from..to that neither came nor was told of.
func (c *cloud) lacks(l buffer.Lane, from, to uint64) uint64 {
	for n := from; n <= to; n++ {
		if c.got[l][n] == 0 && !c.told[l].Has(n) {
			return n
		}
	}
	return 0
}

// shared is a share under test with the queue below it.
type shared struct {
	dir      string
	q        *buffer.Queue
	s        *share
	ms       []*member
	online   []bool
	log      bytes.Buffer
	required []bool
}

func (x *shared) open(t interface{ Fatal(...any) }) {
	q, err := buffer.Open(buffer.Options{Dir: x.dir, Size: 16 << 20, MaxLoss: time.Hour, Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	x.q = q
	src := &source{Queue: q, catalogs: map[string]*telemetry.Catalog{}}
	x.s = newShare(q, src, filepath.Join(x.dir, cursorsFile), time.Hour, slog.New(slog.NewTextHandler(&x.log, nil)))
	x.ms = nil
	for i, r := range x.required {
		m := x.s.add(fmt.Sprintf("u%d", i), r)
		m.online = func() bool { return x.online[i] }
		x.ms = append(x.ms, m)
	}
	x.s.open()
}

func scratch(t interface{ Fatal(...any) }) string {
	parent := os.TempDir()
	if _, err := os.Stat("/dev/shm"); err == nil {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, "tidegate-share-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestShare does to a queue with three uplinks whatever may happen to them, in
// any order: at any moment each number below what an uplink calls its lowest
// has come or was told of, and in the end that holds for all numbers; nothing
// comes twice but where an acknowledgement, the cursors or the power was lost.
func TestShare(t *testing.T) {
	trial.Run(t, func(t *trial.T) {
		x := &shared{dir: scratch(t), online: make([]bool, 3), required: []bool{true, false, false}}
		defer func() { os.RemoveAll(x.dir) }()
		clouds := newClouds(3)
		mayRepeat := false
		x.open(t)
		defer func() { x.q.Close() }()
		some := func() int { return t.Int(0, 2) }
		lane := func() buffer.Lane { return lanes[t.Int(0, 1)] }
		tell := func(i int, ack bool) {
			for _, l := range x.ms[i].Losses() {
				clouds[i].told[laneOf(l.Lane)].Add(l.From, l.To)
				if !ack {
					continue
				}
				if err := x.ms[i].AckLoss(l); err != nil {
					t.Fatal(err)
				}
			}
		}
		send := func(i int, l buffer.Lane, from uint64, back, ack bool) bool {
			next := x.ms[i].Next
			if back {
				next = x.ms[i].Prev
			}
			it, ok, err := next(l.String(), from)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return false
			}
			clouds[i].got[l][it.Seq]++
			if clouds[i].got[l][it.Seq] > 1 && !mayRepeat {
				t.Fatalf("u%d got %s %d twice", i, l, it.Seq)
			}
			if ack {
				x.ms[i].Ack(l.String(), it.Seq)
			} else {
				mayRepeat = true
			}
			return true
		}
		reopen := func() {
			x.required = []bool{t.Bool(), t.Bool(), t.Bool()}
			x.required[some()] = true
			x.open(t)
		}
		t.Steps(func() {
			for i, m := range x.ms {
				for _, l := range lanes {
					lo := m.Lowest(l.String())
					if n := clouds[i].lacks(l, 1, min(lo-1, x.q.Given(l))); n != 0 {
						t.Fatalf("u%d calls %d its lowest of %s, but %d neither came nor was told of", i, lo, l, n)
					}
				}
			}
		}, map[string]func(){
			"append": func() {
				for range t.Int(1, 5) {
					if _, err := x.q.Append(lane(), buffer.Batch{Bytes: make([]byte, 20), Count: 1}); err != nil {
						t.Fatal(err)
					}
				}
			},
			"send": func() {
				i, l, ack := some(), lane(), t.Int(0, 9) > 0
				for from := uint64(1); from < 6 && send(i, l, from, false, ack); from++ {
				}
			},
			"send the newest": func() { send(some(), lane(), math.MaxUint64, true, t.Int(0, 9) > 0) },
			"tell":            func() { tell(some(), t.Bool()) },
			"set aside": func() {
				i, l := some(), lane()
				if it, ok, _ := x.ms[i].Next(l.String(), 1); ok {
					if err := x.ms[i].SetAside(l.String(), it.Seq, buffer.WhyPoison); err != nil {
						t.Fatal(err)
					}
				}
			},
			"lose": func() {
				if it, ok, _ := x.q.Look(lane(), t.Uint(1, 20)); ok {
					if err := x.q.SetAside(it.Lane, it.Seq, buffer.WhyFull); err != nil {
						t.Fatal(err)
					}
				}
			},
			"come and go": func() { i := some(); x.online[i] = !x.online[i] },
			"time":        func() { x.s.turn(time.Now().Add(2 * time.Minute)) },
			"flush": func() {
				if err := x.q.Sync(0); err != nil {
					t.Fatal(err)
				}
			},
			"restart": func() {
				x.s.close()
				if err := x.q.Close(); err != nil {
					t.Fatal(err)
				}
				reopen()
			},
			"power cut before the cursors are written": func() {
				mayRepeat = true
				if err := x.q.Close(); err != nil {
					t.Fatal(err)
				}
				reopen()
			},
			"power cut": func() {
				mayRepeat = true
				dead, was := x.q, x.dir
				x.dir = scratch(t)
				if err := os.CopyFS(x.dir, os.DirFS(was)); err != nil {
					t.Fatal(err)
				}
				reopen()
				dead.Close()
				os.RemoveAll(was)
			},
			"power cut and damage": func() {
				mayRepeat = true
				x.s.close()
				if err := x.q.Close(); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(x.dir, cursorsFile)
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				switch t.Int(0, 2) {
				case 0:
					os.Remove(file)
				case 1:
					os.WriteFile(file, b[:t.Int(0, len(b)-1)], 0o600)
				case 2:
					b[t.Int(0, len(b)-1)] ^= 1 << t.Int(0, 7)
					os.WriteFile(file, b, 0o600)
				}
				reopen()
			},
		})
		for i := range x.online {
			x.online[i] = true
		}
		for round, more := 0, true; more; round++ {
			more = false
			for i := range x.ms {
				for _, l := range lanes {
					for send(i, l, 1, false, true) {
						more = true
					}
				}
				more = more || len(x.ms[i].Losses()) > 0
				tell(i, true)
			}
			x.s.turn(time.Now().Add(2 * time.Minute))
			if round > 100 {
				t.Fatal("it does not come to an end")
			}
		}
		if s := x.q.Stats(); s.Waiting != [2]int64{} || s.Losses != 0 {
			t.Fatalf("still held when all have everything: %+v", s)
		}
		for i := range x.ms {
			for _, l := range lanes {
				if n := clouds[i].lacks(l, 1, x.q.Given(l)); n != 0 {
					t.Fatalf("u%d: %s %d of %d neither came nor was told of\n%s", i, l, n, x.q.Given(l), &x.log)
				}
			}
		}
	})
}

// sharedByTwo is a share of two required uplinks with n batches on disk.
func sharedByTwo(t *testing.T, n int) *shared {
	x := &shared{dir: scratch(t), online: make([]bool, 2), required: []bool{true, true}}
	t.Cleanup(func() { x.q.Close(); os.RemoveAll(x.dir) })
	x.open(t)
	for range n {
		if _, err := x.q.Append(buffer.Data, buffer.Batch{Bytes: []byte("batch"), Count: 1, From: 5, To: 6}); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// TestAside: what one uplink gives up is its own loss, known also after a
// power cut that follows at once, and the other still gets it.
func TestAside(t *testing.T) {
	x := sharedByTwo(t, 3)
	if err := x.ms[0].SetAside("data", 2, buffer.WhyPoison); err != nil {
		t.Fatal(err)
	}
	if it, ok, err := x.ms[0].Next("data", 2); err != nil || !ok || it.Seq != 3 {
		t.Errorf("the next after it: %d, %v, %v", it.Seq, ok, err)
	}
	if it, ok, err := x.ms[1].Next("data", 2); err != nil || !ok || it.Seq != 2 {
		t.Errorf("for the other: %d, %v, %v", it.Seq, ok, err)
	}
	x.ms[1].Ack("data", 1, 2, 3)
	if err := x.q.Close(); err != nil { // and the cursors are not written
		t.Fatal(err)
	}
	x.open(t)
	l := x.ms[0].Losses()
	if len(l) != 1 || l[0].Why != buffer.WhyPoison || l[0].From != 2 || l[0].To != 2 || l[0].Readings != 1 || l[0].T0 != 5 || l[0].T1 != 6 {
		t.Fatalf("to be told: %+v", l)
	}
	if err := x.ms[0].AckLoss(l[0]); err != nil {
		t.Fatal(err)
	}
	if l := append(x.ms[0].Losses(), x.ms[1].Losses()...); len(l) != 0 {
		t.Errorf("to be told once more: %+v", l)
	}
}

// TestRunBetween: what was delivered in a run without an uplink is told to it
// in the next run with it.
func TestRunBetween(t *testing.T) {
	x := sharedByTwo(t, 2)
	for _, m := range x.ms {
		m.Ack("data", 1, 2)
	}
	x.s.close()
	x.q.Close()
	q, err := buffer.Open(buffer.Options{Dir: x.dir, Size: 16 << 20, MaxLoss: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Append(buffer.Data, buffer.Batch{Bytes: []byte("batch"), Count: 1}); err != nil {
		t.Fatal(err)
	}
	q.Ack(buffer.Data, 3)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	x.open(t)
	for _, m := range x.ms {
		if l := m.Losses(); len(l) != 1 || l[0].Why != whyPassed || l[0].From != 3 || l[0].To != 3 {
			t.Errorf("%s is told %+v", m.name, l)
		}
	}
}
