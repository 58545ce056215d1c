package account

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"strings"
)

type body uint8

const (
	other body = iota
	batch
	tombstone
	status
)

// message is what the book needs of any message.
type message struct {
	Gateway string           `json:"gw"`
	Epoch   string           `json:"ep"`
	Lane    string           `json:"lane"`
	RawSeq  json.RawMessage  `json:"seq"` // a number, in a status an object
	RawLo   json.RawMessage  `json:"lo"`
	Boot    uint32           `json:"boot"`
	Clock   string           `json:"clk"`
	State   string           `json:"state"`
	Dropped *dropped         `json:"dropped"`
	Records *[]record        `json:"records"`
	Columns *[]column        `json:"columns"`
	Said    *said            `json:"said"` // the commit of a batch whose readings went another way
	Points  *json.RawMessage `json:"points"`
	Test    bool             `json:"test"` // the echo of `tidegate uplink test`

	body        body
	Seq, Lo     uint64
	SeqOf, LoOf map[string]uint64

	opaque      []byte // body of a shape that is compared as it is; nil for others
	count       int64  // its readings
	first, last int64  // their times, Unix ms
}

type dropped struct {
	From     uint64 `json:"from"`
	To       uint64 `json:"to"`
	Batches  int64  `json:"batches"`
	Readings int64  `json:"readings"`
	T0       int64  `json:"t0"`
	T1       int64  `json:"t1"`
	Why      string `json:"why"`
}

type said struct {
	N  int64 `json:"n"`
	T0 int64 `json:"t0"`
	T1 int64 `json:"t1"`
}

type record struct {
	Device string                     `json:"dev"`
	T      int64                      `json:"t"`
	Values map[string]json.RawMessage `json:"values"`
	Q      map[string]string          `json:"q"`
}

type column struct {
	Device string                       `json:"dev"`
	T0     int64                        `json:"t0"`
	DT     []int64                      `json:"dt"`
	Values map[string][]json.RawMessage `json:"values"`
	Q      map[string][]*string         `json:"q"`
}

// parse reads a message and tells what it is.
func parse(payload []byte) (*message, error) {
	if m, ok, err := parsePacked(payload); ok {
		return m, err
	}
	trimmed := bytes.TrimSpace(payload)
	switch {
	case len(trimmed) == 0:
		return nil, ErrShape
	case trimmed[0] == '{':
		return parseJSON(payload)
	case trimmed[0] == '[':
		var pack []map[string]json.RawMessage
		if err := json.Unmarshal(payload, &pack); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrShape, err)
		}
		return parseSenML(pack)
	case payload[0]>>5 == 4: // an array in CBOR
		pack, err := readCBOR(payload)
		if err != nil {
			return nil, err
		}
		return parseSenML(pack)
	case bytes.HasPrefix(payload, []byte("tidegate_")):
		return parseInflux(payload)
	}
	return nil, ErrShape
}

func parseJSON(payload []byte) (*message, error) {
	m := &message{}
	if err := json.Unmarshal(payload, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrShape, err)
	}
	return m, m.settle()
}

func (m *message) number(raw json.RawMessage, name string, into *uint64) error {
	if err := json.Unmarshal(raw, into); err != nil || *into > maxNumber {
		return fmt.Errorf("account: %s is %.40q, not a number", name, raw)
	}
	return nil
}

// settle tells what the message is and checks its envelope.
func (m *message) settle() error {
	switch {
	case m.Dropped != nil:
		m.body = tombstone
	case m.Said != nil && m.Said.N < 0:
		return fmt.Errorf("%w: a commit of %d readings", ErrShape, m.Said.N)
	case m.Said != nil && m.opaque == nil:
		m.opaque, m.count, m.first, m.last = []byte{}, m.Said.N, m.Said.T0, m.Said.T1
		return m.settle()
	case m.Records != nil, m.Columns != nil, m.opaque != nil:
		m.body = batch
		if err := m.number(m.RawSeq, "seq", &m.Seq); err != nil || m.Seq == 0 {
			return fmt.Errorf("account: batch without a number (seq is %.40q)", m.RawSeq)
		}
	case m.State != "" && len(m.RawSeq) > 0 && m.RawSeq[0] == '{':
		return m.settleStatus()
	case m.State != "", m.Points != nil, m.Test:
		return nil
	default:
		return ErrShape
	}
	if m.Gateway == "" || m.Epoch == "" || m.Lane == "" || len(m.Gateway)+len(m.Epoch)+len(m.Lane) > 300 {
		return fmt.Errorf("account: envelope with gw %.40q, ep %.40q, lane %.40q", m.Gateway, m.Epoch, m.Lane)
	}
	if len(m.RawLo) > 0 {
		return m.number(m.RawLo, "lo", &m.Lo)
	}
	return nil
}

func (m *message) settleStatus() error {
	m.body = status
	if err := json.Unmarshal(m.RawSeq, &m.SeqOf); err != nil {
		return fmt.Errorf("account: seq of a status: %w", err)
	}
	if len(m.RawLo) > 0 {
		if err := json.Unmarshal(m.RawLo, &m.LoOf); err != nil {
			return fmt.Errorf("account: lo of a status: %w", err)
		}
	}
	if m.Epoch == "" || len(m.SeqOf) > 16 {
		return fmt.Errorf("account: status with epoch %.40q and %d lanes", m.Epoch, len(m.SeqOf))
	}
	return nil
}

// digest stands for the readings of a batch: equal for equal readings in any
// order and any shape but packed, whose body is compared as it is. Times are kept apart, because readings taken before the
// clock was set may be sent again with corrected times.
type digest struct {
	values, timed uint64
	ok            bool // the times were certain
	opaque        bool // the body was compared as it is
	readings      int64
	first, last   int64
}

func (d digest) same(o digest) bool {
	if d.opaque != o.opaque { // another shape: only the count can be compared
		return d.readings == o.readings
	}
	if d.ok && o.ok && d.timed != o.timed {
		return false
	}
	return d.values == o.values && d.readings == o.readings
}

func digestOf(seed maphash.Seed, m *message) (digest, error) {
	d := digest{ok: m.Clock == "" || m.Clock == "ok"}
	if m.opaque != nil {
		d.opaque, d.readings, d.values = true, m.count, maphash.Bytes(seed, m.opaque)
		if m.Clock != "unsynced" {
			d.first, d.last = m.first, m.last
		}
		return d, nil
	}
	var buf []byte
	add := func(device, point string, t int64, value json.RawMessage, quality string) {
		buf = append(append(append(buf[:0], device...), 0), point...)
		buf = append(append(buf, 0), quality...)
		buf = append(append(buf, 0), normal(value)...)
		h := maphash.Bytes(seed, buf)
		d.values += h
		d.timed += h * (uint64(t)*0x9E3779B97F4A7C15 | 1)
		d.readings++
		if m.Clock != "unsynced" && t > 0 {
			if d.first == 0 || t < d.first {
				d.first = t
			}
			d.last = max(d.last, t)
		}
	}
	if m.Records != nil {
		for _, r := range *m.Records {
			for p, v := range r.Values {
				add(r.Device, p, r.T, v, r.Q[p])
			}
			for p, q := range r.Q {
				if _, ok := r.Values[p]; !ok {
					add(r.Device, p, r.T, nil, q)
				}
			}
		}
	}
	if m.Columns != nil {
		for _, c := range *m.Columns {
			if err := c.each(add); err != nil {
				return digest{}, err
			}
		}
	}
	return d, nil
}

// each calls add for every reading of a table of columns.
func (c *column) each(add func(device, point string, t int64, value json.RawMessage, quality string)) error {
	times := make([]int64, len(c.DT))
	t := c.T0
	for i, dt := range c.DT {
		t += dt
		times[i] = t
	}
	for p, col := range c.Values {
		if len(col) != len(times) {
			return fmt.Errorf("account: column %.40q has %d values for %d times", p, len(col), len(times))
		}
	}
	for p, marks := range c.Q {
		if len(marks) != len(times) {
			return fmt.Errorf("account: q of column %.40q has %d words for %d times", p, len(marks), len(times))
		}
	}
	for p, col := range c.Values {
		for i, v := range col {
			quality := ""
			if q := c.Q[p]; q != nil && q[i] != nil {
				quality = *q[i]
			}
			if string(v) == "null" {
				v = nil
			}
			if v != nil || quality != "" {
				add(c.Device, p, times[i], v, quality)
			}
		}
	}
	for p, marks := range c.Q {
		if c.Values[p] != nil {
			continue
		}
		for i, q := range marks {
			if q != nil {
				add(c.Device, p, times[i], nil, *q)
			}
		}
	}
	return nil
}

// normal returns a number without the zeros that only show decimals, so that
// 230.10 and 230.1 are the same reading.
func normal(v json.RawMessage) string {
	s := string(v)
	if s == "" || s[0] != '-' && (s[0] < '0' || s[0] > '9') || strings.ContainsAny(s, "eE") {
		return s
	}
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "-0" {
		s = "0"
	}
	return s
}
