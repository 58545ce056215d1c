// Package telemetry is the noun that every room of tidegate shares: a
// reading, what it belongs to, and the stored form of a batch of readings.
//
// Points travel as numbers. The number of a point is its place in a Catalog;
// the catalog is named by a hash, and every batch carries that hash, so an
// old batch stays readable after the configuration has changed.
package telemetry

import (
	"strconv"

	"tidegate/internal/clock"
)

// Quality says how far a value can be trusted.
type Quality uint8

// The qualities of a reading. Good, Range and Thinned carry a value.
const (
	Good    Quality = iota // as measured
	Stale                  // nothing new within the device's deadline
	Range                  // outside the plausible range; the value is kept
	Comm                   // no valid answer; the cause says why
	Fault                  // the device itself says that it has no value
	Init                   // nothing measured yet since start or warm-up
	Thinned                // one of the three that Thin kept of a minute; the cause says which
)

var qualityNames = [...]string{"good", "stale", "range", "comm", "fault", "init", "thinned"}

// String returns the word used in payloads: good, stale, range, comm, fault,
// init or thinned.
func (q Quality) String() string {
	if int(q) < len(qualityNames) {
		return qualityNames[q]
	}
	return "quality-" + strconv.Itoa(int(q))
}

// Cause says why a quality is not good.
type Cause uint16

// The causes. Exception codes of Modbus (1..255) are CauseException + code.
const (
	CauseNone           Cause = iota
	CauseTimeout              // no byte came
	CauseShort                // bytes came, but no whole frame
	CauseCRC                  // a frame came with a wrong checksum
	CauseGone                 // the port or connection is not there
	CauseResync               // thrown away: it might have been a late answer
	CauseMismatch             // frames came, none of them ours
	CauseIllegalAddress       // the device refuses this register
	CauseAbsent               // the unit does not answer; it is probed now and then
	CauseMarker               // the device sent its "not available" marker
	CauseNaN                  // the device sent a NaN or an infinity
	CauseNotYet               // no frame seen since start
	CauseBadText              // the text of the field is no number
	CauseMin                  // thinned: the lowest value of the minute
	CauseMax                  // thinned: the highest value of the minute
	CauseLast                 // thinned: the last value of the minute
	CauseException      Cause = 0x100
)

var causeNames = [...]string{"", "timeout", "short", "crc", "gone", "resync", "mismatch",
	"illegal-address", "absent", "marker", "nan", "not-yet", "bad-text", "min", "max", "last"}

// String returns the word used in payloads, such as "timeout" or
// "exception-4"; "" for CauseNone.
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	if c >= CauseException && c < CauseException+256 {
		return "exception-" + strconv.Itoa(int(c-CauseException))
	}
	return "cause-" + strconv.Itoa(int(c))
}

// Reading is one value of one point, or the reason why there is none.
type Reading struct {
	Value   Value
	Point   uint32 // number of the point in the catalog
	Cause   Cause
	Quality Quality
}

// Group is what one device said at one instant: readings of points of one
// device that share a time.
type Group struct {
	At       clock.Stamp
	Readings []Reading
}

// Class tells events from measurements.
type Class uint8

// The classes of a point.
const (
	ClassData  Class = iota
	ClassAlarm       // a change is an event: it goes to the event lane at once
)

// String returns data or alarm.
func (c Class) String() string {
	if c == ClassAlarm {
		return "alarm"
	}
	return "data"
}

// Point says what a number in a batch stands for.
type Point struct {
	Device   string `json:"dev"`
	Name     string `json:"point"`
	Unit     string `json:"unit,omitempty"`     // SenML or UCUM symbol, "" for none
	Kind     string `json:"kind"`               // gauge, counter, state, event, text
	Decimals int    `json:"decimals,omitempty"` // as configured; 0 also where not configured
	Class    Class  `json:"-"`
}
