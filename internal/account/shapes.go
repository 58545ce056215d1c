package account

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// parsePacked reads the shape packed: one line of JSON and the stored form,
// which is compared as it is. ok is false for any other message.
func parsePacked(payload []byte) (m *message, ok bool, err error) {
	head, body, found := bytes.Cut(payload, []byte{'\n'})
	if !found || !bytes.Contains(head, []byte(`"shift":`)) {
		return nil, false, nil
	}
	var p struct {
		N  int64 `json:"n"`
		T0 int64 `json:"t0"`
		T1 int64 `json:"t1"`
	}
	if err := json.Unmarshal(head, &p); err != nil {
		return nil, true, fmt.Errorf("%w: %w", ErrShape, err)
	}
	m = &message{opaque: append([]byte{}, body...), count: p.N, first: p.T0, last: p.T1}
	if err := json.Unmarshal(head, m); err != nil || p.N < 0 || p.N > math.MaxInt32 {
		return nil, true, fmt.Errorf("%w: head of a packed batch says %d readings", ErrShape, p.N)
	}
	if err := m.settle(); err != nil {
		return nil, true, err
	}
	return m, true, nil
}

// parseInflux reads line protocol: the lines tidegate_batch and tidegate_loss
// are the envelope.
func parseInflux(payload []byte) (*message, error) {
	m := &message{}
	var records []record
	for len(payload) > 0 {
		var line influxLine
		var err error
		if line, payload, err = cutInflux(payload); err != nil {
			return nil, err
		}
		switch line.measurement {
		case "tidegate_batch", "tidegate_loss":
			if m.Gateway != "" {
				return nil, fmt.Errorf("%w: two envelopes in one message", ErrShape)
			}
			line.envelope(m)
		case "tidegate":
			r := record{Device: line.tags["dev"], T: line.at / 1e6, Values: map[string]json.RawMessage{}, Q: map[string]string{}}
			for _, f := range line.fields {
				if point, ok := strings.CutSuffix(f.name, ".q"); ok {
					r.Q[point] = unquoted(f.value)
				} else if !strings.HasSuffix(f.name, ".cause") {
					r.Values[f.name] = f.value
				}
			}
			records = append(records, r)
		default:
			return nil, fmt.Errorf("%w: measurement %.40q", ErrShape, line.measurement)
		}
	}
	if m.Dropped == nil {
		m.Records = &records
	}
	return m, m.settle()
}

func unquoted(v json.RawMessage) string {
	var s string
	json.Unmarshal(v, &s)
	return s
}

type influxLine struct {
	measurement string
	tags        map[string]string
	fields      []influxField
	at          int64 // ns
}

type influxField struct {
	name  string
	value json.RawMessage // as JSON; integers without their i
}

// cutInflux takes the first line off.
func cutInflux(b []byte) (influxLine, []byte, error) {
	l := influxLine{tags: map[string]string{}}
	bad := func(what string) (influxLine, []byte, error) {
		return l, nil, fmt.Errorf("%w: line protocol: %s", ErrShape, what)
	}
	word := func(stop string) string {
		var out []byte
		for len(b) > 0 && strings.IndexByte(stop, b[0]) < 0 {
			if b[0] == '\\' && len(b) > 1 && strings.IndexByte(", =", b[1]) >= 0 {
				b = b[1:]
			}
			out, b = append(out, b[0]), b[1:]
		}
		return string(out)
	}
	take := func(c byte) bool {
		if len(b) == 0 || b[0] != c {
			return false
		}
		b = b[1:]
		return true
	}
	l.measurement = word(", ")
	for take(',') {
		k := word("=")
		if !take('=') {
			return bad("a tag without a value")
		}
		l.tags[k] = word(", ")
	}
	if !take(' ') {
		return bad("no fields")
	}
	for {
		f := influxField{name: word("= ")}
		if !take('=') {
			return bad("a field without a value")
		}
		if take('"') {
			var s []byte
			for len(b) > 0 && b[0] != '"' {
				if b[0] == '\\' && len(b) > 1 && (b[1] == '"' || b[1] == '\\') {
					b = b[1:]
				}
				s, b = append(s, b[0]), b[1:]
			}
			if !take('"') {
				return bad("a text without an end")
			}
			f.value, _ = json.Marshal(string(s))
		} else {
			f.value = json.RawMessage(strings.TrimSuffix(word(", \n"), "i"))
			if !json.Valid(f.value) {
				return bad("a field that is no value")
			}
		}
		l.fields = append(l.fields, f)
		if !take(',') {
			break
		}
	}
	if !take(' ') {
		return bad("no time")
	}
	at, err := strconv.ParseInt(word("\n"), 10, 64)
	if err != nil {
		return bad("no time")
	}
	l.at = at
	take('\n')
	return l, b, nil
}

// envelope fills in what the line says of the message.
func (l *influxLine) envelope(m *message) {
	m.Gateway, m.Lane = l.tags["gw"], l.tags["lane"]
	if l.measurement == "tidegate_loss" {
		m.Dropped = &dropped{}
	}
	for _, f := range l.fields {
		m.set(f.name, f.value)
	}
}

// set takes a field of the envelope or of a tombstone as JSON; what does not
// fit is found when the message is settled.
func (m *message) set(name string, v json.RawMessage) {
	switch name {
	case "gw":
		json.Unmarshal(v, &m.Gateway)
	case "ep":
		json.Unmarshal(v, &m.Epoch)
	case "lane":
		json.Unmarshal(v, &m.Lane)
	case "seq":
		m.RawSeq = v
	case "lo":
		m.RawLo = v
	case "boot":
		json.Unmarshal(v, &m.Boot)
	case "clk":
		json.Unmarshal(v, &m.Clock)
	}
	if d := m.Dropped; d != nil {
		for _, f := range [...]struct {
			name string
			into any
		}{{"from", &d.From}, {"to", &d.To}, {"batches", &d.Batches}, {"readings", &d.Readings}, {"t0", &d.T0}, {"t1", &d.T1}, {"why", &d.Why}} {
			if f.name == name {
				json.Unmarshal(v, f.into)
			}
		}
	}
}

// parseSenML reads a SenML pack: fields by their names, values as JSON.
func parseSenML(pack []map[string]json.RawMessage) (*message, error) {
	if len(pack) == 0 {
		return nil, ErrShape
	}
	m := &message{}
	if _, ok := pack[0]["from"]; ok {
		m.Dropped = &dropped{}
		m.Dropped.Why = unquoted(pack[0]["vs"])
	}
	for k, v := range pack[0] {
		m.set(k, v)
	}
	if m.Dropped != nil {
		return m, m.settle()
	}
	var records []record
	base, at := "", int64(0)
	for _, r := range pack[1:] {
		if v, ok := r["bn"]; ok {
			base = unquoted(v)
		}
		if v, ok := r["bt"]; ok {
			t, err := strconv.ParseFloat(string(v), 64)
			if err != nil {
				return nil, fmt.Errorf("%w: bt is %.40q", ErrShape, v)
			}
			at = int64(math.Round(t * 1000))
		}
		name, isQuality := strings.CutSuffix(base+unquoted(r["n"]), "/quality")
		device, point, ok := strings.Cut(strings.TrimPrefix(name, m.Gateway+"/"), "/")
		if !ok || strings.HasSuffix(point, "/cause") {
			continue
		}
		rec := record{Device: device, T: at, Values: map[string]json.RawMessage{}, Q: map[string]string{}}
		if isQuality {
			rec.Q[point] = unquoted(r["vs"])
			if n := len(records); n > 0 && records[n-1].Device == device && records[n-1].T == at && records[n-1].Values[point] != nil {
				records[n-1].Q[point] = rec.Q[point]
				continue
			}
		} else {
			for _, k := range []string{"v", "vs", "vb"} {
				if v, ok := r[k]; ok {
					rec.Values[point] = v
				}
			}
		}
		records = append(records, rec)
	}
	m.Records = &records
	return m, m.settle()
}

// cborNames are the fields of RFC 8428 by their numbers.
var cborNames = map[int64]string{-2: "bn", -3: "bt", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb"}

// cborReader reads as much of CBOR (RFC 8949) as a pack of ours needs.
type cborReader struct {
	b   []byte
	bad bool
}

// readCBOR turns a pack into fields by name with values as JSON.
func readCBOR(b []byte) ([]map[string]json.RawMessage, error) {
	r := &cborReader{b: b}
	major, n := r.head()
	if major != 4 || n > uint64(len(b)) {
		return nil, ErrShape
	}
	pack := make([]map[string]json.RawMessage, 0, n)
	for ; n > 0 && !r.bad; n-- {
		major, fields := r.head()
		if major != 5 || fields > 64 {
			return nil, ErrShape
		}
		m := map[string]json.RawMessage{}
		for ; fields > 0 && !r.bad; fields-- {
			key := r.value()
			var num int64
			name := unquoted(key)
			if json.Unmarshal(key, &num) == nil {
				name = cborNames[num]
			}
			m[name] = r.value()
		}
		pack = append(pack, m)
	}
	if r.bad || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: damaged CBOR", ErrShape)
	}
	return pack, nil
}

func (r *cborReader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return make([]byte, min(n, 8))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *cborReader) head() (major byte, n uint64) {
	c := r.take(1)[0]
	switch low := c & 31; {
	case low < 24:
		return c >> 5, uint64(low)
	case low == 24:
		return c >> 5, uint64(r.take(1)[0])
	case low == 25:
		return c >> 5, uint64(binary.BigEndian.Uint16(r.take(2)))
	case low == 26:
		return c >> 5, uint64(binary.BigEndian.Uint32(r.take(4)))
	case low == 27:
		return c >> 5, binary.BigEndian.Uint64(r.take(8))
	}
	r.bad = true
	return 0, 0
}

// value reads one item and returns it as JSON.
func (r *cborReader) value() json.RawMessage {
	if len(r.b) > 0 && r.b[0]>>5 == 7 {
		return r.simple()
	}
	switch major, n := r.head(); major {
	case 0:
		return strconv.AppendUint(nil, n, 10)
	case 1:
		return strconv.AppendInt(nil, -1-int64(n), 10)
	case 3:
		out, _ := json.Marshal(string(r.take(n)))
		return out
	case 6: // a decimal fraction: [exponent, mantissa]
		if kind, two := r.head(); n != 4 || kind != 4 || two != 2 {
			break
		}
		exponent, mantissa := string(r.value()), string(r.value())
		e, err := strconv.Atoi(exponent)
		if err != nil || e > 0 || e < -64 {
			break
		}
		return json.RawMessage(point(mantissa, -e))
	}
	r.bad = true
	return nil
}

func (r *cborReader) simple() json.RawMessage {
	switch r.take(1)[0] {
	case 0xF4:
		return json.RawMessage("false")
	case 0xF5:
		return json.RawMessage("true")
	case 0xFA:
		return float(float64(math.Float32frombits(binary.BigEndian.Uint32(r.take(4)))), 32)
	case 0xFB:
		return float(math.Float64frombits(binary.BigEndian.Uint64(r.take(8))), 64)
	}
	r.bad = true
	return nil
}

// float writes a float as the JSON shapes do.
func float(f float64, bits int) json.RawMessage {
	form := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e15) {
		form = 'e'
	}
	return strconv.AppendFloat(nil, f, form, -1, bits)
}

// point sets the decimal point of a mantissa.
func point(mantissa string, decimals int) string {
	sign := ""
	if strings.HasPrefix(mantissa, "-") {
		sign, mantissa = "-", mantissa[1:]
	}
	if pad := decimals + 1 - len(mantissa); pad > 0 {
		mantissa = strings.Repeat("0", pad) + mantissa
	}
	if decimals == 0 {
		return sign + mantissa
	}
	return sign + mantissa[:len(mantissa)-decimals] + "." + mantissa[len(mantissa)-decimals:]
}
