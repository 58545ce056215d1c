package trial

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestSmaller(t *testing.T) {
	sorted := func(t *T) {
		var list []int
		t.Steps(func() {
			if !slices.IsSorted(list) {
				t.Fatalf("%v", list)
			}
		}, map[string]func(){
			"add": func() { list = append(list, t.Int(3, 1000)) },
			"nop": func() { t.Word() },
		})
	}
	var first *T
	for seed := uint64(1); seed < 100 && (first == nil || first.failure == ""); seed++ {
		first = try(sorted, newTrial(seed, 1))
	}
	last := smaller(sorted, first)
	if last.failure != "[4 3]" {
		t.Errorf("%s became %s", first.failure, last.failure)
	}
	if again := try(sorted, &T{tape: last.tape}); again.failure != last.failure {
		t.Errorf("not the same again: %s, %s", again.failure, last.failure)
	}
	broken := func(t *T) { _ = []int{}[t.Int(0, 9)] }
	if x := smaller(broken, try(broken, newTrial(1, 1))); !strings.Contains(x.failure, "out of range [0]") {
		t.Error(x.failure)
	}
}

// TestDraws: what is drawn is within its bounds, and reaches them.
func TestDraws(t *testing.T) {
	x := newTrial(1, 1)
	ints, words, bools, picks := map[int]bool{}, map[uint64]bool{}, map[bool]bool{}, map[string]bool{}
	lengths := map[int]bool{}
	for range 20_000 {
		n := x.Int(-3, 3)
		if n < -3 || n > 3 {
			t.Fatal(n)
		}
		if u := x.Uint(math.MaxUint64-1, math.MaxUint64); u < math.MaxUint64-1 {
			t.Fatal(u)
		}
		ints[n], bools[x.Bool()], picks[Pick(x, "a", "b")] = true, true, true
		w := x.Word()
		words[w] = true
		for n = 0; w > 0; w >>= 1 {
			n++
		}
		lengths[n] = true
	}
	if len(ints) != 7 || len(bools) != 2 || len(picks) != 2 || len(lengths) != 65 || !words[math.MaxUint64] || !words[0] || !words[math.MaxInt64] {
		t.Error(len(ints), len(bools), len(picks), len(lengths), words[math.MaxUint64], words[0])
	}
	if len(x.Bytes(5)) != 5 {
		t.Error("bytes")
	}
}
