package payload

import (
	"encoding/binary"
	"math"
	"strconv"

	"tidegate/internal/telemetry"
)

// senml is Sensor Measurement Lists (RFC 8428), as JSON or as CBOR: a record
// for each reading, named GATEWAY/DEVICE/POINT. The envelope stands in fields
// of our own in the first record; readers that do not know them pass over
// them, as section 4.4 of the RFC demands. A point that is not good has a
// text record POINT/quality, and POINT/cause where that is known.
type senml struct {
	cbor bool
}

func (d *senml) Data(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	p := openPack(dst, d.cbor)
	_, readings, _, _ := span(b, resolve)
	p.record()
	p.envelope(e)
	p.ownText("m", c.Hash())
	p.ownText("clk", clockWord(b, resolve))
	p.ownInt("count", int64(readings))
	if history {
		p.ownInt("h", 1)
	}
	p.key(senmlN)
	p.text(e.Gateway, "/tidegate/batch")
	p.key(senmlV)
	p.integer(int64(e.Seq))
	p.endRecord()
	device, at := "", int64(0)
	for i := range b.Len() {
		g := b.Group(i)
		t, _ := resolve(g.At)
		ms := t.UnixMilli()
		for k := range g.Readings {
			r := &g.Readings[k]
			pt := &c.Points[r.Point]
			if pt.Device != device || ms != at {
				p.base = true
				device, at = pt.Device, ms
			}
			p.reading(e.Gateway, pt, r, ms)
		}
	}
	return p.close(), nil
}

func (d *senml) Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error) {
	p := openPack(dst, d.cbor)
	p.record()
	head := *e
	head.Seq = 0
	p.envelope(&head)
	p.ownInt("from", int64(t.From))
	p.ownInt("to", int64(t.To))
	p.ownInt("batches", t.Batches)
	p.ownInt("readings", t.Readings)
	p.ownInt("t0", t.T0)
	p.ownInt("t1", t.T1)
	p.key(senmlN)
	p.text(e.Gateway, "/tidegate/dropped")
	p.key(senmlVS)
	p.text(t.Why, "")
	p.endRecord()
	return p.close(), nil
}

// senmlKey is a field of the RFC: its name in JSON, its number in CBOR
// (table 4 of RFC 8428).
type senmlKey struct {
	name string
	num  int8
}

var (
	senmlBN = senmlKey{"bn", -2}
	senmlBT = senmlKey{"bt", -3}
	senmlN  = senmlKey{"n", 0}
	senmlU  = senmlKey{"u", 1}
	senmlV  = senmlKey{"v", 2}
	senmlVS = senmlKey{"vs", 3}
	senmlVB = senmlKey{"vb", 4}
)

// pack is a SenML pack under construction.
type pack struct {
	cbor    bool
	dst     []byte
	start   int  // where the pack begins in dst
	records int  // so far
	fields  int  // of the record under construction
	head    int  // where that record begins
	base    bool // the next record tells the base name and time
}

func openPack(dst []byte, cbor bool) pack {
	p := pack{cbor: cbor, dst: dst, start: len(dst)}
	if cbor {
		p.dst = append(p.dst, 0x9A, 0, 0, 0, 0) // array of so many records: filled in by close
	} else {
		p.dst = append(p.dst, '[')
	}
	return p
}

func (p *pack) close() []byte {
	if p.cbor {
		binary.BigEndian.PutUint32(p.dst[p.start+1:], uint32(p.records))
		return p.dst
	}
	return append(p.dst, ']')
}

func (p *pack) record() {
	if !p.cbor && p.records > 0 {
		p.dst = append(p.dst, ',')
	}
	p.head, p.fields = len(p.dst), 0
	p.records++
	if p.cbor {
		p.dst = append(p.dst, 0xA0) // map of so many fields: filled in by endRecord
	} else {
		p.dst = append(p.dst, '{')
	}
}

// endRecord: no record has more than 23 fields, so the head is one byte.
func (p *pack) endRecord() {
	if p.cbor {
		p.dst[p.head] = 0xA0 | byte(p.fields)
	} else {
		p.dst = append(p.dst, '}')
	}
}

func (p *pack) key(k senmlKey) {
	p.fields++
	switch {
	case p.cbor && k.num < 0:
		p.dst = append(p.dst, 0x20|byte(-1-k.num))
	case p.cbor:
		p.dst = append(p.dst, byte(k.num))
	default:
		p.jsonKey(k.name)
	}
}

func (p *pack) jsonKey(name string) {
	if p.fields > 1 {
		p.dst = append(p.dst, ',')
	}
	p.dst = append(append(append(p.dst, '"'), name...), `":`...)
}

// ownKey begins a field of ours, which has no number in CBOR.
func (p *pack) ownKey(name string) {
	p.fields++
	if p.cbor {
		p.text(name, "")
	} else {
		p.jsonKey(name)
	}
}

func (p *pack) ownInt(name string, n int64) {
	p.ownKey(name)
	p.integer(n)
}

func (p *pack) ownText(name, s string) {
	p.ownKey(name)
	p.text(s, "")
}

func (p *pack) envelope(e *Envelope) {
	p.ownInt("tidegate", Version)
	p.ownText("gw", e.Gateway)
	p.ownText("ep", e.Epoch)
	p.ownText("lane", e.Lane)
	if e.Seq != 0 {
		p.ownInt("seq", int64(e.Seq))
	}
	p.ownInt("lo", int64(e.Lo))
	p.ownInt("boot", int64(e.Boot))
	p.ownInt("sent", e.Sent)
}

// reading writes the records of one reading.
func (p *pack) reading(gateway string, pt *telemetry.Point, r *telemetry.Reading, ms int64) {
	if valid(r) {
		p.record()
		p.bases(gateway, pt.Device, ms)
		p.key(senmlN)
		p.text(pt.Name, "")
		if pt.Unit != "" && r.Value.Kind() != telemetry.Text && r.Value.Kind() != telemetry.Bool {
			p.key(senmlU)
			p.text(pt.Unit, "")
		}
		p.value(r.Value)
		p.endRecord()
	}
	if q := quality(r); q != telemetry.Good {
		p.word(gateway, pt, ms, "/quality", q.String())
		if w := cause(r); w != telemetry.CauseNone {
			p.word(gateway, pt, ms, "/cause", w.String())
		}
	}
}

// word writes a text record about a point.
func (p *pack) word(gateway string, pt *telemetry.Point, ms int64, what, s string) {
	p.record()
	p.bases(gateway, pt.Device, ms)
	p.key(senmlN)
	p.text(pt.Name, what)
	p.key(senmlVS)
	p.text(s, "")
	p.endRecord()
}

func (p *pack) bases(gateway, device string, ms int64) {
	if !p.base {
		return
	}
	p.base = false
	p.key(senmlBN)
	p.baseName(gateway, device)
	p.key(senmlBT)
	p.seconds(ms)
}

// baseName writes the base name GATEWAY/DEVICE/.
func (p *pack) baseName(gateway, device string) {
	if p.cbor {
		p.cborHead(3<<5, uint64(len(gateway)+len(device)+2))
		p.dst = append(append(append(append(p.dst, gateway...), '/'), device...), '/')
		return
	}
	p.dst = telemetry.AppendQuoted(p.dst, gateway)
	p.dst[len(p.dst)-1] = '/'
	mark := len(p.dst)
	p.dst = telemetry.AppendQuoted(p.dst, device)
	p.dst = append(p.dst[:mark], p.dst[mark+1:]...) // without the opening quote
	p.dst = append(p.dst[:len(p.dst)-1], '/', '"')
}

// text writes a string of two parts.
func (p *pack) text(a, b string) {
	if p.cbor {
		p.cborHead(3<<5, uint64(len(a)+len(b)))
		p.dst = append(append(p.dst, a...), b...)
		return
	}
	p.dst = telemetry.AppendQuoted(p.dst, a)
	if b != "" { // a word of ours: nothing in it needs quoting
		p.dst = append(append(p.dst[:len(p.dst)-1], b...), '"')
	}
}

func (p *pack) integer(n int64) {
	switch {
	case !p.cbor:
		p.dst = strconv.AppendInt(p.dst, n, 10)
	case n < 0:
		p.cborHead(1<<5, uint64(-1-n))
	default:
		p.cborHead(0, uint64(n))
	}
}

// seconds writes a time: SenML counts seconds, with a fraction.
func (p *pack) seconds(ms int64) {
	if p.cbor {
		p.float64(float64(ms) / 1000)
		return
	}
	p.dst = telemetry.IntValue(ms, 3).AppendJSON(p.dst)
}

// value writes v, vb or vs.
func (p *pack) value(v telemetry.Value) {
	switch v.Kind() {
	case telemetry.Text:
		p.key(senmlVS)
		p.text(v.Text(), "")
		return
	case telemetry.Bool:
		p.key(senmlVB)
		if p.cbor && v.Bool() {
			p.dst = append(p.dst, 0xF5)
			return
		} else if p.cbor {
			p.dst = append(p.dst, 0xF4)
			return
		}
	default:
		p.key(senmlV)
	}
	switch {
	case !p.cbor:
		p.dst = v.AppendJSON(p.dst)
	case v.Kind() == telemetry.Float32:
		p.dst = append(p.dst, 0xFA)
		p.dst = binary.BigEndian.AppendUint32(p.dst, math.Float32bits(float32(v.Float())))
	case v.Kind() == telemetry.Float64:
		p.float64(v.Float())
	default:
		p.decimal(v)
	}
}

// decimal writes a scaled integer exactly: a decimal fraction (RFC 8949,
// 3.4.4) where it has decimals.
func (p *pack) decimal(v telemetry.Value) {
	if dec := v.Decimals(); dec > 0 {
		p.dst = append(p.dst, 0xC4, 0x82, 0x20|byte(dec-1))
	}
	if v.Kind() == telemetry.Uint {
		p.cborHead(0, v.Unsigned())
		return
	}
	p.integer(v.Mantissa())
}

func (p *pack) float64(f float64) {
	p.dst = append(p.dst, 0xFB)
	p.dst = binary.BigEndian.AppendUint64(p.dst, math.Float64bits(f))
}

// cborHead writes the head of a CBOR item: its major type and a number.
func (p *pack) cborHead(major byte, n uint64) {
	switch {
	case n < 24:
		p.dst = append(p.dst, major|byte(n))
	case n <= math.MaxUint8:
		p.dst = append(p.dst, major|24, byte(n))
	case n <= math.MaxUint16:
		p.dst = binary.BigEndian.AppendUint16(append(p.dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		p.dst = binary.BigEndian.AppendUint32(append(p.dst, major|26), uint32(n))
	default:
		p.dst = binary.BigEndian.AppendUint64(append(p.dst, major|27), n)
	}
}
