package payload

import (
	"encoding/json"
	"strconv"
	"time"

	"tidegate/internal/telemetry"
)

// Device says how a device is read; part of the metadata message.
type Device struct {
	Name    string        // as in the catalog
	Profile string        // name of its profile, "" for none
	Driver  string        // such as "modbus-rtu", "" for unknown
	Every   time.Duration // period of polling, 0 for a device that talks by itself
}

// About is what the metadata message says beside the points.
type About struct {
	Gateway, Site, Version string
	Labels                 map[string]string
	Devices                []Device
	Sent                   int64 // Unix ms
}

type metaPoint struct {
	N        int    `json:"n"`
	Device   string `json:"dev"`
	Name     string `json:"point"`
	Unit     string `json:"unit,omitempty"`
	Kind     string `json:"kind"`
	Decimals int    `json:"decimals"`
	Class    string `json:"class,omitempty"`
}

type metaDevice struct {
	Device  string `json:"dev"`
	Profile string `json:"profile,omitempty"`
	Driver  string `json:"driver,omitempty"`
	Every   int64  `json:"every_ms,omitempty"`
}

// Meta returns the metadata message of a catalog: what each point number,
// name and unit of the messages with this hash in "m" means.
func Meta(a About, c *telemetry.Catalog) []byte {
	m := struct {
		V       int               `json:"v"`
		Gateway string            `json:"gw"`
		Site    string            `json:"site,omitempty"`
		Hash    string            `json:"m"`
		Sent    int64             `json:"sent"`
		Version string            `json:"version,omitempty"`
		Labels  map[string]string `json:"labels,omitempty"`
		Devices []metaDevice      `json:"devices,omitempty"`
		Points  []metaPoint       `json:"points"`
	}{V: Version, Gateway: a.Gateway, Site: a.Site, Hash: c.Hash(), Sent: a.Sent,
		Version: a.Version, Labels: a.Labels, Points: []metaPoint{}}
	for _, d := range a.Devices {
		m.Devices = append(m.Devices, metaDevice{d.Name, d.Profile, d.Driver, d.Every.Milliseconds()})
	}
	for i, p := range c.Points {
		kind := p.Kind
		if kind == "" {
			kind = "gauge"
		}
		class := ""
		if p.Class != telemetry.ClassData {
			class = p.Class.String()
		}
		m.Points = append(m.Points, metaPoint{i, p.Device, p.Name, p.Unit, kind, p.Decimals, class})
	}
	b, _ := json.Marshal(m) // holds nothing that JSON cannot write
	return b
}

// State is what the status message says of the gateway.
type State struct {
	State    string            `json:"state"` // online, offline, or lost (the will)
	Gateway  string            `json:"gw"`
	Boot     uint32            `json:"boot"`
	Epoch    string            `json:"ep"`
	Sent     int64             `json:"sent"`          // Unix ms; in the will: when the session began
	Lo       map[string]uint64 `json:"lo,omitempty"`  // by lane: lowest number still held or yet to be sent
	Seq      map[string]uint64 `json:"seq,omitempty"` // by lane: last number given
	Backlog  *Backlog          `json:"backlog,omitempty"`
	Version  string            `json:"version,omitempty"`
	Stop     string            `json:"stop,omitempty"`     // how the run before this one ended: first, clean, power
	Health   string            `json:"health,omitempty"`   // the agent's word on itself
	Insecure string            `json:"insecure,omitempty"` // "plain-text" as long as the link is not encrypted
}

// Backlog is how much waits to be sent or acknowledged.
type Backlog struct {
	Batches uint64 `json:"batches"`            // at most so many
	OldestT int64  `json:"oldest_t,omitempty"` // time of the oldest reading as stamped, Unix ms
}

// Status returns the status message.
func Status(s State) []byte {
	b, _ := json.Marshal(struct {
		V int `json:"v"`
		State
	}{Version, s})
	return b
}

// Said returns the commit of a batch whose readings went another way: the
// envelope, how many readings there were and when.
func Said(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	_, readings, first, last := span(b, resolve)
	dst = appendHead(dst, e, c.Hash(), b, resolve)
	dst = append(dst, `,"said":{"n":`...)
	dst = strconv.AppendInt(dst, int64(readings), 10)
	dst = append(dst, `,"t0":`...)
	dst = strconv.AppendInt(dst, first, 10)
	dst = append(dst, `,"t1":`...)
	dst = strconv.AppendInt(dst, last, 10)
	if history {
		dst = append(dst, `,"h":true`...)
	}
	return append(dst, "}}"...), nil
}

// Lost returns the tombstone as the shape records writes it.
func Lost(dst []byte, e *Envelope, t Tombstone) []byte { return appendLoss(dst, e, t) }
