// Package sparkplug writes and reads payloads of Sparkplug B 3.0: protocol
// buffers with the field numbers and data types of chapter 6 of the
// specification (https://sparkplug.eclipse.org). It knows no topic and no
// session: those are the uplink's.
package sparkplug

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
)

// DataType says how the value of a metric is held.
type DataType uint32

// The data types. Those of 8, 16 and 32 bits are only read; UInt32 is never
// written because implementations disagree in which field it travels.
const (
	Unknown DataType = 0
	Int8    DataType = 1
	Int16   DataType = 2
	Int32   DataType = 3
	Int64   DataType = 4
	UInt8   DataType = 5
	UInt16  DataType = 6
	UInt32  DataType = 7
	UInt64  DataType = 8
	Float   DataType = 9
	Double  DataType = 10
	Boolean DataType = 11
	String  DataType = 12
)

// The values of the property Quality.
const (
	QualityBad   = 0
	QualityGood  = 192
	QualityStale = 500
)

// Value is the value of a metric: Bits for numbers, the two's complement of
// integers and the IEEE 754 form of a double, 0 or 1 for a Boolean; Text for
// a String.
type Value struct {
	Bits uint64
	Text string
}

// Number returns the value of a Double.
func Number(f float64) Value { return Value{Bits: math.Float64bits(f)} }

// Truth returns the value of a Boolean.
func Truth(b bool) Value {
	if b {
		return Value{Bits: 1}
	}
	return Value{}
}

// Metric is one metric of a payload.
type Metric struct {
	Name       string // "" where the alias stands for it
	Alias      uint64 // 0 for none
	Timestamp  int64  // Unix ms, UTC
	Type       DataType
	Typed      bool // the data type is written, as births demand
	Historical bool // not to be taken for the current value
	Null       bool // there is no value
	Value      Value
	Properties []Property
}

// Property says something about a metric: Quality is an Int32, others are texts.
type Property struct {
	Key  string
	Type DataType // Int32 or String
	Int  int32
	Text string
}

// The fields of the messages.
const (
	payloadTimestamp = 1
	payloadMetric    = 2
	payloadSeq       = 3

	metricName       = 1
	metricAlias      = 2
	metricTimestamp  = 3
	metricType       = 4
	metricHistorical = 5
	metricNull       = 7
	metricProperties = 9
	metricInt        = 10
	metricLong       = 11
	metricFloat      = 12
	metricDouble     = 13
	metricBoolean    = 14
	metricString     = 15

	propertiesKey   = 1
	propertiesValue = 2
	propertyType    = 1
	propertyInt     = 3
	propertyString  = 8
)

// The wire types of protocol buffers.
const (
	varint = 0
	fixed8 = 1
	length = 2
	fixed4 = 5
)

func appendTag(dst []byte, field, wire uint64) []byte {
	return binary.AppendUvarint(dst, field<<3|wire)
}

func appendVarint(dst []byte, field, v uint64) []byte {
	return binary.AppendUvarint(appendTag(dst, field, varint), v)
}

func appendText(dst []byte, field uint64, s string) []byte {
	dst = binary.AppendUvarint(appendTag(dst, field, length), uint64(len(s)))
	return append(dst, s...)
}

// appendNested writes a message of a length that is known when it is written.
func appendNested(dst []byte, field uint64, body func([]byte) []byte) []byte {
	dst = appendTag(dst, field, length)
	start := len(dst)
	dst = body(dst)
	n := len(dst) - start
	var prefix [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(prefix[:], uint64(n))
	dst = append(dst, prefix[:k]...)
	copy(dst[start+k:], dst[start:start+n])
	copy(dst[start:], prefix[:k])
	return dst
}

// AppendMetric appends a metric to a payload.
func AppendMetric(dst []byte, m *Metric) []byte {
	return appendNested(dst, payloadMetric, func(dst []byte) []byte {
		if m.Name != "" {
			dst = appendText(dst, metricName, m.Name)
		}
		if m.Alias != 0 {
			dst = appendVarint(dst, metricAlias, m.Alias)
		}
		dst = appendVarint(dst, metricTimestamp, uint64(m.Timestamp))
		if m.Typed {
			dst = appendVarint(dst, metricType, uint64(m.Type))
		}
		if m.Historical {
			dst = appendVarint(dst, metricHistorical, 1)
		}
		if m.Null {
			dst = appendVarint(dst, metricNull, 1)
		}
		if len(m.Properties) > 0 {
			dst = appendNested(dst, metricProperties, m.properties)
		}
		if m.Null {
			return dst
		}
		switch m.Type {
		case Int32:
			dst = appendVarint(dst, metricInt, m.Value.Bits&math.MaxUint32)
		case Int64, UInt64:
			dst = appendVarint(dst, metricLong, m.Value.Bits)
		case Double:
			dst = binary.LittleEndian.AppendUint64(appendTag(dst, metricDouble, fixed8), m.Value.Bits)
		case Boolean:
			dst = appendVarint(dst, metricBoolean, m.Value.Bits)
		case String:
			dst = appendText(dst, metricString, m.Value.Text)
		}
		return dst
	})
}

func (m *Metric) properties(dst []byte) []byte {
	for _, p := range m.Properties {
		dst = appendText(dst, propertiesKey, p.Key)
	}
	for _, p := range m.Properties {
		dst = appendNested(dst, propertiesValue, func(dst []byte) []byte {
			dst = appendVarint(dst, propertyType, uint64(p.Type))
			if p.Type == Int32 {
				return appendVarint(dst, propertyInt, uint64(uint32(p.Int)))
			}
			return appendText(dst, propertyString, p.Text)
		})
	}
	return dst
}

// AppendTime appends the time of a payload, Unix ms. The order of the fields
// of a payload does not matter.
func AppendTime(dst []byte, ms int64) []byte {
	return appendVarint(dst, payloadTimestamp, uint64(ms))
}

// AppendSeq appends the sequence number of a payload, 0 to 255.
func AppendSeq(dst []byte, seq uint8) []byte {
	return appendVarint(dst, payloadSeq, uint64(seq))
}

// ErrPayload is wrapped by every error of Decode.
var ErrPayload = errors.New("sparkplug: not a payload")

// Payload is what Decode reads of a message.
type Payload struct {
	Timestamp int64 // 0 for none
	Seq       int   // -1 for none
	Metrics   []Metric
}

// Decode reads a payload. What a gateway has no use for is passed over:
// metadata, properties, data sets, templates, bytes, and fields it does not
// know.
func Decode(src []byte) (Payload, error) {
	p := Payload{Seq: -1}
	err := fields(src, func(field uint64, v uint64, body []byte) error {
		switch {
		case field == payloadTimestamp:
			p.Timestamp = int64(v)
		case field == payloadSeq:
			p.Seq = int(v & math.MaxInt32)
		case field == payloadMetric && body != nil:
			m, err := decodeMetric(body)
			if err != nil {
				return err
			}
			p.Metrics = append(p.Metrics, m)
		}
		return nil
	})
	return p, err
}

func decodeMetric(src []byte) (Metric, error) {
	m := Metric{}
	err := fields(src, func(field uint64, v uint64, body []byte) error {
		switch field {
		case metricName:
			m.Name = string(body)
		case metricAlias:
			m.Alias = v
		case metricTimestamp:
			m.Timestamp = int64(v)
		case metricType:
			m.Type, m.Typed = DataType(v), true
		case metricHistorical:
			m.Historical = v != 0
		case metricNull:
			m.Null = v != 0
		case metricInt, metricLong, metricFloat, metricDouble, metricBoolean:
			m.Value.Bits = v
			if field == metricFloat {
				m.Value.Bits = math.Float64bits(float64(math.Float32frombits(uint32(v))))
			}
		case metricString:
			m.Value.Text = string(body)
		}
		return nil
	})
	return m, err
}

// AppendJSON appends the value as JSON: nothing when there is none, or when
// its type is no number, truth or text.
func (m *Metric) AppendJSON(dst []byte) []byte {
	b := m.Value.Bits
	switch {
	case m.Null:
	case m.Type == Int8:
		return strconv.AppendInt(dst, int64(int8(b)), 10)
	case m.Type == Int16:
		return strconv.AppendInt(dst, int64(int16(b)), 10)
	case m.Type == Int32:
		return strconv.AppendInt(dst, int64(int32(b)), 10)
	case m.Type == Int64:
		return strconv.AppendInt(dst, int64(b), 10)
	case m.Type >= UInt8 && m.Type <= UInt64:
		return strconv.AppendUint(dst, b, 10)
	case m.Type == Float || m.Type == Double:
		f, size := math.Float64frombits(b), 64
		if m.Type == Float {
			size = 32
		}
		if f-f == 0 {
			return strconv.AppendFloat(dst, f, 'f', -1, size)
		}
	case m.Type == Boolean:
		return strconv.AppendBool(dst, b != 0)
	case m.Type == String:
		text, _ := json.Marshal(m.Value.Text)
		return append(dst, text...)
	}
	return dst
}

// fields calls f for each field of a message: with its number, and its body
// if it has a length.
func fields(src []byte, f func(field, v uint64, body []byte) error) error {
	for len(src) > 0 {
		tag, n := binary.Uvarint(src)
		if n <= 0 || tag>>3 == 0 {
			return fmt.Errorf("%w: a field without a number", ErrPayload)
		}
		src = src[n:]
		var v uint64
		var body []byte
		switch tag & 7 {
		case varint:
			v, n = binary.Uvarint(src)
		case fixed8:
			if n = 8; len(src) >= 8 {
				v = binary.LittleEndian.Uint64(src)
			}
		case fixed4:
			if n = 4; len(src) >= 4 {
				v = uint64(binary.LittleEndian.Uint32(src))
			}
		case length:
			if v, n = binary.Uvarint(src); n > 0 {
				if v > uint64(len(src)-n) {
					return fmt.Errorf("%w: field %d is cut off", ErrPayload, tag>>3)
				}
				body = src[n : n+int(v)]
				n += int(v)
			}
		default:
			return fmt.Errorf("%w: wire type %d", ErrPayload, tag&7)
		}
		if n <= 0 || n > len(src) {
			return fmt.Errorf("%w: field %d is cut off", ErrPayload, tag>>3)
		}
		src = src[n:]
		if err := f(tag>>3, v, body); err != nil {
			return err
		}
	}
	return nil
}
