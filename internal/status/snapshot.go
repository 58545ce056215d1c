// Package status is the agent's window: one Snapshot of how it is, and the
// unix socket through which the command line asks the running agent.
//
// Everything here is the wire form of that socket (HTTP and JSON). Fields
// are only ever added within one schema version.
package status

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
)

// Schema is the version of Snapshot's JSON form.
const Schema = "tidegate.status/1"

// The words for the state of anything.
const (
	OK      = "ok"
	Warn    = "warn"
	Fail    = "FAIL"
	Unknown = "unknown"
)

// Snapshot is the whole state of the agent at one instant. Ages are
// milliseconds; -1 means never.
type Snapshot struct {
	Schema  string        `json:"schema"`
	At      int64         `json:"at"`     // Unix ms, UTC
	Health  string        `json:"health"` // ok or degraded
	Reasons []Reason      `json:"reasons"`
	Gateway Gateway       `json:"gateway"`
	Uplink  Uplink        `json:"uplink"`            // the first one
	Uplinks []NamedUplink `json:"uplinks,omitempty"` // all, where there are several
	Buffer  Buffer        `json:"buffer"`
	Buses   []Bus         `json:"buses"`
	Clock   Clock         `json:"clock"`
	Config  Config        `json:"config"`
}

// Reason is one thing that is not well.
type Reason struct {
	Code    string `json:"code"`    // as in `tidegate help`: unit-silent, port-missing, dns, ...
	Subject string `json:"subject"` // a device, a bus, uplink, buffer, clock
	Since   int64  `json:"since"`   // Unix ms
	Text    string `json:"text"`
	Warning bool   `json:"warning,omitempty"` // announced in time: health stays as it is
}

// Gateway says who this is.
type Gateway struct {
	ID      string `json:"id"`
	Site    string `json:"site"`
	Version string `json:"version"`
	Boot    uint32 `json:"boot"`    // start counter
	Epoch   string `json:"ep"`      // store epoch
	Started int64  `json:"started"` // Unix ms
	Stopped string `json:"stopped"` // how the run before ended: first, clean, power
	PID     int    `json:"pid"`
}

// Uplink is the state of an MQTT session.
type Uplink struct {
	State     string `json:"state"` // connected, connecting, waiting, off
	URL       string `json:"url"`
	Since     int64  `json:"since"`       // Unix ms of the last change of state
	LastAckMS int64  `json:"last_ack_ms"` // age of the last PUBACK
	RTTMS     int64  `json:"rtt_ms"`
	Inflight  int    `json:"inflight"`
	Awaiting  int    `json:"awaiting,omitempty"` // batches that the broker has and that wait for the cloud's receipt
	CertDays  int    `json:"cert_days"`          // -1: no client certificate
	// Cert is the SHA-256 of the client certificate that the broker accepted
	// last, CertWarning why newer files are not used.
	Cert        string `json:"cert,omitempty"`
	CertWarning string `json:"cert_warning,omitempty"`

	Held      string `json:"held,omitempty"` // why batches wait though the broker is there
	Sessions  uint64 `json:"sessions"`
	Published uint64 `json:"published"` // messages, repeats included
	Acked     uint64 `json:"acked"`
	Repeats   uint64 `json:"repeats"`
	BytesIn   uint64 `json:"bytes_in"`
	BytesOut  uint64 `json:"bytes_out"`
	ErrorCode string `json:"error_code,omitempty"`
	Error     string `json:"error,omitempty"`
	Hint      string `json:"hint,omitempty"`
	Insecure  bool   `json:"insecure,omitempty"` // everything travels unencrypted to another machine
}

// NamedUplink is the state of one of several uplinks.
type NamedUplink struct {
	Name       string `json:"name"`
	Required   bool   `json:"required"`
	Batches    int64  `json:"batches"`    // that it has yet to deliver
	Tombstones int    `json:"tombstones"` // likewise
	Uplink
}

// Buffer is the state of the durable queue.
type Buffer struct {
	State        string `json:"state"`
	Batches      int64  `json:"batches"`
	Records      int64  `json:"records"` // readings that wait
	Events       int64  `json:"events"`  // batches that wait in the event lane
	Bytes        int64  `json:"bytes"`   // of all files
	LimitBytes   int64  `json:"limit_bytes"`
	MemoryBytes  int64  `json:"memory_bytes"` // not yet due on disk
	OldestMS     int64  `json:"oldest_ms"`    // age of the oldest reading that waits
	LostTotal    int64  `json:"lost_total"`   // readings dropped since the epoch began
	Tombstones   int    `json:"tombstones"`   // waiting to be delivered
	BytesWritten int64  `json:"bytes_written"`
	Commits      int64  `json:"commits"`
	Quarantined  int    `json:"quarantined"`
	Seq          uint64 `json:"seq"`       // last number given in the data lane
	EventSeq     uint64 `json:"event_seq"` // last number given in the event lane
	Error        string `json:"error,omitempty"`
}

// Bus is the state of one line with its devices.
type Bus struct {
	Name    string   `json:"name"`
	Connect string   `json:"connect"`
	State   string   `json:"state"` // open, gone, closed
	Since   int64    `json:"since"`
	Load    float64  `json:"load"`     // share of time in exchanges, 0..1
	ErrRate float64  `json:"err_rate"` // share of polls that failed, 0..1
	Stray   uint64   `json:"stray"`    // frames that answered nobody's question
	Code    string   `json:"error_code,omitempty"`
	Error   string   `json:"error,omitempty"`
	Lease   *Lease   `json:"lease,omitempty"` // nothing is polled: it is lent
	Devices []Device `json:"devices"`
}

// Lease says to whom a bus is lent, and until when at most.
type Lease struct {
	By    string `json:"by"`    // scan
	Since int64  `json:"since"` // Unix ms
	Until int64  `json:"until"`
}

// Device is the state of one instrument.
type Device struct {
	Name      string     `json:"name"`
	Unit      int        `json:"unit,omitempty"`
	Profile   string     `json:"profile,omitempty"`
	State     string     `json:"state"`  // ok, stale, init
	AgeMS     int64      `json:"age_ms"` // of the last good answer
	LimitMS   int64      `json:"limit_ms"`
	RTTMS     float64    `json:"rtt_ms"`
	Polls     uint64     `json:"polls"`
	Failed    uint64     `json:"failed"`
	Late      uint64     `json:"late"`
	Skipped   uint64     `json:"skipped"`
	Refused   []Refusal  `json:"refused,omitempty"` // points that it does not let itself be asked for
	LastError *LastError `json:"last_error,omitempty"`
}

// Refusal is a point that a device refuses, or is silent to.
type Refusal struct {
	Point string `json:"point"`
	Cause string `json:"cause"` // as readings carry it, such as illegal-address
	Place string `json:"place"` // such as "holding 8 (manual 40009)"
	Since int64  `json:"since"`
	Retry int64  `json:"retry"` // when it is asked again
}

// LastError is the present trouble of a device.
type LastError struct {
	Code  string `json:"code"`
	Text  string `json:"text"`
	Seen  string `json:"seen,omitempty"`
	Count uint64 `json:"count"` // in a row
	Since int64  `json:"since"`
}

// Clock is how far the time can be trusted.
type Clock struct {
	Synced bool  `json:"synced"`
	Uptime int64 `json:"uptime_ms"` // of the kernel
}

// Config names the configuration in force.
type Config struct {
	File      string `json:"file"`
	Hash      string `json:"hash"`
	LoadedAt  int64  `json:"loaded_at"`
	DiskNewer bool   `json:"disk_newer"`        // the file has changed since
	Refused   string `json:"refused,omitempty"` // why the changed file was not taken
}

// Value is the last reading of one point.
type Value struct {
	Device  string          `json:"dev"`
	Point   string          `json:"point"`
	Value   json.RawMessage `json:"value"` // null where there is none
	Unit    string          `json:"unit,omitempty"`
	Quality string          `json:"quality"`
	Cause   string          `json:"cause,omitempty"`
	At      int64           `json:"t"` // Unix ms, 0: never
	AgeMS   int64           `json:"age_ms"`
	Table   int             `json:"table,omitempty"`          // Modbus: where it stands, as ReadRequest
	Addr    int             `json:"wire_address,omitempty"`   // from 0
	Manual  int             `json:"manual_address,omitempty"` // 30001 for input 0
}

// ReadRequest asks for one point, or for raw registers of a bus.
type ReadRequest struct {
	Point string `json:"point,omitempty"` // device/point, or a device for all its points
	Bus   string `json:"bus,omitempty"`
	Unit  int    `json:"unit,omitempty"`
	Table int    `json:"table,omitempty"` // Modbus read function: 1 coils, 2 discrete, 3 holding, 4 input
	Addr  int    `json:"addr,omitempty"`  // wire address from 0
	Count int    `json:"count,omitempty"`
}

// ReadReply is what was read just now.
type ReadReply struct {
	Device string  `json:"dev,omitempty"`
	Bus    string  `json:"bus,omitempty"`
	Unit   int     `json:"unit,omitempty"`
	Table  int     `json:"table,omitempty"`
	Addr   int     `json:"addr"`
	Count  int     `json:"count"`
	Hex    string  `json:"hex,omitempty"`
	RTTMS  float64 `json:"rtt_ms"`
	Values []Value `json:"values,omitempty"`
}

// WriteRequest asks to give a point a value, or to write bare registers.
type WriteRequest struct {
	Point      string `json:"point,omitempty"` // device/point
	Value      string `json:"value,omitempty"` // as a person writes it
	Bus        string `json:"bus,omitempty"`
	Unit       int    `json:"unit,omitempty"`
	Table      int    `json:"table,omitempty"` // 1 coils, 3 holding
	Addr       int    `json:"addr,omitempty"`  // wire address from 0
	Count      int    `json:"count,omitempty"` // registers or coils
	Hex        string `json:"hex,omitempty"`   // registers in wire order, or packed coils
	DryRun     bool   `json:"dry_run,omitempty"`
	NoReadback bool   `json:"no_readback,omitempty"`
}

// WriteReply is what a write did, or would do.
type WriteReply struct {
	Device   string          `json:"dev,omitempty"`
	Point    string          `json:"point,omitempty"`
	Bus      string          `json:"bus,omitempty"`
	Unit     int             `json:"unit,omitempty"`
	Table    int             `json:"table,omitempty"`
	Addr     int             `json:"addr"`
	Count    int             `json:"count"`
	Function int             `json:"function,omitempty"` // Modbus function code
	Old      json.RawMessage `json:"old,omitempty"`      // values of points
	New      json.RawMessage `json:"new,omitempty"`
	Back     json.RawMessage `json:"back,omitempty"`
	Measure  string          `json:"measure,omitempty"` // unit of the value
	OldHex   string          `json:"old_hex,omitempty"`
	NewHex   string          `json:"new_hex,omitempty"`
	BackHex  string          `json:"back_hex,omitempty"`
	Allowed  string          `json:"allowed,omitempty"` // what may be written
	DryRun   bool            `json:"dry_run,omitempty"`
	Sent     bool            `json:"sent"`     // the request went out
	Verified bool            `json:"verified"` // it was read back and is what was written
	RTTMS    float64         `json:"rtt_ms,omitempty"`
}

// Batch is one batch that waits in the buffer.
type Batch struct {
	Lane   string  `json:"lane"`
	Seq    uint64  `json:"seq"`
	Count  int     `json:"count"`
	Bytes  int     `json:"bytes"`
	From   int64   `json:"from"`
	To     int64   `json:"to"`
	Values []Value `json:"values,omitempty"`
}

// Step is one step of the uplink test.
type Step struct {
	Uplink  string   `json:"uplink,omitempty"` // the name of one of several
	Broker  string   `json:"broker,omitempty"` // where there are several
	Name    string   `json:"name"`
	State   string   `json:"state"` // ok, warn, FAIL, unknown, -
	Text    string   `json:"text"`
	MS      float64  `json:"ms"`
	Failure *Failure `json:"failure,omitempty"`
}

// Failure is an error as a person reads it: what failed, with the name the
// user gave, and what was seen, what is likely and what to try.
type Failure struct {
	Code   string `json:"code"`
	What   string `json:"what"`
	Where  string `json:"where,omitempty"`
	Seen   string `json:"seen,omitempty"`
	Likely string `json:"likely,omitempty"`
	Try    string `json:"try,omitempty"`
	Note   string `json:"note,omitempty"` // what is well all the same
	Exit   int    `json:"exit,omitempty"` // exit code that fits, 0: 1
}

// Error returns "what [code]".
func (f *Failure) Error() string {
	if f.Code == "" {
		return f.What
	}
	return f.What + " [" + f.Code + "]"
}

// Text returns the failure in its full form, in 80 columns:
//
//	error: WHAT failed                                           [code]
//	  where:  config line or bus/device
//	  seen:   facts that were measured
//	  likely: causes that the facts allow
//	  try:    one command to run or one thing to touch
//	  note:   what is well all the same
func (f *Failure) Text() string {
	var b strings.Builder
	head := Wrap("error: "+f.What, 80, "    ")
	b.WriteString(head)
	if f.Code != "" {
		width := len(head) - strings.LastIndexByte(head, '\n') - 1
		if width+2+len(f.Code)+2 > 80 {
			b.WriteByte('\n')
			width = 0
		}
		b.WriteString(strings.Repeat(" ", max(2, 78-width-len(f.Code)-2)))
		b.WriteString("[" + f.Code + "]")
	}
	b.WriteByte('\n')
	for _, l := range []struct{ name, text string }{
		{"where:  ", f.Where}, {"seen:   ", f.Seen}, {"likely: ", f.Likely}, {"try:    ", f.Try}, {"note:   ", f.Note}} {
		if l.text != "" {
			text := strings.ReplaceAll(strings.TrimRight(l.text, "\n"), "\n", "\n          ")
			b.WriteString(Wrap("  "+l.name+text, 80, "          ") + "\n")
		}
	}
	return b.String()
}

// Wrap breaks the lines of text that are longer than width columns at blanks;
// what is moved to a new line stands behind indent. Words that are longer
// than a line stay whole.
func Wrap(text string, width int, indent string) string {
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		lines[i] = strings.TrimRight(lines[i], " ")
		line := []rune(lines[i])
		if len(line) <= width {
			continue
		}
		margin := 0 // a break among the leading blanks would be none
		for margin < len(line) && line[margin] == ' ' {
			margin++
		}
		cut := width
		for cut > margin && line[cut] != ' ' {
			cut--
		}
		if cut <= max(margin, len(indent)) {
			for cut = width; cut < len(line) && line[cut] != ' '; cut++ {
			}
		}
		rest := strings.TrimLeft(string(line[cut:]), " ")
		if rest == "" {
			continue
		}
		lines[i] = strings.TrimRight(string(line[:cut]), " ")
		lines = slices.Insert(lines, i+1, indent+rest)
	}
	return strings.Join(lines, "\n")
}

// API is what the socket offers; the agent implements it. Errors that are a
// *Failure reach the client as such.
type API interface {
	Snapshot() Snapshot
	// Values returns the last readings of the named devices or device/points, of all without names.
	Values(names []string) ([]Value, error)
	Read(ctx context.Context, r ReadRequest) (ReadReply, error)
	// Write writes to a device; who is the user at the other end of the socket.
	Write(ctx context.Context, who string, r WriteRequest) (WriteReply, error)
	// Scan looks for devices on a bus. It ends with ctx.
	Scan(ctx context.Context, q ScanRequest, tell func(ScanEvent)) error
	// Peek returns the n newest batches that wait, oldest first, with their readings.
	Peek(ctx context.Context, n int, device string) ([]Batch, error)
	// Export walks what waits in the buffer and removes nothing.
	Export(ctx context.Context, q ExportQuery, line func(ExportLine) error) error
	// CheckBuffer reads and decodes every batch that waits.
	CheckBuffer(ctx context.Context) (BufferCheck, error)
	// TestUplink tries the uplink of a name, or all.
	TestUplink(ctx context.Context, name string) ([]Step, error)
	// Capture calls line with each line of a capture of a bus, until ctx
	// ends; the first is its header. bus may be a device on it.
	Capture(ctx context.Context, bus string, line func([]byte) error) error
}
