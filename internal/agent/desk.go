package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"tidegate/buffer"
	"tidegate/driver"
	"tidegate/internal/command"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// auditFile is the record of the commands, in the directory of the buffer.
const auditFile = "audit.log"

const (
	deskInbox   = 256              // messages that wait to be judged
	deskBench   = 16               // commands that wait for their device
	deskPatient = 30 * time.Second // for one device
	writePause  = time.Second      // between two writes of a point, if the profile says nothing else
)

// desk takes the commands of the cloud. One goroutine judges and keeps the
// record, so that a slow device never holds up a refusal; another carries out
// what concerns devices, one after the other.
type desk struct {
	a       *Agent
	log     *slog.Logger
	in      chan taken
	work    chan command.Request
	done    chan outcome
	answers chan uplink.Answer
	written map[string]time.Time // by device/point
}

type taken struct {
	body     []byte
	retained bool
}

// outcome is what became of a command that was taken.
type outcome struct {
	r    command.Request
	code string
	msg  string
	say  answer
	do   uplink.Answer
}

// answer is the message on the topic ack; docs/commands.md specifies it.
type answer struct {
	V       int             `json:"v"`
	Gateway string          `json:"gw"`
	ID      string          `json:"id"`
	Op      string          `json:"op,omitempty"`
	State   string          `json:"state"` // done, failed, refused
	Code    string          `json:"code,omitempty"`
	Msg     string          `json:"msg,omitempty"`
	T       int64           `json:"t"` // Unix ms
	Device  string          `json:"dev,omitempty"`
	Point   string          `json:"point,omitempty"`
	Old     json.RawMessage `json:"old,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"` // read now, or read back after a write
	Quality string          `json:"q,omitempty"`     // of value, when it is not good
	Lane    string          `json:"lane,omitempty"`
	Lo      uint64          `json:"lo,omitempty"`  // lowest number still held
	Seq     uint64          `json:"seq,omitempty"` // last number given
	Boot    uint32          `json:"boot,omitempty"`
	Version string          `json:"version,omitempty"`
}

func newDesk(a *Agent) *desk {
	return &desk{a: a, log: a.log.With("part", "commands"), in: make(chan taken, deskInbox), work: make(chan command.Request, deskBench),
		done: make(chan outcome, deskBench+1), answers: make(chan uplink.Answer, deskInbox), written: map[string]time.Time{}}
}

// Take is called by the uplink.
func (d *desk) Take(body []byte, retained bool) {
	select {
	case d.in <- taken{slices.Clone(body), retained}:
	case <-time.After(time.Second):
		d.log.Warn("a command is dropped: too many come at once")
	}
}

// Answers is called by the uplink.
func (d *desk) Answers() <-chan uplink.Answer { return d.answers }

// run judges until ctx ends and the command under way is done. A record that
// cannot be kept takes no commands: what is not written down is not done.
func (d *desk) run(ctx context.Context) {
	from := d.a.cfg.Commander()
	o := command.Options{Gateway: d.a.cfg.Gateway.ID, File: d.a.beside(auditFile), Lockout: from.Lockout, Record: d.tell}
	var err error
	if from.CommandKey != "" {
		o.Key, err = command.ReadKey(from.CommandKey)
	}
	var book *command.Desk
	if err == nil {
		book, err = command.Open(o)
	}
	if err != nil {
		d.log.Error("commands are not taken", "error", err)
		for {
			select {
			case <-ctx.Done():
				return
			case <-d.in:
			}
		}
	}
	defer book.Close()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		for r := range d.work {
			d.done <- d.carryOut(ctx, r)
		}
	}()
	pending, warned := 0, map[string]time.Time{}
	defer func() {
		close(d.work)
		for ; pending > 0; pending-- {
			d.finish(book, <-d.done)
		}
		<-idle
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-d.done:
			pending--
			d.finish(book, o)
		case m := <-d.in:
			r, no, before, err := book.Take(m.body, m.retained, d.a.clock.Synced())
			switch {
			case err != nil:
				d.log.Error("a command is not taken: it could not be written down", "error", err)
				d.refused(&r, "audit", "it could not be written down")
			case no != nil && before != nil:
				d.send(uplink.Answer{Body: before})
			case no != nil:
				level := slog.LevelDebug
				if time.Since(warned[no.Code]) > time.Minute { // the record has them all
					level, warned[no.Code] = slog.LevelWarn, time.Now()
				}
				d.log.Log(ctx, level, "a command is refused", "id", r.ID, "op", r.Op, "code", no.Code, "why", no.Msg)
				d.refused(&r, no.Code, no.Msg)
			default:
				select {
				case d.work <- r:
					pending++
				default:
					d.finish(book, failed(r, command.CodeBusy, "too many commands at a time"))
				}
			}
		}
	}
}

// refused answers whoever can be answered: without an id nobody would know
// what the answer is for.
func (d *desk) refused(r *command.Request, code, msg string) {
	if r.ID == "" || len(r.ID) > 64 {
		return
	}
	d.send(uplink.Answer{Body: d.encode(answer{State: "refused", Code: code, Msg: msg}, r)})
}

func (d *desk) finish(book *command.Desk, o outcome) {
	o.say.State = "done"
	if o.code != "" {
		o.say.State, o.say.Code, o.say.Msg = "failed", o.code, o.msg
	}
	body := d.encode(o.say, &o.r)
	if err := book.Finish(&o.r, o.code, o.msg, body); err != nil {
		d.log.Error("the outcome of a command could not be written down", "id", o.r.ID, "error", err)
	}
	d.log.Info("command", "id", o.r.ID, "op", o.r.Op, "on", strings.Trim(o.r.Device+"/"+o.r.Point, "/"), "by", o.r.By, "state", o.say.State, "code", o.code)
	o.do.Body = body
	d.send(o.do)
}

// send hands an answer to the uplink. While the broker is away, old answers
// make way: who asks again gets the answer again.
func (d *desk) send(a uplink.Answer) {
	for {
		select {
		case d.answers <- a:
			return
		default:
		}
		select {
		case <-d.answers:
		default:
		}
	}
}

func (d *desk) encode(a answer, r *command.Request) []byte {
	a.V, a.Gateway, a.ID, a.Op, a.T = 1, d.a.cfg.Gateway.ID, r.ID, r.Op, time.Now().UnixMilli()
	a.Device, a.Point = r.Device, r.Point
	b, err := json.Marshal(a)
	if err != nil { // a value that is no JSON cannot be
		return []byte(`{"v":1,"state":"failed"}`)
	}
	return b
}

// tell delivers a line of the record as an event.
func (d *desk) tell(line []byte) {
	d.a.collect.emit(&telemetry.Group{At: d.a.clock.Stamp(), Readings: []telemetry.Reading{
		{Point: uint32(len(d.a.catalog.Points) - 1), Value: telemetry.TextValue(string(line))}}})
}

func failed(r command.Request, code, msg string) outcome {
	return outcome{r: r, code: code, msg: msg}
}

// carryOut does what a command asks of the gateway; what it asks of the
// session goes along with the answer.
func (d *desk) carryOut(ctx context.Context, r command.Request) (o outcome) {
	if !time.UnixMilli(r.Expires).After(time.Now()) {
		return failed(r, command.CodeExpired, "it expired while others were carried out")
	}
	o.r = r
	switch r.Op {
	case command.Write:
		return d.write(ctx, r)
	case command.Read:
		ctx, cancel := context.WithTimeout(ctx, deskPatient)
		defer cancel()
		reply, err := d.a.reader.Read(ctx, status.ReadRequest{Point: r.Device + "/" + r.Point})
		if err != nil {
			return failed(r, failureCode(err), err.Error())
		}
		for i := range reply.Values {
			if v := &reply.Values[i]; v.Point == r.Point {
				o.say.Value, o.say.Quality = v.Value, v.Quality
			}
		}
		if o.say.Quality == telemetry.Good.String() {
			o.say.Quality = ""
		}
	case command.Resend:
		lane := buffer.Data
		if r.Lane == buffer.Event.String() {
			lane = buffer.Event
		}
		o.say.Lane, o.say.Lo, o.say.Seq = r.Lane, d.a.commander().src.Lowest(r.Lane), d.a.queue.Given(lane)
		o.do.Lane, o.do.From, o.do.To = r.Lane, r.From, r.To
	case command.Meta:
		o.do.Meta = true
	case command.Rate:
		o.do.Rate = r.Rate
	case command.Ping:
		o.say.Boot, o.say.Version = d.a.queue.Boot(), d.a.opt.Version
	}
	return o
}

// write gives a point a value, as somebody at the gateway would, and not
// faster than the point allows.
func (d *desk) write(ctx context.Context, r command.Request) outcome {
	name := r.Device + "/" + r.Point
	pause := writePause
	if _, dev := d.a.reader.device(r.Device); dev != nil {
		for i := range dev.Map.Points {
			if p := &dev.Map.Points[i]; p.Name == r.Point && p.Write != nil && p.Write.Every > 0 {
				pause = p.Write.Every
			}
		}
	}
	if last, ok := d.written[name]; ok && time.Since(last) < pause {
		return failed(r, "too-fast", fmt.Sprintf("%s was written %v ago, and at most every %v is allowed", name, time.Since(last).Round(time.Millisecond), pause))
	}
	text := string(r.Value)
	var s string
	if json.Unmarshal(r.Value, &s) == nil {
		text = s
	}
	ctx, cancel := context.WithTimeout(ctx, deskPatient)
	defer cancel()
	reply, err := d.a.reader.Write(ctx, status.WriteRequest{Point: name, Value: text})
	if reply.Sent {
		d.written[name] = time.Now()
	}
	o := outcome{r: r}
	o.say.Old, o.say.Value = reply.Old, reply.Back
	if err != nil {
		o.code, o.msg = failureCode(err), err.Error()
	}
	return o
}

// failureCode is the code of an error of a line or of the reader.
func failureCode(err error) string {
	var f *status.Failure
	var e *driver.Error
	switch {
	case errors.As(err, &f):
		return f.Code
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "failed"
}
