package account

import (
	"cmp"
	"slices"
)

// maxNumber is the highest number a batch may have; it leaves room for +1.
const maxNumber = 1<<63 - 1

// Range is a run of numbers, both ends included.
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// set holds numbers as ranges that are in order and do not touch.
type set []Range

// find returns the place of the first range that ends at or after n.
func (s set) find(n uint64) int {
	i, _ := slices.BinarySearchFunc(s, n, func(r Range, n uint64) int { return cmp.Compare(r.To, n) })
	return i
}

func (s set) has(n uint64) bool {
	i := s.find(n)
	return i < len(s) && s[i].From <= n
}

// touches tells whether adding from..to makes no new range.
func (s set) touches(from, to uint64) bool {
	i := s.find(from - 1)
	return i < len(s) && s[i].From <= to+1
}

func (s *set) add(from, to uint64) {
	i := s.find(from - 1) // a range that ends just before joins in
	j := i
	for j < len(*s) && (*s)[j].From <= to+1 {
		from, to = min(from, (*s)[j].From), max(to, (*s)[j].To)
		j++
	}
	*s = slices.Replace(*s, i, j, Range{from, to})
}

// minus returns the numbers of s that are not in t.
func (s set) minus(t set) set {
	var out set
	for _, r := range s {
		from := r.From
		for i := t.find(from); i < len(t) && t[i].From <= r.To; i++ {
			if t[i].From > from {
				out = append(out, Range{from, t[i].From - 1})
			}
			from = t[i].To + 1
		}
		if from <= r.To {
			out = append(out, Range{from, r.To})
		}
	}
	return out
}

func (s set) count() int64 {
	var n int64
	for _, r := range s {
		n += int64(r.To - r.From + 1)
	}
	return n
}

// split returns the numbers below n and those from n on.
func (s set) split(n uint64) (below, rest set) {
	if n > 0 {
		below = s.minus(set{{n, maxNumber}})
	}
	return below, s.minus(below)
}
