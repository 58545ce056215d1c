package buffer

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// store is a buffer on disk with all that is known about it.
type store struct {
	dir    string
	old    string // a copy of an earlier moment
	o      Options
	held   [laneCount]*ranges
	places map[string][]found // where each record stands, by file
}

func makeStore(t *testing.T, n int) *store {
	s := &store{o: testOptions(t), places: make(map[string][]found)}
	q := mustOpen(t, s.o)
	if err := q.SaveMeta("cat", []byte("what the numbers mean")); err != nil {
		t.Fatal(err)
	}
	s.old = filepath.Join(fastDir(t), "old")
	for i := range n {
		put(t, q, Data)
		if i%7 == 0 {
			put(t, q, Event)
		}
		if i%11 == 0 { // delivered before it was due: a number that is nowhere on disk
			q.Ack(Data, q.Given(Data))
		}
		if i%9 == 0 {
			mustSync(t, q)
			if i%5 == 0 {
				q.Ack(Data, q.Given(Data)-2)
			}
		}
		if i == n-n/8 {
			mustSync(t, q)
			copyDir(t, s.o.Dir, s.old)
		}
	}
	q.Ack(Data, 1, 2, 3, 4, 5)
	mustSync(t, q)
	for l := range Lane(laneCount) {
		s.held[l] = set(all(t, q, l))
	}
	mustClose(t, q)
	s.dir = s.o.Dir
	for _, path := range segmentFiles(t, s.dir) {
		s.find(t, path)
		if name := filepath.Join(s.old, filepath.Base(path)); exists(name) {
			s.find(t, name)
		}
	}
	return s
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

func (s *store) find(t *testing.T, path string) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, _ := f.Stat()
	l, _, _ := parseName(filepath.Base(path))
	scan(f, fi.Size(), l, func(r found) {
		s.places[filepath.Base(path)] = append(s.places[filepath.Base(path)], r)
	}, func(*ride) {})
}

// intact returns the numbers of which a whole record still stands in a damaged file.
func (s *store) intact(t *testing.T, path string) *ranges {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l, _, _ := parseName(filepath.Base(path))
	var r ranges
	for _, p := range s.places[filepath.Base(path)] {
		if p.at+int64(p.length) > int64(len(b)) {
			continue
		}
		x := batch(l, p.number)
		rec := append(make([]byte, recordHead), x.Bytes...)
		(&envelope{lane: l, number: p.number, count: uint32(x.Count), t0: x.From, t1: x.To}).seal(rec)
		on := b[p.at : p.at+int64(p.length)]
		if p.key != "" { // the nonce is not known: the tag says whether it is whole
			q := &Queue{}
			q.key, _ = newKey(secret(1))
			_, plain, err := q.unseal(on)
			on = append(make([]byte, recordHead), plain...)
			clear(rec[:recordHead])
			if err != nil {
				continue
			}
		}
		if bytes.Equal(on, rec) {
			r.add(p.number, p.number)
		}
	}
	return &r
}

var damages = []string{"bit", "byte", "noise", "sector", "page", "swap", "cut", "stale", "empty"}

// damage spoils a file and returns whether it did anything.
func (s *store) damage(t *testing.T, rng *rand.Rand, path, kind string) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(b) // where something stands
	for used > pageSize && b[used-1] == 0 {
		used--
	}
	used = min(len(b), (used+pageSize-1)/pageSize*pageSize)
	at := rng.IntN(used)
	switch kind {
	case "bit":
		b[at] ^= 1 << rng.IntN(8)
	case "byte":
		b[at] ^= byte(1 + rng.IntN(255))
	case "noise":
		for i := at; i < min(at+64, used); i++ {
			b[i] = byte(rng.Uint32())
		}
	case "sector":
		clear(b[at/512*512 : at/512*512+512])
	case "page":
		clear(b[at/pageSize*pageSize:][:pageSize])
	case "swap":
		x, y := b[at/pageSize*pageSize:][:pageSize], b[rng.IntN(used)/pageSize*pageSize:][:pageSize]
		keep := bytes.Clone(x)
		copy(x, y)
		copy(y, keep)
	case "cut":
		b = b[:at]
	case "empty":
		b = nil
	case "stale": // a disk that lost some of its last writes
		old, err := os.ReadFile(filepath.Join(s.old, filepath.Base(path)))
		if err != nil {
			old = make([]byte, len(b))
		}
		for i := 0; i+pageSize <= min(len(b), len(old)); i += pageSize {
			if rng.IntN(2) == 0 {
				copy(b[i:i+pageSize], old[i:i+pageSize])
			}
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // in place: the file may be mapped
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
}

// TestDamage spoils one file of a copy in many ways, closed and open. No wrong
// byte is returned, every record that is whole is saved, and the ledger names
// exactly the numbers that are gone.
func TestDamage(t *testing.T) {
	rng, _ := seed(t)
	s := makeStore(t, 300)
	rounds := rounds(t, "BUFFER_DAMAGES", 54)
	var saved, gone, harmless int
	for i := range rounds {
		o := s.o
		o.Dir = filepath.Join(fastDir(t), "copy")
		copyDir(t, s.dir, o.Dir)
		targets := segmentFiles(t, o.Dir)
		for _, name := range append(stateNames[:], numbersName) {
			targets = append(targets, filepath.Join(o.Dir, name))
		}
		path := targets[rng.IntN(len(targets))]
		kind := damages[i%len(damages)]
		while := i%3 == 0 // it is open, and some of it was read
		var q *Queue
		if while {
			q = mustOpen(t, o)
			for n := uint64(1); n < 200; n += 40 {
				if _, _, err := q.Next(Data, n); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.damage(t, rng, path, kind)
		want := s.held
		if l, _, ok := parseName(filepath.Base(path)); ok {
			want[l] = s.without(path, l, s.intact(t, path))
		}
		if !while {
			q = mustOpen(t, o)
		}
		for l := range Lane(laneCount) {
			got := set(all(t, q, l))
			for n := uint64(1); n <= q.Given(l); n++ {
				if want[l].has(n) && !got.has(n) {
					t.Fatalf("round %d: %s of %s: %s %d is whole and was not saved", i, kind, filepath.Base(path), l, n)
				}
			}
			here, told := got, lost(q, l)
			for n := uint64(1); n <= q.Given(l); n++ {
				if here.has(n) && told.has(n) {
					t.Fatalf("round %d: %s of %s: %s %d is told as lost and is held", i, kind, filepath.Base(path), l, n)
				}
				if s.held[l].has(n) && !here.has(n) && !told.has(n) {
					t.Fatalf("round %d: %s of %s: %s %d went silently", i, kind, filepath.Base(path), l, n)
				}
				if told.has(n) && !s.held[l].has(n) && kind != "stale" {
					t.Fatalf("round %d: %s of %s: %s %d is told as lost and was delivered", i, kind, filepath.Base(path), l, n)
				}
			}
			saved += int(here.n)
			gone += int(told.n)
		}
		if q.Stats().Quarantined == 0 {
			harmless++
		}
		if v, ok, err := q.Meta("cat"); err != nil || !ok || string(v) != "what the numbers mean" {
			t.Fatal(kind, path, ok, err)
		}
		// It goes on, and what was found stands after another start.
		put(t, q, Data)
		mustSync(t, q)
		before := [laneCount][]uint64{all(t, q, Data), all(t, q, Event)}
		losses := q.Losses()
		mustClose(t, q)
		q = mustOpen(t, o)
		for l := range Lane(laneCount) {
			if got := all(t, q, l); !slices.Equal(got, before[l]) {
				t.Fatalf("round %d: %s of %s: %s differs after a second start", i, kind, filepath.Base(path), l)
			}
		}
		if got := q.Losses(); !slices.Equal(got, losses) {
			t.Fatalf("round %d: the ledger differs: %v, %v", i, got, losses)
		}
		mustClose(t, q)
		os.RemoveAll(o.Dir)
	}
	t.Logf("%d files spoiled, %d of them without effect: 0 wrong bytes, %d batches held, all %d missing in tombstones", rounds, harmless, saved, gone)
}

// without is what must still be held when of one file only some records are whole.
func (s *store) without(path string, l Lane, whole *ranges) *ranges {
	var r ranges
	mine := ranges{}
	for _, p := range s.places[filepath.Base(path)] {
		mine.add(p.number, p.number)
	}
	for _, x := range s.held[l].s {
		for n := x.a; n <= x.b; n++ {
			if !mine.has(n) || whole.has(n) {
				r.add(n, n)
			}
		}
	}
	return &r
}

// Both state files gone: everything in the segments is kept, and no number
// below the next is unaccounted for. The epoch goes on as long as the numbers
// are known; without them it is a new one.
func TestBothStatesLost(t *testing.T) {
	for _, numbers := range []bool{true, false} {
		statesLost(t, numbers)
	}
}

func statesLost(t *testing.T, numbers bool) {
	s := makeStore(t, 60)
	q := mustOpen(t, s.o)
	epoch, given := q.Epoch(), q.Given(Data)
	mustClose(t, q)
	for _, name := range stateNames {
		if err := os.Truncate(filepath.Join(s.dir, name), 5000); err != nil {
			t.Fatal(err)
		}
	}
	if !numbers {
		if err := os.Truncate(filepath.Join(s.dir, numbersName), 0); err != nil {
			t.Fatal(err)
		}
	}
	q = mustOpen(t, s.o)
	defer mustClose(t, q)
	if numbers != (q.Epoch() == epoch) || q.Stopped() != "power" || q.Given(Data) < given-1 {
		t.Fatal(q.Epoch(), epoch, q.Stopped(), q.Given(Data), given)
	}
	for l := range Lane(laneCount) {
		here, told := set(all(t, q, l)), lost(q, l)
		for n := uint64(1); n <= q.Given(l); n++ {
			if s.held[l].has(n) && !here.has(n) || here.has(n) == told.has(n) {
				t.Fatalf("%s %d: held %v, told %v", l, n, here.has(n), told.has(n))
			}
		}
	}
}

// A repair that is interrupted at any step is finished by the next start.
func TestRepairInterrupted(t *testing.T) {
	s := makeStore(t, 120)
	path := segmentFiles(t, s.dir)[0]
	rng, _ := seed(t)
	s.damage(t, rng, path, "page")
	want := s.without(path, Data, s.intact(t, path))
	check := func(t *testing.T, dir string) {
		o := s.o
		o.Dir = dir
		q := mustOpen(t, o)
		defer mustClose(t, q)
		here, told := set(all(t, q, Data)), lost(q, Data)
		for n := uint64(1); n <= q.Given(Data); n++ {
			if want.has(n) && !here.has(n) || s.held[Data].has(n) && here.has(n) == told.has(n) {
				t.Fatalf("%d: held %v, told %v, whole %v", n, here.has(n), told.has(n), want.has(n))
			}
		}
	}
	steps := map[string]func(dir string){
		"half a fresh file": func(dir string) {
			os.WriteFile(filepath.Join(dir, filepath.Base(path)+suffixSalvaged), make([]byte, 9000), 0o600)
		},
		"damaged file moved aside": func(dir string) {
			o := s.o
			o.Dir = dir
			q := mustOpen(t, o)
			all(t, q, Data) // repairs
			crash(q)
			if err := os.Rename(filepath.Join(dir, filepath.Base(path)), filepath.Join(dir, filepath.Base(path)+suffixSalvaged)); err != nil {
				t.Fatal(err)
			}
		},
		"half a new segment": func(dir string) {
			os.WriteFile(filepath.Join(dir, segmentName(Data, 99)+suffixNew), make([]byte, 9000), 0o600)
		},
		"a killing open": func(dir string) {
			os.WriteFile(filepath.Join(dir, markerName), []byte(filepath.Base(path)+" 2\n"), 0o600)
		},
		"a killing open of the state": func(dir string) {
			os.WriteFile(filepath.Join(dir, markerName), []byte(stateNames[0]+" 2\n"), 0o600)
		},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(fastDir(t), "copy")
			copyDir(t, s.dir, dir)
			step(dir)
			check(t, dir)
		})
	}
}

// TestManyDamaged spoils most files at once: it starts within its time, and
// the rest is repaired while it runs.
func TestManyDamaged(t *testing.T) {
	rng, _ := seed(t)
	s := makeStore(t, 300)
	var want [laneCount]*ranges
	for l := range Lane(laneCount) {
		want[l] = s.held[l]
	}
	for i, path := range segmentFiles(t, s.dir) {
		if i%5 == 4 {
			continue
		}
		s.damage(t, rng, path, damages[i%7])
		l, _, _ := parseName(filepath.Base(path))
		one := *s
		one.held[l] = want[l]
		want[l] = one.without(path, l, s.intact(t, path))
	}
	tune := defaultTuning()
	tune.opening = 0
	began := time.Now()
	q, err := open(s.o, tune)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, q)
	t.Logf("open took %v", time.Since(began))
	for range 40 {
		if err := q.Sync(time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if q.damagedOne() != nil {
		t.Fatal("not repaired")
	}
	for l := range Lane(laneCount) {
		here, told := set(all(t, q, l)), lost(q, l)
		for n := uint64(1); n <= q.Given(l); n++ {
			if want[l].has(n) && !here.has(n) || s.held[l].has(n) && here.has(n) == told.has(n) {
				t.Fatalf("%s %d: held %v, told %v, whole %v", l, n, here.has(n), told.has(n), want[l].has(n))
			}
		}
	}
	if n := q.Stats().Quarantined; n > 2 {
		t.Fatal(n, "files in quarantine")
	}
}
