// Package trial tries a property on what is drawn by lot. It is for tests
// only, and no part of the binary.
package trial

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	trials = 100 // TRIALS changes it
	steps  = 30  // of Steps, on average
	tries  = 400 // to make a failure smaller
	within = 10 * time.Second
)

// Run tries the property with 100 different draws, or as many as TRIALS says.
// A failure is tried again with fewer and with smaller draws, and the smallest
// that still fails is reported, with the seed. TRIAL_SEED gives the seed.
func Run(t *testing.T, property func(*T)) {
	t.Helper()
	seed, n := uint64(time.Now().UnixNano()), trials
	number(t, "TRIAL_SEED", &seed)
	number(t, "TRIALS", &n)
	for i := range n {
		first := try(property, newTrial(seed, uint64(i)))
		if first.failure == "" {
			continue
		}
		last := smaller(property, first)
		t.Fatalf("trial %d of seed %d (again: TRIAL_SEED=%d), %d draws, %d at first: %s\n%s",
			i, seed, seed, len(last.tape), len(first.tape), strings.Join(last.said, " "), last.failure)
	}
}

func number[N int | uint64](t *testing.T, env string, n *N) {
	if v := os.Getenv(env); v != "" {
		if _, err := fmt.Sscan(v, n); err != nil {
			t.Fatal(env, err)
		}
	}
}

// T is one trial: what is drawn in it, and whether it failed.
type T struct {
	tape    []uint64   // what was drawn
	at      int        // of it, in a trial that is done again
	more    *rand.Rand // nil: behind the end of the tape stand zeros
	said    []string
	failure string
}

func newTrial(seed, no uint64) *T { return &T{more: rand.New(rand.NewPCG(seed, no))} }

// failed ends a trial.
type failed struct{ text string }

func try(property func(*T), t *T) (tried *T) {
	tried = t // also when it panics
	defer func() {
		t.tape = t.tape[:min(t.at, len(t.tape))]
		switch p := recover().(type) {
		case nil:
		case failed:
			t.failure = p.text
		default:
			t.failure = fmt.Sprintf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	property(t)
	return tried
}

// smaller looks for a shorter tape, and then for one with smaller draws, that
// fails as well.
func smaller(property func(*T), t *T) *T {
	left, end := tries, time.Now().Add(within)
	fails := func(tape []uint64) bool {
		if left--; left < 0 || time.Now().After(end) {
			return false
		}
		if again := try(property, &T{tape: tape}); again.failure != "" {
			t = again
			return true
		}
		return false
	}
	for cut := len(t.tape); cut > 0; cut /= 2 {
		for len(t.tape) >= cut && fails(slices.Clone(t.tape[:len(t.tape)-cut])) {
		}
	}
	for cut := len(t.tape) / 2; cut > 0; cut /= 2 {
		for i := 0; i+cut <= len(t.tape); {
			if !fails(slices.Delete(slices.Clone(t.tape), i, i+cut)) {
				i += cut
			}
		}
	}
	for i := 0; i < len(t.tape); i++ {
		for _, d := range []uint64{0, 1, t.tape[i] / 2} {
			if tape := slices.Clone(t.tape); d < tape[i] {
				if tape[i] = d; fails(tape) {
					break
				}
			}
		}
	}
	return t
}

// Helper is there so that T can stand for a testing.T.
func (t *T) Helper() {}

// Fatal ends the trial: the property does not hold.
func (t *T) Fatal(args ...any) { panic(failed{fmt.Sprintln(args...)}) }

// Fatalf is Fatal with a format.
func (t *T) Fatalf(format string, args ...any) { panic(failed{fmt.Sprintf(format, args...)}) }

// draw returns 0 to most, the smaller the further a failure was made smaller.
func (t *T) draw(most uint64) uint64 {
	if t.at == len(t.tape) && t.more != nil {
		x := t.more.Uint64()
		if most < math.MaxUint64 {
			x = t.more.Uint64N(most + 1)
		}
		t.tape = append(t.tape, x)
	}
	x := uint64(0)
	if t.at < len(t.tape) {
		x = min(t.tape[t.at], most)
	}
	t.at++
	t.said = append(t.said, fmt.Sprint(x))
	return x
}

// Int draws one of low to high.
func (t *T) Int(low, high int) int { return low + int(t.draw(uint64(high-low))) }

// Uint draws one of low to high.
func (t *T) Uint(low, high uint64) uint64 { return low + t.draw(high-low) }

// Bool draws false or true.
func (t *T) Bool() bool { return t.draw(1) == 1 }

// Word draws any 64 bits: of each length as often, and often the most of it.
func (t *T) Word() uint64 {
	n, x := t.draw(64), t.draw(math.MaxUint64)
	most := uint64(1)<<n - 1
	if x%8 == 7 {
		return most
	}
	return x & most
}

// Bytes draws n bytes.
func (t *T) Bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(t.draw(255))
	}
	return b
}

// Pick draws one of several.
func Pick[E any](t *T, from ...E) E { return from[t.draw(uint64(len(from)-1))] }

// Steps does actions by lot, 30 on average, and check before the first and
// after each.
func (t *T) Steps(check func(), actions map[string]func()) {
	names := slices.Sorted(maps.Keys(actions))
	for check(); t.draw(steps) > 0; check() {
		name := Pick(t, names...)
		t.said = append(t.said, name)
		actions[name]()
	}
}
