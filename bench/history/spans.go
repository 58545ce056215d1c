package history

import "sort"

// spans is a set of numbers as sorted ranges that do not touch.
type spans struct{ s []span }

type span struct{ a, b uint64 }

func (r *spans) add(a, b uint64) {
	i := sort.Search(len(r.s), func(i int) bool { return r.s[i].b+1 >= a })
	j := i
	for ; j < len(r.s) && r.s[j].a <= b+1; j++ {
		a, b = min(a, r.s[j].a), max(b, r.s[j].b)
	}
	r.s = append(r.s[:i], append([]span{{a, b}}, r.s[j:]...)...)
}

func (r *spans) has(n uint64) bool {
	i := sort.Search(len(r.s), func(i int) bool { return r.s[i].b >= n })
	return i < len(r.s) && r.s[i].a <= n
}

// first returns the first number of a..b that is not in the set.
func (r *spans) hole(a, b uint64) (span, bool) {
	for _, s := range r.s {
		if s.b < a {
			continue
		}
		if s.a > a {
			return span{a, min(b, s.a-1)}, a <= b
		}
		a = s.b + 1
	}
	return span{a, b}, a <= b
}
