package uplink

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"tidegate/internal/sim"
)

// This file judges what an edge node sent, statement by statement. It reads
// the bytes by itself and knows nothing of the encoder.

// judge collects which statements were looked at, and which were broken.
type judge struct {
	seen   map[string]int
	broken map[string][]string
}

func newJudge() *judge { return &judge{seen: map[string]int{}, broken: map[string][]string{}} }

func (j *judge) must(ok bool, what string, ids ...string) {
	for _, id := range ids {
		j.seen[id]++
		if !ok && len(j.broken[id]) < 3 {
			j.broken[id] = append(j.broken[id], what)
		}
	}
}

// rawField is one field of a protocol buffer.
type rawField struct {
	num  uint64
	wire uint64
	v    uint64
	body []byte
}

func rawFields(b []byte) ([]rawField, error) {
	var out []rawField
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("no tag")
		}
		b = b[n:]
		f := rawField{num: tag >> 3, wire: tag & 7}
		switch f.wire {
		case 0:
			if f.v, n = binary.Uvarint(b); n <= 0 {
				return nil, fmt.Errorf("no varint")
			}
		case 1:
			if n = 8; len(b) < n {
				return nil, fmt.Errorf("short")
			}
			f.v = binary.LittleEndian.Uint64(b)
		case 2:
			l, k := binary.Uvarint(b)
			if k <= 0 || l > uint64(len(b)-k) {
				return nil, fmt.Errorf("short")
			}
			f.body, n = b[k:k+int(l)], k+int(l)
		default:
			return nil, fmt.Errorf("wire type %d", f.wire)
		}
		b = b[n:]
		out = append(out, f)
	}
	return out, nil
}

type rawMetric struct {
	name                       string
	hasName, hasAlias, hasAt   bool
	alias                      uint64
	at                         int64
	typ                        uint64
	typed                      bool
	historical, null, hasValue bool
	valueField                 uint64
	bits                       uint64
	text                       string
	keys                       []string
	values                     [][]rawField
	odd                        bool // data set, template, bytes
	typeWire                   uint64
}

type rawPayload struct {
	at      int64
	hasAt   bool
	seq     int // -1: none
	metrics []rawMetric
}

func rawRead(b []byte) (p rawPayload, err error) {
	p.seq = -1
	fs, err := rawFields(b)
	if err != nil {
		return p, err
	}
	for _, f := range fs {
		switch f.num {
		case 1:
			p.at, p.hasAt = int64(f.v), true
		case 2:
			m, err := rawMetricOf(f.body)
			if err != nil {
				return p, err
			}
			p.metrics = append(p.metrics, m)
		case 3:
			p.seq = int(f.v)
		default:
			return p, fmt.Errorf("field %d in a payload", f.num)
		}
	}
	return p, nil
}

func rawMetricOf(b []byte) (m rawMetric, err error) {
	fs, err := rawFields(b)
	if err != nil {
		return m, err
	}
	for _, f := range fs {
		switch f.num {
		case 1:
			m.name, m.hasName = string(f.body), true
		case 2:
			m.alias, m.hasAlias = f.v, true
		case 3:
			m.at, m.hasAt = int64(f.v), true
		case 4:
			m.typ, m.typed, m.typeWire = f.v, true, f.wire
		case 5:
			m.historical = f.v == 1
		case 7:
			m.null = f.v == 1
		case 9:
			ps, err := rawFields(f.body)
			if err != nil {
				return m, err
			}
			for _, x := range ps {
				if x.num == 1 {
					m.keys = append(m.keys, string(x.body))
				} else {
					v, err := rawFields(x.body)
					if err != nil {
						return m, err
					}
					m.values = append(m.values, v)
				}
			}
		case 10, 11, 12, 13, 14, 15:
			m.hasValue, m.valueField, m.bits, m.text = true, f.num, f.v, string(f.body)
		case 16, 17, 18:
			m.odd = true
		default:
			return m, fmt.Errorf("field %d in a metric", f.num)
		}
	}
	return m, nil
}

// heard is one message of the node, taken apart.
type heardMessage struct {
	sim.Arrival
	kind, device string
	rawPayload
	bad error
}

func takeApart(a sim.Arrival) (heardMessage, bool) {
	h := heardMessage{Arrival: a}
	l := strings.Split(a.Topic, "/")
	if l[0] != "spBv1.0" || len(l) < 4 {
		return h, false
	}
	h.kind = l[2]
	if len(l) > 4 {
		h.device = l[4]
	}
	h.rawPayload, h.bad = rawRead(a.Payload)
	return h, true
}

// fieldOf is the field in which a data type travels.
var fieldOf = map[uint64]uint64{3: 10, 4: 11, 8: 11, 10: 13, 11: 14, 12: 15}

// sessions judges all messages of all connections, in their order. early are
// the devices that answer when a connection begins.
func (j *judge) sessions(all []sim.Arrival, group, node string, early []string, aliases, datatypes bool) {
	conn, seq := 0, -1
	var bdSeq uint64
	var node0, first, dead bool
	ids := map[string]string{}
	known := map[string]map[string]uint64{} // device ("" is the node) -> metric by name or alias
	types := map[string]uint64{}
	used := map[uint64]string{}
	names := map[string]string{}
	bornAt := map[string]bool{}
	for _, a := range all {
		h, ours := takeApart(a)
		if a.Conn != conn {
			conn, seq, node0, first, dead = a.Conn, -1, false, false, false
			known, bornAt, used = map[string]map[string]uint64{}, map[string]bool{}, map[uint64]string{}
			j.must(ours && h.kind == "NBIRTH", "first on the connection: "+a.Topic, "principles-birth-certificates-order", "message-flow-edge-node-birth-publish-connect")
		}
		if !ours {
			continue
		}
		what := fmt.Sprintf("%s of connection %d: %+v", a.Topic, a.Conn, h.rawPayload)
		j.topic(h, group, node, what)
		j.must(h.bad == nil, what+fmt.Sprint(h.bad), map[string][]string{
			"NBIRTH": {"message-flow-edge-node-birth-publish-nbirth-payload"},
			"DBIRTH": {"message-flow-device-birth-publish-dbirth-payload"}}[h.kind]...)
		if h.bad != nil {
			continue
		}
		same := ids[strings.ToLower(h.device)]
		j.must(same == "" || same == h.device, what, "case-sensitivity-sparkplug-ids")
		ids[strings.ToLower(h.device)] = h.device
		next := (seq + 1) % 256
		now := a.At.UnixMilli()
		fresh := h.hasAt && h.at <= now+5 && h.at > now-20_000
		if h.kind != "NDEATH" {
			j.must(h.seq >= 0 && h.seq <= 255, what, "payloads-sequence-num-always-included")
			j.must(h.seq == next || h.kind == "NBIRTH" && h.seq == 0, what, "payloads-sequence-num-incrementing")
			j.must(fresh, what, "payloads-timestamp-in-UTC")
			seq = h.seq
		}
		j.must(!dead, what+": after the NDEATH", "operational-behavior-edge-node-intentional-disconnect-ndeath")
		quiet := a.QoS == 0 && !a.Retained
		switch h.kind {
		case "NBIRTH":
			j.must(quiet, what, "topics-nbirth-mqtt")
			j.must(a.QoS == 0, what, "payloads-nbirth-qos", "message-flow-edge-node-birth-publish-nbirth-qos")
			j.must(!a.Retained, what, "payloads-nbirth-retain", "message-flow-edge-node-birth-publish-nbirth-retained")
			j.must(h.seq >= 0 && h.seq <= 255, what, "message-flow-edge-node-birth-publish-nbirth-payload-seq", "payloads-nbirth-seq", "payloads-sequence-num-req-nbirth")
			j.must(h.seq == 0, what, "topics-nbirth-seq-num")
			j.must(fresh, what, "topics-nbirth-timestamp", "payloads-nbirth-timestamp")
			again := node0
			node0, first, bornAt = true, true, map[string]bool{}
			known = map[string]map[string]uint64{"": {}}
			j.nbirth(h, what, again, &bdSeq)
		case "DBIRTH":
			j.must(quiet, what, "topics-dbirth-mqtt")
			j.must(a.QoS == 0, what, "payloads-dbirth-qos", "message-flow-device-birth-publish-dbirth-qos")
			j.must(!a.Retained, what, "payloads-dbirth-retain", "message-flow-device-birth-publish-dbirth-retained")
			j.must(node0, what, "message-flow-device-birth-publish-nbirth-wait", "message-flow-device-birth-publish-dbirth-match-edge-node-topic")
			j.must(h.seq == next, what, "message-flow-device-birth-publish-dbirth-payload-seq", "topics-dbirth-seq", "payloads-dbirth-seq-inc")
			j.must(h.seq >= 0, what, "payloads-dbirth-seq")
			j.must(fresh, what, "topics-dbirth-timestamp", "payloads-dbirth-timestamp")
			bornAt[h.device] = true
			known[h.device] = map[string]uint64{}
		case "NDATA", "DDATA":
			if first {
				all := true
				for _, name := range early {
					all = all && bornAt[name]
				}
				j.must(all, what+": data before the births", "payloads-dbirth-order")
			}
			first = false
			d := strings.ToLower(h.kind)
			j.must(quiet, what, "topics-"+d+"-mqtt")
			j.must(a.QoS == 0, what, "payloads-"+d+"-qos")
			j.must(!a.Retained, what, "payloads-"+d+"-retain")
			j.must(h.seq == next, what, "topics-"+d+"-seq-num", "payloads-"+d+"-seq-inc")
			j.must(h.seq >= 0, what, "payloads-"+d+"-seq")
			j.must(fresh, what, "topics-"+d+"-timestamp", "payloads-"+d+"-timestamp")
			j.must(len(h.metrics) > 0, what, "topics-"+d+"-payload")
			j.must(node0 && (h.kind == "NDATA" || bornAt[h.device]), what, "payloads-"+d+"-order")
		case "DDEATH":
			j.must(quiet, what, "topics-ddeath-mqtt")
			j.must(h.seq == next, what, "topics-ddeath-seq-num", "payloads-ddeath-seq-inc")
			j.must(h.seq >= 0, what, "payloads-ddeath-seq", "payloads-ddeath-seq-number")
			j.must(fresh, what, "payloads-ddeath-timestamp")
			j.must(bornAt[h.device], what, "operational-behavior-device-ddeath")
			delete(bornAt, h.device)
			delete(known, h.device)
		case "NDEATH":
			dead = true
			j.must(h.seq == -1, what, "topics-ndeath-seq", "payloads-ndeath-seq")
			j.must(len(h.metrics) == 1 && h.metrics[0].name == "bdSeq", what, "topics-ndeath-payload")
			j.must(len(h.metrics) == 1 && h.metrics[0].bits == bdSeq, what, "payloads-ndeath-bdseq")
		}
		j.metrics(h, what, known, types, used, names, aliases, datatypes)
	}
}

func (j *judge) topic(h heardMessage, group, node, what string) {
	l := strings.Split(h.Topic, "/")
	kinds := map[string]int{"NBIRTH": 4, "NDEATH": 4, "NDATA": 4, "DBIRTH": 5, "DDEATH": 5, "DDATA": 5}
	j.must(kinds[h.kind] != 0, what, "topic-structure")
	j.must(l[0] == "spBv1.0", what, "topic-structure-namespace-a")
	clean := func(s string) bool { return s != "" && !strings.ContainsAny(s, "+/#") && utf8.ValidString(s) }
	j.must(l[1] == group && clean(l[1]), what, "topic-structure-namespace-valid-group-id")
	j.must(l[3] == node && clean(l[3]), what, "topic-structure-namespace-valid-edge-node-id")
	if strings.HasPrefix(h.kind, "D") {
		j.must(len(l) == 5 && clean(h.device), what, "topic-structure-namespace-valid-device-id", "topic-structure-namespace-device-id-associated-message-types")
	} else {
		j.must(len(l) == 4, what, "topic-structure-namespace-device-id-non-associated-message-types")
	}
	j.must(len(l) == kinds[h.kind] && l[1] == group && l[3] == node, what, "topics-"+strings.ToLower(h.kind)+"-topic")
	switch h.kind {
	case "NBIRTH":
		j.must(l[1] == group && l[3] == node, what, "message-flow-edge-node-birth-publish-nbirth-topic")
	case "DBIRTH":
		j.must(l[1] == group && l[3] == node && len(l) == 5, what, "message-flow-device-birth-publish-dbirth-topic")
	}
}

func (j *judge) nbirth(h heardMessage, what string, again bool, bdSeq *uint64) {
	var bd, rb *rawMetric
	full := true
	for i := range h.metrics {
		m := &h.metrics[i]
		switch m.name {
		case "bdSeq":
			bd = m
		case "Node Control/Rebirth":
			rb = m
		}
		full = full && m.hasName && m.typed && (m.hasValue || m.null)
	}
	j.must(full, what, "topics-nbirth-metrics")
	j.must(bd != nil, what, "topics-nbirth-bdseq-included", "payloads-nbirth-bdseq")
	if bd != nil {
		j.must(bd.typ == 4 && bd.valueField == 11 && !bd.hasAlias, what, "message-flow-edge-node-birth-publish-nbirth-payload-bdSeq")
		if again {
			j.must(bd.bits == *bdSeq, what, "payloads-nbirth-bdseq-repeat", "operational-behavior-data-commands-rebirth-action-3")
		}
		*bdSeq = bd.bits
	}
	j.must(rb != nil, what, "operational-behavior-data-commands-rebirth-name")
	if rb != nil {
		j.must(rb.typ == 11 && rb.hasValue && rb.bits == 0, what, "topics-nbirth-rebirth-metric", "payloads-nbirth-rebirth-req", "operational-behavior-data-commands-rebirth-value")
		j.must(!rb.hasAlias, what, "operational-behavior-data-commands-rebirth-name-aliases")
		j.must(rb.typ == 11, what, "operational-behavior-data-commands-rebirth-datatype")
	}
}

func (j *judge) metrics(h heardMessage, what string, known map[string]map[string]uint64, types map[string]uint64, used map[uint64]string, names map[string]string, aliases, datatypes bool) {
	birth := strings.HasSuffix(h.kind, "BIRTH")
	if h.kind == "DBIRTH" {
		full := true
		for _, m := range h.metrics {
			full = full && m.hasName && m.typed && (m.hasValue || m.null)
		}
		j.must(full && len(h.metrics) > 0, what, "topics-dbirth-metrics")
	}
	last := int64(math.MinInt64)
	inOrder := true
	for _, m := range h.metrics {
		if !m.historical {
			inOrder = inOrder && m.at >= last
			last = m.at
		}
		j.must(!m.odd, what, "payloads-dataset-column-size", "payloads-dataset-column-num-headers", "payloads-dataset-types-num", "payloads-dataset-parameter-type-req",
			"payloads-template-definition-nbirth-only", "payloads-template-is-definition", "payloads-template-definition-ref", "payloads-template-instance-ref")
		key := h.device + "/" + m.name
		if birth {
			j.must(m.typed && m.typeWire == 0, what, "payloads-metric-datatype-req", "payloads-metric-datatype-value-type")
			_, listed := fieldOf[m.typ]
			j.must(listed, what, "payloads-metric-datatype-value")
			j.must(m.hasValue != m.null, what, map[string]string{"NBIRTH": "operational-behavior-data-publish-nbirth-values", "DBIRTH": "operational-behavior-data-publish-dbirth-values"}[h.kind])
			j.must(!m.hasAlias || m.hasName, what, "payloads-alias-birth-requirement")
			if m.hasAlias {
				j.must(used[m.alias] == "" || used[m.alias] == key, what+" alias of "+used[m.alias], "payloads-alias-uniqueness")
				used[m.alias] = key
				known[h.device]["#"+fmt.Sprint(m.alias)] = m.typ
			}
			known[h.device][m.name] = m.typ
			lower := strings.ToLower(key)
			j.must(names[lower] == "" || names[lower] == key, what, "case-sensitivity-metric-names")
			names[lower] = key
			for _, v := range m.values {
				j.must(len(v) > 0 && v[0].num == 1 && v[0].v != 0, what, "payloads-metric-propertyvalue-type-req")
			}
		}
		if h.kind == "NDATA" || h.kind == "DDATA" {
			k := m.name
			if m.hasAlias {
				k = "#" + fmt.Sprint(m.alias)
			}
			typ, ok := known[h.device][k]
			if h.kind == "NDATA" {
				j.must(ok, what, "topics-nbirth-metric-reqs", "operational-behavior-data-publish-nbirth")
			} else {
				j.must(ok, what+" lacks "+k, "topics-dbirth-metric-reqs", "operational-behavior-data-publish-dbirth")
				j.must(m.hasAlias == aliases && m.hasName != aliases, what, "payloads-alias-data-cmd-requirement")
			}
			j.must(m.hasName || m.hasAlias, what, "payloads-name-requirement")
			j.must(m.typed == datatypes, what, "payloads-metric-datatype-not-req")
			if ok && m.hasValue {
				j.must(m.valueField == fieldOf[typ], fmt.Sprintf("%s: %s is of type %d and travels in field %d", what, k, typ, m.valueField), "payloads-metric-datatype-value")
			}
			j.must(m.hasValue != m.null, what, "payloads-metric-datatype-value")
		}
		if h.kind != "NDEATH" {
			j.must(m.hasAt, what, "payloads-name-birth-data-requirement")
		}
		j.must(m.at > time.Now().Add(-24*time.Hour).UnixMilli() && m.at < time.Now().Add(time.Minute).UnixMilli(), what, "payloads-metric-timestamp-in-UTC")
		j.properties(m, what)
	}
	order := map[string]string{"NBIRTH": "operational-behavior-data-publish-nbirth-order", "NDATA": "operational-behavior-data-publish-nbirth-order",
		"DBIRTH": "operational-behavior-data-publish-dbirth-order", "DDATA": "operational-behavior-data-publish-dbirth-order"}[h.kind]
	if order != "" {
		j.must(inOrder, what, order)
	}
}

func (j *judge) properties(m rawMetric, what string) {
	if len(m.keys)+len(m.values) == 0 {
		return
	}
	j.must(len(m.keys) == len(m.values), what, "payloads-propertyset-keys-array-size", "payloads-propertyset-values-array-size")
	for i, k := range m.keys {
		if i >= len(m.values) || len(m.values[i]) == 0 {
			continue
		}
		v := m.values[i]
		j.must(v[0].v == 3 || v[0].v == 12, what, "payloads-metric-propertyvalue-type-value")
		if k == "Quality" {
			j.must(v[0].v == 3 && len(v) == 2 && v[1].num == 3, what, "payloads-propertyset-quality-value-type")
			q := v[1].v
			j.must(q == 0 || q == 192 || q == 500, what, "payloads-propertyset-quality-value-value")
		}
	}
}

// connects judges the CONNECTs: their wills and subscriptions.
func (j *judge) connects(b *sim.Script, group, node, host string) {
	hellos, vows := b.Hellos(), b.Promises()
	topic := "spBv1.0/" + group + "/NDEATH/" + node
	for i, v := range vows {
		what := fmt.Sprintf("CONNECT %d, will %+v", i+1, v)
		j.must(hellos[i].Clean && hellos[i].Version == 4, what, "principles-persistence-clean-session-311")
		j.must(v.Topic != "", what, "message-flow-edge-node-birth-publish-will-message", "payloads-ndeath-will-message")
		j.must(v.Topic == topic, what, "message-flow-edge-node-birth-publish-will-message-topic")
		j.must(v.QoS == 1, what, "message-flow-edge-node-birth-publish-will-message-qos", "payloads-ndeath-will-message-qos")
		j.must(!v.Retained, what, "message-flow-edge-node-birth-publish-will-message-will-retained", "payloads-ndeath-will-message-retain")
		p, err := rawRead(v.Payload)
		j.must(err == nil && p.seq == -1, what, "message-flow-edge-node-birth-publish-will-message-payload")
		ok := err == nil && len(p.metrics) == 1 && p.metrics[0].name == "bdSeq" && p.metrics[0].typ == 4
		j.must(ok && p.metrics[0].bits == uint64(i%256), what, "message-flow-edge-node-birth-publish-will-message-payload-bdSeq", "topics-nbirth-bdseq-increment")
	}
	for _, a := range b.Received() {
		if h, ok := takeApart(a); ok && h.kind == "NBIRTH" && h.bad == nil {
			same := false
			for _, m := range h.metrics {
				if m.name == "bdSeq" {
					will, _ := rawRead(vows[a.Conn-1].Payload)
					same = len(will.metrics) == 1 && will.metrics[0].bits == m.bits
				}
			}
			j.must(same, a.Topic, "topics-nbirth-bdseq-matching")
		}
	}
	asked := map[int]map[string]bool{}
	for _, s := range b.Subscriptions() {
		if asked[s.Conn] == nil {
			asked[s.Conn] = map[string]bool{}
		}
		asked[s.Conn][s.Filter] = s.QoS == 1 && s.After == 0
	}
	accepted, _ := b.Connections()
	for c := 1; c <= accepted; c++ {
		what := fmt.Sprintf("subscriptions of connection %d: %v", c, asked[c])
		j.must(asked[c]["spBv1.0/"+group+"/NCMD/"+node], what, "message-flow-edge-node-ncmd-subscribe")
		j.must(asked[c]["spBv1.0/"+group+"/DCMD/"+node+"/#"], what, "message-flow-device-dcmd-subscribe")
		if host != "" {
			j.must(asked[c]["spBv1.0/STATE/"+host], what, "operational-behavior-primary-application-state-with-multiple-servers-state-subs")
		}
	}
}
