package status

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// ScanRequest asks for a scan of a bus. The zero values mean the defaults.
type ScanRequest struct {
	Bus       string   `json:"bus"`
	Lines     []string `json:"lines,omitempty"` // line settings to try, such as 9600 8E1
	IDs       []int    `json:"ids,omitempty"`
	TimeoutMS int64    `json:"timeout_ms,omitempty"`
	Fast      bool     `json:"fast,omitempty"`     // units 1 to 16 and those that profiles come with
	Deep      bool     `json:"deep,omitempty"`     // all units at all settings
	Identify  bool     `json:"identify,omitempty"` // also functions 43/14 and 17
	MBus      bool     `json:"mbus,omitempty"`     // meters on an M-Bus instead
	PauseMS   int64    `json:"pause_ms,omitempty"` // longest pause of the polls
}

// ScanEvent is one line of the stream that a scan yields: how far it is, what
// it has found until now whenever that is more than before, and at the end
// what it found or why it failed.
type ScanEvent struct {
	Text    string   `json:"text,omitempty"` // what begins, with Of; else what was found
	Done    int      `json:"done,omitempty"`
	Of      int      `json:"of,omitempty"`
	Found   *Scan    `json:"found,omitempty"`
	Result  *Scan    `json:"result,omitempty"`
	Failure *Failure `json:"failure,omitempty"` // beside Result where a part was found
}

// Scan is what a scan has found.
type Scan struct {
	Connect  string       `json:"connect"`
	Bus      string       `json:"bus,omitempty"` // its name in the agent's configuration
	Line     ScanLine     `json:"line"`
	MBus     bool         `json:"mbus,omitempty"` // the units are meters on an M-Bus
	Units    []ScanUnit   `json:"units"`
	Talkers  []ScanTalker `json:"talkers"` // devices that talk by themselves
	AnyID    bool         `json:"any_id"`  // the endpoint answers to every unit id
	Tried    int          `json:"settings_tried"`
	Asked    int          `json:"units_asked"`
	Requests uint64       `json:"requests"`
	Seconds  float64      `json:"seconds"`
	Cut      bool         `json:"cut"` // the time was over before the scan was
	// NotAsked are the settings at which meters on an M-Bus were called all at
	// once, and not at each of their primary addresses.
	NotAsked []ScanRest `json:"not_asked,omitempty"`
	// Interrupted is what was under way when the scan was broken off, with how
	// much of it was done; nil if it came to its end.
	Interrupted *ScanEvent `json:"interrupted,omitempty"`
}

// ScanRest is a setting, and how long it takes to ask each address at it.
type ScanRest struct {
	Line    string  `json:"line"`
	Seconds float64 `json:"seconds"`
}

// ScanLine is the line setting that answers and the noise on the line.
type ScanLine struct {
	Baud  int       `json:"baud,omitempty"` // 0: none answers, or a network
	Mode  string    `json:"mode,omitempty"` // 8E1
	Noise ScanNoise `json:"noise"`
}

// ScanNoise is what was heard while nobody sent.
type ScanNoise struct {
	Bytes   int    `json:"bytes"`
	Damaged uint32 `json:"damaged"` // characters, where the port counts them
	Breaks  uint32 `json:"breaks"`
}

// ScanUnit is a unit that answered.
type ScanUnit struct {
	ID       int               `json:"id"`                 // of a meter on an M-Bus -1: only its secondary address is known
	Address  string            `json:"address,omitempty"`  // secondary address of a meter
	Lines    []string          `json:"lines,omitempty"`    // line settings at which a meter on an M-Bus answers
	Answer   string            `json:"answer"`             // registers, exception N
	Profile  string            `json:"profile,omitempty"`  // the one that fits; "" if none does, or several
	Evidence []string          `json:"evidence,omitempty"` // what each of its reads said
	Ties     []string          `json:"ties,omitempty"`     // profiles that nothing read parts
	Rivals   []string          `json:"rivals,omitempty"`   // profiles that fit, with less reason
	RTTMS    float64           `json:"rtt_ms"`
	Slow     bool              `json:"slow,omitempty"` // it answered later than the timeout
	Identity map[string]string `json:"identity,omitempty"`
}

// ScanTalker is a device that was heard.
type ScanTalker struct {
	Line    string   `json:"line"`
	Frames  int      `json:"frames"`
	Profile string   `json:"profile,omitempty"` // the one that reads its frames; "" if several do
	Ties    []string `json:"ties,omitempty"`
}

// serveScan streams the events of a scan, one JSON object per line. When the
// client goes away, the context ends and with it the scan.
func serveScan(w http.ResponseWriter, r *http.Request, api API) {
	var q ScanRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&q); err != nil {
		reply(w, nil, &Failure{Code: "usage", What: "the request is no JSON: " + err.Error()})
		return
	}
	enc, out := json.NewEncoder(w), http.NewResponseController(w)
	begun := false
	put := func(e ScanEvent) {
		begun = true
		// A client that is gone ends the context; there is nobody to tell.
		if enc.Encode(e) == nil {
			_ = out.Flush()
		}
	}
	if err := api.Scan(r.Context(), q, put); err != nil {
		if !begun {
			reply(w, nil, err)
			return
		}
		f := new(Failure)
		if !errors.As(err, &f) {
			f = &Failure{What: err.Error()}
		}
		put(ScanEvent{Failure: f})
	}
}

// Scan has the agent scan a bus; tell is called for every event. It returns
// when the scan is over, with its Failure if it has one.
func (c *Client) Scan(ctx context.Context, q ScanRequest, tell func(ScanEvent)) error {
	resp, err := c.ask(ctx, "POST", "/scan", q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	over := false
	for lines.Scan() {
		var e ScanEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("the agent on %s sent what is no event of a scan: %w", c.path, err)
		}
		over = over || e.Result != nil
		tell(e)
		if e.Failure != nil {
			return e.Failure
		}
	}
	switch err := lines.Err(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("asking the agent on %s: %w", c.path, err)
	case !over:
		return fmt.Errorf("the agent on %s went away in the middle of the scan", c.path)
	}
	return nil
}
