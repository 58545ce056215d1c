package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// FaultKind says what goes wrong with an answer.
type FaultKind uint8

// The kinds of fault. What "on TCP" means is Modbus TCP; RTU frames over TCP
// behave as on a serial line.
const (
	None          FaultKind = iota
	Silent                  // no answer
	Late                    // the answer comes Delay later, and so does what this unit is asked meanwhile
	Garbled                 // one byte is another; on TCP, which has no checksum, a byte of the header
	Split                   // the answer comes in pieces with pauses of Delay (0: 5 ms)
	NoiseBefore             // 1 to 8 foreign bytes before the answer
	NoiseAfter              // 1 to 8 foreign bytes after the answer
	OtherUnit               // the answer carries the next unit's number, with a right checksum
	OtherFunction           // the answer carries another function code, with a right checksum
	OtherCount              // the answer holds one register or eight bits less than asked
	Echo                    // the request comes back first, as from a half-duplex adapter
	WrongID                 // on TCP another transaction number; no fault elsewhere
	Exception               // refused with exception Code (0: 4)
	Doubled                 // the answer comes again Delay later
	Short                   // the second half of the answer is missing
	Hangup                  // the connection is closed instead of an answer; Silent on a serial line
	PrimaryOnly             // no fault of an answer: see BusMeter
)

var faultNames = [...]string{"none", "silent", "late", "garbled", "split", "noise-before",
	"noise-after", "other-unit", "other-function", "other-count", "echo", "wrong-id",
	"exception", "doubled", "short", "hangup", "primary-only"}

// String returns the word for the kind, such as "late".
func (k FaultKind) String() string {
	if int(k) < len(faultNames) {
		return faultNames[k]
	}
	return "unknown"
}

// Fault is what goes wrong with one answer. The zero Fault is none.
type Fault struct {
	Kind  FaultKind
	Delay time.Duration // of Late, Doubled and Split
	Code  byte          // of Exception
}

// Request is what a Plan may look at.
type Request struct {
	N        int // number of this request at this slave, from 1
	Unit     byte
	Function byte
	Address  uint16
	Count    uint16
}

// Plan decides what goes wrong with a request. It is called under the
// slave's lock, once for each request to a unit that is there and on.
type Plan func(Request) Fault

// Random returns a plan that gives a share (0 to 1) of all requests one of
// the faults; the same seed gives the same faults to the same sequence.
func Random(seed uint64, share float64, faults ...Fault) Plan {
	rng := rand.New(rand.NewPCG(seed, 0x7469646567617465))
	return func(Request) Fault {
		if len(faults) == 0 || rng.Float64() >= share {
			return Fault{}
		}
		return faults[rng.IntN(len(faults))]
	}
}

// At returns a plan that gives the n-th request (from 1) its fault and all
// others none.
func At(faults map[int]Fault) Plan {
	return func(r Request) Fault { return faults[r.N] }
}

// Rule gives a share of the answers of one unit, or of all, a fault.
type Rule struct {
	Fault
	Unit  int     // 0: all
	Share float64 // 0 to 1
}

// ParseRule reads KIND[:VALUE][:SHARE][@UNIT], such as silent, late:300ms,
// garble:0.01, exception:2, exception:4:0.1 or silent@7. VALUE is a time for
// late, doubled and split, and a code for exception.
func ParseRule(s string) (Rule, error) {
	r := Rule{Share: 1}
	bad := func(format string, args ...any) (Rule, error) {
		return Rule{}, fmt.Errorf("fault %q: %s", s, fmt.Sprintf(format, args...))
	}
	what, unit, at := strings.Cut(s, "@")
	if at {
		n, err := strconv.Atoi(unit)
		if err != nil || n < 1 || n > 255 {
			return bad("%q is no unit", unit)
		}
		r.Unit = n
	}
	parts := strings.Split(what, ":")
	name := parts[0]
	if full, ok := map[string]string{"garble": "garbled", "off": "silent", "noise": "noise-before"}[name]; ok {
		name = full
	}
	k := slices.Index(faultNames[:], name)
	if k <= int(None) {
		return bad("the kinds are %s", strings.Join(faultNames[1:], ", "))
	}
	r.Kind = FaultKind(k)
	rest := parts[1:]
	var err error
	switch r.Kind {
	case Late, Doubled, Split:
		r.Delay = 300 * time.Millisecond
		if len(rest) > 0 {
			if r.Delay, err = time.ParseDuration(rest[0]); err != nil || r.Delay < 0 {
				return bad("%q is no time such as 300ms", rest[0])
			}
			rest = rest[1:]
		}
	case Exception:
		if len(rest) > 0 {
			n, err := strconv.ParseUint(rest[0], 10, 8)
			if err != nil || n == 0 {
				return bad("%q is no exception code", rest[0])
			}
			r.Code, rest = byte(n), rest[1:]
		}
	}
	if len(rest) > 0 {
		if r.Share, err = strconv.ParseFloat(rest[0], 64); err != nil || r.Share <= 0 || r.Share > 1 {
			return bad("%q is no share above 0 and up to 1", rest[0])
		}
		rest = rest[1:]
	}
	if len(rest) > 0 {
		return bad("%q is too much", strings.Join(rest, ":"))
	}
	return r, nil
}

// Rules returns a plan that gives each request the fault of the first rule
// that hits it; the same seed gives the same faults to the same sequence.
func Rules(seed uint64, rules ...Rule) Plan {
	rng := rand.New(rand.NewPCG(seed, 0x7469646567617465))
	return func(q Request) Fault {
		for _, r := range rules {
			if (r.Unit == 0 || r.Unit == int(q.Unit)) && (r.Share >= 1 || rng.Float64() < r.Share) {
				return r.Fault
			}
		}
		return Fault{}
	}
}
