// Package capture is what passed on a line, as a file: one JSON object a
// line, first a header, then each piece of bytes with its direction and time
// to the microsecond. It can be read, cut and reviewed with any editor.
// [Show] says what the bytes mean, [Replay] answers as the recorded devices
// did, and [Against] tries a profile on them.
package capture

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Schema names the form of the file in its header.
const Schema = "tidegate.capture/1"

// Header is the first line of a file.
type Header struct {
	Schema  string   `json:"schema"`
	Bus     string   `json:"bus"`            // name of the line
	Connect string   `json:"connect"`        // where it is, as in the configuration
	Line    string   `json:"line,omitempty"` // speed and format of a serial line
	Mode    string   `json:"mode"`           // tap: both directions; listen: what was heard
	Started Time     `json:"started"`
	Version string   `json:"version"` // of tidegate
	Devices []Device `json:"devices,omitempty"`

	Cut bool `json:"-"` // of a file that was read: the end of its last line is missing, and that line left out
}

// Device is a device that the configuration names on the line.
type Device struct {
	Name    string `json:"name"`
	Unit    int    `json:"unit"`
	Profile string `json:"profile,omitempty"`
}

// Event is any other line.
type Event struct {
	T    Time   `json:"t"`
	Bus  string `json:"bus"`
	Dir  string `json:"dir"` // tx, rx, open, gone
	Hex  string `json:"hex,omitempty"`
	Lost uint64 `json:"lost,omitempty"` // events before this one that were not recorded
}

// Bytes returns the bytes of the event.
func (e *Event) Bytes() []byte {
	b, _ := hex.DecodeString(strings.ReplaceAll(e.Hex, " ", "")) // Read has tried it
	return b
}

// Time is a moment that is written with microseconds.
type Time struct{ time.Time }

// Now is this moment.
func Now() Time { return Time{time.Now()} }

// MarshalJSON writes 2006-01-02T15:04:05.000000Z.
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(t.UTC().Format(`"2006-01-02T15:04:05.000000Z"`)), nil
}

// Framing returns how frames are cut: rtu, ascii, tcp or serial.
func (h *Header) Framing() string {
	scheme, _, _ := strings.Cut(h.Connect, ":")
	switch scheme {
	case "tcp", "ascii":
		return scheme
	case "serial", "serial+tcp":
		return "serial"
	}
	return "rtu"
}

// Encode returns v, a Header or an Event, as a line of the file.
func Encode(v any) []byte {
	b, _ := json.Marshal(v) // neither holds what JSON cannot write
	return append(b, '\n')
}

// Hex writes bytes as events hold them.
func Hex(b []byte) string { return fmt.Sprintf("% x", b) }

// ErrDamaged is wrapped by the errors of Read.
var ErrDamaged = errors.New("the capture is damaged")

// Read reads a whole file. A last line that was cut off, as by a power
// failure, is left out (h.Cut); any other mistake is an error with the line's number.
func Read(r io.Reader) (h Header, events []Event, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		line, rerr := br.ReadBytes('\n')
		if rerr != nil && rerr != io.EOF {
			return h, events, rerr
		}
		cut := rerr == io.EOF
		if len(strings.TrimSpace(string(line))) > 0 {
			if h.Schema == "" {
				err = json.Unmarshal(line, &h)
				if err == nil && h.Schema != Schema {
					err = fmt.Errorf("its first line is no header with the schema %s", Schema)
				}
			} else {
				var e Event
				if err = json.Unmarshal(line, &e); err == nil {
					_, err = hex.DecodeString(strings.ReplaceAll(e.Hex, " ", ""))
				}
				if err == nil && e.Dir != "tx" && e.Dir != "rx" && e.Dir != "open" && e.Dir != "gone" {
					err = fmt.Errorf("%q is no direction", e.Dir)
				}
				if err == nil {
					events = append(events, e)
				}
			}
			if err != nil {
				if cut && h.Schema == Schema {
					h.Cut = true
					return h, events, nil
				}
				return h, events, fmt.Errorf("%w: line %d: %w", ErrDamaged, n, err)
			}
		}
		if cut {
			if h.Schema == "" {
				return h, events, fmt.Errorf("%w: the file is empty", ErrDamaged)
			}
			return h, events, nil
		}
	}
}
