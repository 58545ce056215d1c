package buffer

import "sort"

// span is the numbers a..b, both included.
type span struct{ a, b uint64 }

// ranges is a set of numbers from 1 on, kept as sorted spans that neither
// touch nor overlap. The zero value is the empty set.
type ranges struct {
	s []span
	n uint64 // how many numbers are in it
}

// at returns the index of the first span that ends at x or behind it.
func (r *ranges) at(x uint64) int {
	if n := len(r.s); n == 0 || r.s[n-1].b < x {
		return n
	}
	return sort.Search(len(r.s), func(i int) bool { return r.s[i].b >= x })
}

func (r *ranges) has(x uint64) bool {
	i := r.at(x)
	return i < len(r.s) && r.s[i].a <= x
}

// add puts a..b into the set.
func (r *ranges) add(a, b uint64) {
	if a == 0 {
		a = 1
	}
	if a > b {
		return
	}
	i := r.at(a - 1) // the first span that touches a or lies behind it
	j := i
	for j < len(r.s) && (b == ^uint64(0) || r.s[j].a <= b+1) {
		a, b = min(a, r.s[j].a), max(b, r.s[j].b)
		r.n -= r.s[j].b - r.s[j].a + 1
		j++
	}
	r.n += b - a + 1
	if j > i {
		r.s[i] = span{a, b}
		r.s = append(r.s[:i+1], r.s[j:]...)
		return
	}
	r.s = append(r.s, span{})
	copy(r.s[i+1:], r.s[i:])
	r.s[i] = span{a, b}
}

// union adds all of o.
func (r *ranges) union(o *ranges) {
	for _, s := range o.s {
		r.add(s.a, s.b)
	}
}

// without returns what is not in o.
func (r *ranges) without(o *ranges) *ranges {
	out := &ranges{}
	for _, s := range r.s {
		for _, h := range o.holes(s.a, s.b) {
			out.add(h.a, h.b)
		}
	}
	return out
}

// next returns the lowest number >= x that is not in the set.
func (r *ranges) next(x uint64) uint64 {
	x = max(x, 1)
	if i := r.at(x); i < len(r.s) && r.s[i].a <= x {
		return r.s[i].b + 1
	}
	return x
}

// prev returns the highest number <= x that is not in the set; 0 when there is none.
func (r *ranges) prev(x uint64) uint64 {
	if i := r.at(x); i < len(r.s) && r.s[i].a <= x {
		return r.s[i].a - 1
	}
	return x
}

// covers tells whether all of a..b are in the set.
func (r *ranges) covers(a, b uint64) bool {
	i := r.at(a)
	return a > b || i < len(r.s) && r.s[i].a <= a && r.s[i].b >= b
}

// count returns how many of a..b are in the set.
func (r *ranges) count(a, b uint64) uint64 {
	var n uint64
	for i := r.at(a); i < len(r.s) && r.s[i].a <= b; i++ {
		n += min(b, r.s[i].b) - max(a, r.s[i].a) + 1
	}
	return n
}

// holes returns the spans of a..b that are not in the set.
func (r *ranges) holes(a, b uint64) []span {
	var out []span
	for x := r.next(max(a, 1)); x <= b; {
		i := r.at(x)
		end := b
		if i < len(r.s) && r.s[i].a <= b {
			end = r.s[i].a - 1
		}
		out = append(out, span{x, end})
		x = r.next(end + 1)
	}
	return out
}

// clone returns a copy that shares nothing.
func (r *ranges) clone() ranges {
	return ranges{s: append([]span(nil), r.s...), n: r.n}
}

// Numbers is a set of numbers from 1 on, for who keeps an account beside a
// Queue. The zero value is empty; memory grows with the number of gaps.
type Numbers struct{ r ranges }

// Add puts the numbers from..to into the set.
func (n *Numbers) Add(from, to uint64) { n.r.add(from, to) }

// Remove takes the numbers from..to out of the set.
func (n *Numbers) Remove(from, to uint64) {
	if n.r.count(from, to) > 0 {
		n.r = *n.r.without(&ranges{s: []span{{from, to}}})
	}
}

// Count returns how many of from..to are in the set.
func (n *Numbers) Count(from, to uint64) uint64 { return n.r.count(from, to) }

// Has tells whether a number is in the set.
func (n *Numbers) Has(x uint64) bool { return n.r.has(x) }

// Next returns the lowest number >= x that is not in the set.
func (n *Numbers) Next(x uint64) uint64 { return n.r.next(x) }

// Prev returns the highest number <= x that is not in the set; 0 when there is none.
func (n *Numbers) Prev(x uint64) uint64 { return n.r.prev(x) }

// Spans returns the runs of the set, the lowest first, each as its first and last number.
func (n *Numbers) Spans() [][2]uint64 { return pairs(n.r.s) }

// Holes returns the runs of from..to that are not in the set.
func (n *Numbers) Holes(from, to uint64) [][2]uint64 { return pairs(n.r.holes(from, to)) }

func pairs(spans []span) (out [][2]uint64) {
	for _, s := range spans {
		out = append(out, [2]uint64{s.a, s.b})
	}
	return out
}
