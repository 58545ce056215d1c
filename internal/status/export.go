package status

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// ExportQuery says what of the buffer is exported.
type ExportQuery struct {
	Since int64  // Unix ms; batches that end before it are left out, 0: none
	Until int64  // Unix ms; batches that begin at or after it are left out, 0: none
	Lane  string // data or event, "": both
}

// The kinds of ExportLine, in the order in which they come.
const (
	ExportHeadKind   = "head"       // once, first
	ExportBatchKind  = "batch"      // a batch with its message
	ExportBadKind    = "unreadable" // numbers that wait but cannot be read
	ExportLossKind   = "loss"       // a tombstone with its message
	exportEndKind    = "end"        // the stream is whole; the client keeps it to itself
	exportFailedKind = "failed"     // the stream ends here and is not whole
)

// ExportLine is one line of the stream that Export yields: what is known of
// a message, and the message as the uplink would send it.
type ExportLine struct {
	Kind     string      `json:"kind"`
	Lane     string      `json:"lane,omitempty"`
	From     uint64      `json:"from,omitempty"` // first and last number it speaks of
	To       uint64      `json:"to,omitempty"`
	Readings int64       `json:"readings,omitempty"` // -1: unknown
	T0       int64       `json:"t0,omitempty"`       // time span of the readings, Unix ms
	T1       int64       `json:"t1,omitempty"`
	Error    string      `json:"error,omitempty"`
	Head     *ExportHead `json:"head,omitempty"`
	Failure  *Failure    `json:"failure,omitempty"`

	Message []byte `json:"-"` // one line of JSON without a line end
}

// ExportHead says whose buffer it is and what waited when the export began.
type ExportHead struct {
	Gateway  string `json:"gw"`
	Epoch    string `json:"ep"`
	Boot     uint32 `json:"boot"`
	Batches  int64  `json:"batches"`
	Readings int64  `json:"readings"`
}

// Numbers is a run of numbers of a lane.
type Numbers struct {
	Lane  string `json:"lane"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Error string `json:"error,omitempty"`
}

// BufferCheck is what reading every waiting batch has shown.
type BufferCheck struct {
	Batches    int64        `json:"batches"` // read and decoded
	Readings   int64        `json:"readings"`
	Lanes      []LaneCheck  `json:"lanes"`
	Tombstones []Tombstone  `json:"tombstones"` // that wait to be delivered
	Unreadable []Numbers    `json:"unreadable"` // damage: the first of them
	Damaged    int64        `json:"damaged"`    // how many numbers are damaged or in a tombstone because of damage
	Buffer     BufferOnDisk `json:"disk"`
}

// LaneCheck is a lane in a BufferCheck.
type LaneCheck struct {
	Lane    string `json:"lane"`
	First   uint64 `json:"first"` // lowest and highest number that waits, 0: none
	Last    uint64 `json:"last"`
	Batches int64  `json:"batches"`
	// Gaps are numbers between First and Last that neither wait nor stand in
	// a waiting tombstone. The queue has them as delivered, or as told by a
	// tombstone that was delivered. At most the first 20.
	Gaps     []Numbers `json:"gaps"`
	GapCount int64     `json:"gap_count"` // how many numbers are in gaps
}

// Tombstone is a loss that waits to be told.
type Tombstone struct {
	Numbers
	Batches  int64  `json:"batches"`  // -1: unknown
	Readings int64  `json:"readings"` // -1: unknown
	Why      string `json:"why"`
}

// BufferOnDisk is the room the buffer takes.
type BufferOnDisk struct {
	Bytes       int64 `json:"bytes"`
	LimitBytes  int64 `json:"limit_bytes"`
	Quarantined int   `json:"quarantined"` // damaged files kept aside
}

// serveExport streams lines: the line's JSON, a tab, the message. Memory is
// one line; whoever reads slowly is waited for, with no lock held.
func serveExport(w http.ResponseWriter, r *http.Request, api API) {
	v := r.URL.Query()
	q := ExportQuery{Lane: v.Get("lane")}
	for _, p := range []struct {
		name string
		into *int64
	}{{"since", &q.Since}, {"until", &q.Until}} {
		if s := v.Get(p.name); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				reply(w, nil, &Failure{Code: "usage", What: p.name + " must be a time in milliseconds"})
				return
			}
			*p.into = n
		}
	}
	bw := bufio.NewWriterSize(w, 64<<10)
	begun := false
	put := func(l ExportLine) error {
		begun = true
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		bw.Write(b)
		bw.WriteByte('\t')
		bw.Write(l.Message)
		return bw.WriteByte('\n') // an error of any write stays in bw
	}
	err := api.Export(r.Context(), q, put)
	last := ExportLine{Kind: exportEndKind}
	if err != nil {
		if !begun {
			reply(w, nil, err)
			return
		}
		f := new(Failure)
		if !errors.As(err, &f) {
			f = &Failure{What: err.Error()}
		}
		last = ExportLine{Kind: exportFailedKind, Failure: f}
	}
	if put(last) == nil {
		bw.Flush()
	}
}

// Export calls line for every line of an export, in order. It returns nil
// only when the whole export came. Nothing of the line may be kept.
func (c *Client) Export(ctx context.Context, q ExportQuery, line func(ExportLine) error) error {
	v := url.Values{"since": {strconv.FormatInt(q.Since, 10)}, "until": {strconv.FormatInt(q.Until, 10)}, "lane": {q.Lane}}
	resp, err := c.ask(ctx, "GET", "/buffer/export?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	br := bufio.NewReaderSize(resp.Body, 64<<10)
	var raw []byte
	for {
		part, err := br.ReadSlice('\n')
		if raw = append(raw, part...); len(raw) > maxBody {
			return fmt.Errorf("the agent on %s sent a line of more than %d bytes", c.path, maxBody)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the agent on %s went away in the middle of the export: %w", c.path, err)
		}
		head, message, _ := bytes.Cut(raw[:len(raw)-1], []byte{'\t'})
		var l ExportLine
		if err := json.Unmarshal(head, &l); err != nil {
			return fmt.Errorf("the agent on %s sent what is no line of an export: %w", c.path, err)
		}
		l.Message = message
		switch {
		case l.Kind == exportEndKind:
			return nil
		case l.Kind == exportFailedKind && l.Failure != nil:
			return l.Failure
		}
		if err := line(l); err != nil {
			return err
		}
		raw = raw[:0]
	}
}

// CheckBuffer reads every waiting batch, in the agent.
func (c *Client) CheckBuffer(ctx context.Context) (v BufferCheck, err error) {
	return v, c.do(ctx, "GET", "/buffer/verify", nil, &v)
}
