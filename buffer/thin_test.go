package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// A batch of these tests is padding behind its own number. A thinned one is
// the numbers it stands for, without padding.
func numbered(seq uint64, pad int) Batch {
	b := make([]byte, 9+pad)
	binary.BigEndian.PutUint64(b[1:], seq)
	return Batch{Bytes: b, Count: 10, From: int64(seq) * 1000, To: int64(seq)*1000 + 900}
}

// joinTen joins batches up to one whose number can be divided by ten, and
// joined ones with others.
func joinTen(run [][]byte) (out []byte, count int, from, to int64, n int) {
	out = []byte{1}
	for _, b := range run {
		if b[0] == 1 {
			return nil, 0, 0, 0, 0 // thinned already
		}
		seq := binary.BigEndian.Uint64(b[1:])
		out = binary.BigEndian.AppendUint64(out, seq)
		if n++; n == 1 {
			from = int64(seq) * 1000
		}
		to = int64(seq)*1000 + 900
		if seq%10 == 0 {
			break
		}
	}
	if n < 2 {
		return nil, 0, 0, 0, 0
	}
	return out, 3, from, to, n
}

// standsFor returns the numbers in a batch.
func standsFor(b []byte) (seqs []uint64, thinned bool) {
	if b[0] == 0 {
		return []uint64{binary.BigEndian.Uint64(b[1:])}, false
	}
	for b = b[1:]; len(b) >= 8; b = b[8:] {
		seqs = append(seqs, binary.BigEndian.Uint64(b))
	}
	return seqs, true
}

// TestThin fills a small buffer many times over, with a sender that takes
// some and crashes in between. Whatever is appended is delivered, held, or
// stands in a batch that is, or is in a Loss; no number has two contents;
// the cap holds. Thinned, all of it fits: nothing is dropped.
func TestThin(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted=%v", encrypted), func(t *testing.T) { testThin(t, encrypted) })
	}
}

func testThin(t *testing.T, encrypted bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	o := testOptions(t)
	o.WhenFull, o.Thin = thinFirst, joinTen
	if encrypted {
		o.KeyFile = keyFile(t, 1)
	}
	q := mustOpen(t, o)
	defer func() { q.Close() }()
	left := map[uint64][]byte{}    // what the sender has seen
	settled := map[uint64]string{} // numbers: delivered, or why they are gone
	gone := func(q *Queue) {
		for _, l := range q.Losses() {
			for n := l.From; n <= l.To; n++ {
				if settled[n] == "" {
					settled[n] = l.Why
				}
			}
		}
	}
	thinned, crashes := int64(0), 0
	for appended := 0; appended < 9000; {
		for range 1 + rng.IntN(40) {
			if _, err := q.Append(Data, numbered(q.Given(Data)+1, 800+rng.IntN(800))); err != nil {
				t.Fatal(err)
			}
			appended++
		}
		mustSync(t, q)
		if used, err := usage(o.Dir); err != nil || used > o.Size {
			t.Fatalf("%d bytes of %d, %v", used, o.Size, err)
		}
		if rng.IntN(8) == 0 { // the link is up for a moment
			from := uint64(1)
			for range rng.IntN(30) {
				it, ok, err := q.Next(Data, from)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				if was := left[it.Seq]; was != nil && !bytes.Equal(was, it.Bytes) {
					t.Fatalf("number %d left with two contents", it.Seq)
				}
				left[it.Seq] = it.Bytes
				from = it.Seq + 1
				if rng.IntN(3) > 0 {
					seqs, thin := standsFor(it.Bytes)
					for _, n := range seqs {
						if !thin && n != it.Seq {
							t.Fatalf("number %d has the content of %d", it.Seq, n)
						}
					}
					q.Ack(Data, it.Seq)
					settled[it.Seq] = "delivered"
				}
			}
		}
		if appended > 2500*(crashes+1) {
			thinned += q.Stats().Thinned
			gone(q)
			crash(q)
			q = mustOpen(t, o)
			crashes++
		}
	}
	thinned += q.Stats().Thinned
	gone(q)
	if thinned == 0 || crashes == 0 {
		t.Fatalf("%d batches were thinned, %d crashes: nothing was tried", thinned, crashes)
	}
	held := map[uint64]bool{}
	raw, joined, covered := 0, 0, 0
	for from := uint64(1); ; {
		it, ok, err := q.Look(Data, from)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		seqs, thin := standsFor(it.Bytes)
		if thin {
			joined++
		} else {
			raw++
		}
		for _, n := range seqs {
			if n != it.Seq && settled[n] == "" {
				t.Fatalf("number %d came to stand in %d, and no loss says so", n, it.Seq)
			}
			held[n] = true
			covered++
		}
		held[it.Seq] = true
		from = it.Seq + 1
	}
	for n := uint64(1); n <= q.Given(Data); n++ {
		if !held[n] && settled[n] == "" {
			t.Fatalf("number %d of %d is neither held nor told", n, q.Given(Data))
		}
	}
	if joined == 0 {
		t.Error("no batch is joined")
	}
	for _, l := range q.Losses() {
		if l.Why == WhyFull {
			t.Errorf("dropped: %+v", l)
		}
	}
	t.Logf("%d crashes, %d thinned; holds %d raw and %d joined, which stand for %d in all", crashes, thinned, raw, joined, covered)
}
