package telemetry

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// The packed forms write a column as its first number and the differences
// that follow, each in as many bits as it needs: a Rice code, with k chosen
// for the column (R. F. Rice, Some practical universal noiseless coding
// techniques, JPL 79-22, 1979). A float is a decimal number wherever that
// gives the same float back, else the integer that its bits are.
const (
	packFrom = 4    // cells; fewer are not worth the head
	packBits = 0xFF // decimals of a float that is its bits
	longest  = 16   // ones of a unary part; so many announce a number in full
	headDec  = 0x40 // bits of the head
	headStep = 0x80
	headK    = 0x3F
	newRun   = 16 // bits of count and form where the form changes
)

// packing is how the differences of a column are written.
type packing struct {
	k    byte
	step uint64 // expected of every difference
}

func zigzag(d uint64) uint64 { return d<<1 ^ uint64(int64(d)>>63) }

func lenUvarint(u uint64) int { return (bits.Len64(u|1) + 6) / 7 }

// pack chooses how nums are written, and tells how many bits that takes, all
// but the decimals.
func pack(nums []uint64) (p packing, size int) {
	first, last := nums[0], nums[len(nums)-1]
	p.k, size = rice(nums, 0)
	// What mostly goes one way may have a step.
	way := uint64(0)
	for i, x := range nums[1:] {
		way += abs(x - nums[i])
	}
	if 2*abs(last-first) > way {
		step := uint64(int64(last-first) / int64(len(nums)-1))
		if k, n := rice(nums, step); n+8*lenUvarint(zigzag(step)) < size {
			p, size = packing{k, step}, n+8*lenUvarint(zigzag(step))
		}
	}
	return p, 8 + 8*lenUvarint(zigzag(first)) + size
}

// rice chooses k, and tells how many bits the differences take, in whole bytes.
func rice(nums []uint64, step uint64) (k byte, size int) {
	var lengths [65]uint32
	sum := uint64(0)
	for i, x := range nums[1:] {
		z := zigzag(x - nums[i] - step)
		lengths[bits.Len64(z)]++
		sum += z
	}
	// Half of the differences are no longer than this.
	half, median := (len(nums)-1)/2, 0
	for n := int(lengths[0]); n <= half && median < 64; n += int(lengths[median]) {
		median++
	}
	mean := bits.Len64(sum / uint64(len(nums)-1))
	tried := [3]int{max(median-1, 0), max(median-2, 0), max(mean-1, 0)}
	size = math.MaxInt
	for i, way := range tried {
		if i > 0 && way == tried[i-1] {
			continue
		}
		if n := riceSize(nums, step, way); n < size {
			k, size = byte(way), n
		}
	}
	return k, (size + 7) &^ 7
}

// abs is that of a difference in two's complement.
func abs(d uint64) uint64 {
	if int64(d) < 0 {
		return -d
	}
	return d
}

func riceSize(nums []uint64, step uint64, k int) (n int) {
	for i, x := range nums[1:] {
		z := zigzag(x - nums[i] - step)
		if q := z >> k; q < longest {
			n += int(q) + 1 + k
		} else {
			n += longest + 6 + bits.Len64(z)
		}
	}
	return n
}

// appendPacked writes a column.
func appendPacked(dst []byte, nums []uint64, p packing, dec, lastDec byte) []byte {
	head := p.k
	if dec != lastDec {
		head |= headDec
	}
	if p.step != 0 {
		head |= headStep
	}
	dst = append(dst, head)
	if dec != lastDec {
		dst = append(dst, dec)
	}
	if p.step != 0 {
		dst = binary.AppendVarint(dst, int64(p.step))
	}
	dst = binary.AppendVarint(dst, int64(nums[0]))
	w := bitWriter{dst: dst}
	for i, x := range nums[1:] {
		z := zigzag(x - nums[i] - p.step)
		if q := z >> p.k; q < longest {
			w.put(1<<q-1, int(q)+1)
			w.put(z&(1<<p.k-1), int(p.k))
		} else {
			n := bits.Len64(z)
			w.put(1<<longest-1, longest)
			w.put(uint64(n-1), 6)
			w.put(z, n)
		}
	}
	return w.end()
}

// bitWriter appends bits, the least significant first.
type bitWriter struct {
	dst []byte
	acc uint64
	n   int // bits in acc, less than 8 between calls
}

// put appends the low n bits of x; the others are 0.
func (w *bitWriter) put(x uint64, n int) {
	if n > 32 {
		w.put(x&math.MaxUint32, 32)
		x, n = x>>32, n-32
	}
	w.acc |= x << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.dst = append(w.dst, byte(w.acc))
		w.acc >>= 8
	}
}

func (w *bitWriter) end() []byte {
	if w.n > 0 {
		return append(w.dst, byte(w.acc))
	}
	return w.dst
}

// decimals returns with how few decimals each of the floats is the one that is
// nearest to a decimal number. ok is false if that takes more than are tried.
func decimals(nums []uint64, kind Kind) (dec byte, ok bool) {
	most := byte(6)
	if kind == Float64 {
		most = 9
	}
	for i := 0; i < len(nums); {
		var m [1]uint64
		mantissas(m[:], nums[i:i+1], dec, kind)
		if abs(m[0]) < 1<<53 && decimalFloat(m[0], dec, kind) == nums[i] {
			i++
		} else if dec++; dec > most {
			return 0, false
		} else {
			i = 0
		}
	}
	return dec, true
}

// mantissas turns the bits of floats into decimal numbers without their point.
func mantissas(dst, nums []uint64, dec byte, kind Kind) {
	scale := math.Pow10(int(dec))
	for i, x := range nums {
		f := Value{kind: kind, num: x}.Float()
		dst[i] = uint64(int64(math.RoundToEven(f * scale)))
	}
}

// decimalFloat returns the bits of the float that is nearest to a mantissa
// with decimals.
func decimalFloat(mantissa uint64, dec byte, kind Kind) uint64 {
	f := float64(int64(mantissa)) / math.Pow10(int(dec))
	if kind == Float32 {
		return uint64(math.Float32bits(float32(f)))
	}
	return math.Float64bits(f)
}

// packed reads a column of a table and returns its decimals: those of the
// packed column before unless it tells others.
func (d *decoder) packed(h *head, col int, kind Kind, dec byte) byte {
	out := d.t.nums[h.cell+col*h.rows:][:h.rows]
	var marks []mark
	if h.mark >= 0 {
		marks = d.t.marks[h.mark+col*h.rows:][:h.rows]
	}
	head := d.byte()
	k := uint(head & headK)
	if head&headDec != 0 {
		dec = d.byte()
	}
	isFloat := kind == Float32 || kind == Float64
	if dec > MaxDecimals && !(isFloat && dec == packBits) {
		d.fail("bad decimals")
	}
	step := uint64(0)
	if head&headStep != 0 {
		step = uint64(d.varint())
	}
	x := uint64(d.varint())
	if d.err != nil {
		return 0
	}
	r := bitReader{src: d.src, at: d.at}
	first := true
	for i := range out {
		if len(marks) > 0 && marks[i].empty() {
			out[i] = x
			continue
		}
		if !first {
			x += uint64(unzigzag(r.rice(k))) + step
		}
		first = false
		out[i] = x
	}
	if r.short {
		d.fail("too short")
		return 0
	}
	d.at = r.at - int(r.n>>3)
	if !isFloat {
		return dec
	}
	for i, x := range out {
		if dec != packBits {
			out[i] = decimalFloat(x, dec, kind)
		} else if kind == Float32 && x > math.MaxUint32 {
			d.fail("bad float32")
		}
	}
	return dec
}

// bitReader reads bits, the least significant first. Behind the end it reads
// zeros and is short.
type bitReader struct {
	src   []byte
	at    int
	acc   uint64
	n     uint // bits in acc that were counted; those above are what stands in src
	short bool
}

// rice returns a number.
func (r *bitReader) rice(k uint) uint64 {
	if r.n < longest+1+k {
		r.fill()
	}
	q := uint(bits.TrailingZeros64(^r.acc))
	if n := q + 1 + k; q < longest && n <= r.n {
		x := uint64(q)<<k | r.acc>>(q+1)&(1<<k-1)
		r.acc >>= n
		r.n -= n
		return x
	} else if q < longest {
		r.drop(q + 1)
		return uint64(q)<<k | r.take(k)
	}
	r.drop(longest)
	return r.take(uint(r.take(6)) + 1)
}

// fill brings at least 56 bits into acc, or all there are.
func (r *bitReader) fill() {
	if r.at+8 <= len(r.src) {
		r.acc |= binary.LittleEndian.Uint64(r.src[r.at:]) << r.n
		r.at += int(63-r.n) >> 3
		r.n |= 56
		return
	}
	for r.n <= 56 && r.at < len(r.src) {
		r.acc |= uint64(r.src[r.at]) << r.n
		r.at++
		r.n += 8
	}
}

// drop passes over n bits, at most 32.
func (r *bitReader) drop(n uint) {
	if r.n < n {
		if r.fill(); r.n < n {
			r.short = true
			r.acc, r.n = 0, 0
			return
		}
	}
	r.acc >>= n
	r.n -= n
}

// take returns n bits, at most 64.
func (r *bitReader) take(n uint) uint64 {
	if n > 32 {
		low := r.take(32)
		return low | r.take(n-32)<<32
	}
	if r.n < n {
		r.fill()
	}
	x := r.acc & (1<<n - 1)
	r.drop(n)
	return x
}
