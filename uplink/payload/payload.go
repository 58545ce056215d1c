// Package payload writes batches the way a cloud wants to read them. A
// shape is chosen by its name; encoding happens when a message is sent, so a
// changed shape needs no migration of what is stored.
//
// docs/payloads.md specifies every message this package writes, and
// docs/schema holds the JSON Schemas.
package payload

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// Version is the value of "v" in every message. New fields may appear
// within a version; a changed meaning is a new one.
const Version = 1

// Envelope says whose batch a message is and which.
type Envelope struct {
	Gateway string // id of the gateway
	Epoch   string // of the store: numbers compare within one epoch and lane
	Lane    string // "data" or "event"
	Seq     uint64 // number of the batch, from 1; not written in a tombstone
	Lo      uint64 // lowest number of the lane still held or yet to be sent
	Boot    uint32 // start counter of the gateway
	Sent    int64  // when the message was formed, Unix ms
}

// Tombstone tells of numbers that will never come, or of readings lost
// before they got a number (then From and To are 0).
type Tombstone struct {
	From, To uint64
	Batches  int64 // -1: unknown
	Readings int64 // -1: unknown
	T0, T1   int64 // time span of the readings, Unix ms; 0: unknown
	Why      string
}

// Resolve returns the true time of a stamp and whether that is certain, as
// clock.Clock.Resolve does.
type Resolve func(clock.Stamp) (t time.Time, sure bool)

// Dialect writes messages in one shape. It is not safe for concurrent use:
// it keeps the quoted names of the catalogs it has seen last.
type Dialect interface {
	// Data appends the message of a batch. Readings of points that the
	// catalog does not know are an error: they must not vanish. history
	// marks what is sent from the backlog.
	Data(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error)
	// Loss appends the message of a tombstone.
	Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error)
}

// Shapes returns the names New knows.
func Shapes() []string {
	return []string{"records", "columns", "packed", "influx", "senml-json", "senml-cbor"}
}

// New returns the dialect of a shape; "" is records.
func New(shape string) (Dialect, error) {
	switch shape {
	case "", "records":
		return &records{}, nil
	case "columns":
		return &columns{}, nil
	case "packed":
		return &packed{}, nil
	case "influx":
		return &influx{}, nil
	case "senml-json":
		return &senml{}, nil
	case "senml-cbor":
		return &senml{cbor: true}, nil
	}
	return nil, fmt.Errorf("payload: unknown shape %q, expected one of %s", shape, strings.Join(Shapes(), ", "))
}

// appendEnvelope writes the fields before the body, with the opening brace
// and without a comma at the end.
func appendEnvelope(dst []byte, e *Envelope) []byte {
	dst = append(dst, `{"v":`...)
	dst = strconv.AppendInt(dst, Version, 10)
	dst = append(dst, `,"gw":`...)
	dst = telemetry.AppendQuoted(dst, e.Gateway)
	dst = append(dst, `,"ep":`...)
	dst = telemetry.AppendQuoted(dst, e.Epoch)
	dst = append(dst, `,"lane":`...)
	dst = telemetry.AppendQuoted(dst, e.Lane)
	if e.Seq != 0 {
		dst = append(dst, `,"seq":`...)
		dst = strconv.AppendUint(dst, e.Seq, 10)
	}
	dst = append(dst, `,"lo":`...)
	dst = strconv.AppendUint(dst, e.Lo, 10)
	dst = append(dst, `,"boot":`...)
	dst = strconv.AppendUint(dst, uint64(e.Boot), 10)
	dst = append(dst, `,"sent":`...)
	return strconv.AppendInt(dst, e.Sent, 10)
}

// appendHead writes the envelope of a data message: what appendEnvelope
// writes, the catalog and how far its times can be trusted.
func appendHead(dst []byte, e *Envelope, catalog string, b *telemetry.Tables, resolve Resolve) []byte {
	dst = appendEnvelope(dst, e)
	dst = append(dst, `,"m":`...)
	dst = telemetry.AppendQuoted(dst, catalog)
	dst = append(dst, `,"clk":"`...)
	return append(append(dst, clockWord(b, resolve)...), '"')
}

// clockWord is ok when the stamps were taken with the clock set, corrected
// when they got their true time since, unsynced when one did not.
func clockWord(b *telemetry.Tables, resolve Resolve) string {
	if b.Synced {
		return "ok"
	}
	for i := range b.Len() {
		if _, sure := resolve(b.At(i)); !sure {
			return "unsynced"
		}
	}
	return "corrected"
}

// appendLoss is the tombstone of the JSON shapes.
func appendLoss(dst []byte, e *Envelope, t Tombstone) []byte {
	head := *e
	head.Seq = 0
	dst = appendEnvelope(dst, &head)
	dst = append(dst, `,"dropped":{"from":`...)
	dst = strconv.AppendUint(dst, t.From, 10)
	dst = append(dst, `,"to":`...)
	dst = strconv.AppendUint(dst, t.To, 10)
	dst = append(dst, `,"batches":`...)
	dst = strconv.AppendInt(dst, t.Batches, 10)
	dst = append(dst, `,"readings":`...)
	dst = strconv.AppendInt(dst, t.Readings, 10)
	dst = append(dst, `,"t0":`...)
	dst = strconv.AppendInt(dst, t.T0, 10)
	dst = append(dst, `,"t1":`...)
	dst = strconv.AppendInt(dst, t.T1, 10)
	dst = append(dst, `,"why":`...)
	dst = telemetry.AppendQuoted(dst, t.Why)
	return append(dst, "}}"...)
}

// names are the quoted names of one catalog. Of a point they take eight bytes
// beside its name: large catalogs have thousands.
type names struct {
	catalog *telemetry.Catalog
	hash    string
	devices [][]byte // "meter-1"
	number  []uint32 // by point number: which of devices it belongs to
	points  []byte   // "voltage_l1": one behind the other
	begins  []uint32 // by point number: where it begins there, and where the last one ends
}

// device returns the quoted name of a point's device.
func (n *names) device(point uint32) []byte { return n.devices[n.number[point]] }

// point returns the quoted name of a point, and a colon.
func (n *names) point(point uint32) []byte { return n.points[n.begins[point]:n.begins[point+1]] }

// nameCache keeps the names of the catalogs used last: the present one, and
// old ones while a backlog drains.
type nameCache struct {
	kept []*names
}

const keptNames = 4

func (c *nameCache) of(catalog *telemetry.Catalog) *names {
	for i, n := range c.kept {
		if n.catalog == catalog {
			if i > 0 {
				copy(c.kept[1:i+1], c.kept[:i])
				c.kept[0] = n
			}
			return n
		}
	}
	size := 0
	for i := range catalog.Points {
		size += len(catalog.Points[i].Name) + len(`"":`)
	}
	n := &names{catalog: catalog, hash: catalog.Hash(), points: make([]byte, 0, size),
		number: make([]uint32, len(catalog.Points)), begins: make([]uint32, len(catalog.Points)+1)}
	first := map[string]uint32{}
	for i := range catalog.Points {
		p := &catalog.Points[i]
		k, known := first[p.Device]
		if !known {
			k = uint32(len(n.devices))
			first[p.Device] = k
			n.devices = append(n.devices, telemetry.AppendQuoted(nil, p.Device))
		}
		n.number[i] = k
		n.points = append(telemetry.AppendQuoted(n.points, p.Name), ':')
		n.begins[i+1] = uint32(len(n.points))
	}
	c.kept = append(c.kept, nil)
	copy(c.kept[1:], c.kept)
	c.kept[0] = n
	if len(c.kept) > keptNames {
		c.kept = c.kept[:keptNames]
	}
	return n
}

// run returns where the run of points of one device ends that begins at from.
func (n *names) run(points []uint32, from int) int {
	to := from + 1
	for to < len(points) && n.number[points[to]] == n.number[points[from]] {
		to++
	}
	return to
}

// valid tells whether a reading has a value that JSON can write.
func valid(r *telemetry.Reading) bool {
	if r.Quality != telemetry.Good && r.Quality != telemetry.Range && r.Quality != telemetry.Thinned {
		return false
	}
	switch r.Value.Kind() {
	case telemetry.None:
		return false
	case telemetry.Float32, telemetry.Float64:
		f := r.Value.Float()
		return f-f == 0 // neither NaN nor infinite
	}
	return true
}

// quality returns the quality to report: a Good reading without a writable
// value, or one that was kept of such, is a fault of the device.
func quality(r *telemetry.Reading) telemetry.Quality {
	if (r.Quality == telemetry.Good || r.Quality == telemetry.Thinned) && !valid(r) {
		return telemetry.Fault
	}
	return r.Quality
}

// cause returns the cause to report beside quality.
func cause(r *telemetry.Reading) telemetry.Cause {
	unwritable := r.Quality == telemetry.Good && r.Cause == telemetry.CauseNone || r.Quality == telemetry.Thinned
	if unwritable && r.Value.Kind() != telemetry.None && !valid(r) {
		return telemetry.CauseNaN
	}
	return r.Cause
}

// check refuses a batch that the catalog does not describe.
func check(b *telemetry.Tables, c *telemetry.Catalog) error {
	if n := b.Highest(); b.Len() > 0 && uint64(n) >= uint64(len(c.Points)) { // an int may have 32 bits
		return fmt.Errorf("payload: point number %d is not in catalog %s of %d points", n, c.Hash(), len(c.Points))
	}
	return nil
}
