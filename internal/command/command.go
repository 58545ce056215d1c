// Package command judges what a cloud asks of a gateway, sees to it that
// nothing is done twice, and keeps the record of all that was asked.
//
// A command is one JSON message; docs/commands.md specifies it. It is taken
// only if it is new, not expired, for this gateway, and signed where a key is
// configured. That it was taken is on disk before it is carried out: neither
// a repeat by the broker nor a crash nor a replay does it a second time.
package command

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Limits of a command.
const (
	maxSize  = 4 << 10          // bytes of a message
	maxID    = 64               // bytes of an id
	maxAhead = 24 * time.Hour   // how far ahead a command may expire: so long ids are remembered
	maxEarly = 30 * time.Second // how far ahead of ours the clock of who asks may be
)

// The operations.
const (
	Write  = "write"  // gives a point a value
	Read   = "read"   // reads a point now
	Resend = "resend" // sends batches that are still held again
	Meta   = "meta"   // says the metadata again
	Ping   = "ping"   // answers
	Rate   = "rate"   // limits the backlog, bytes per second, until the next start
)

// The codes of a refusal.
const (
	CodeMalformed = "malformed"     // no command, or not a whole one
	CodeTooLarge  = "too-large"     // more than 4 KiB
	CodeRetained  = "retained"      // kept by the broker: nobody asks for it now
	CodeForeign   = "foreign"       // for another gateway
	CodeUnsigned  = "unsigned"      // a key is configured and there is no signature
	CodeSignature = "bad-signature" // the signature does not fit the key and this gateway
	CodeOrder     = "reordered"     // the counter is not above that of the last one taken
	CodeClock     = "clock"         // the gateway's clock is not set, so nothing can expire
	CodeExpired   = "expired"       //
	CodeTooFar    = "exp-too-far"   // it would be valid for more than a day
	CodeReplayed  = "replayed"      // the id was taken before
	CodeLocked    = "locked"        // somebody at the gateway has locked commands out
	CodeBusy      = "busy"          // too many at a time
)

// Request is a command that was understood.
type Request struct {
	ID      string          `json:"id"`
	Op      string          `json:"op"`
	Gateway string          `json:"gw"`  // must be this one; may be missing while commands are not signed
	Count   uint64          `json:"n"`   // of signed ones: higher each time
	Expires int64           `json:"exp"` // Unix ms
	Asked   int64           `json:"t"`   // Unix ms; 0 for unknown. A write is not taken behind a later one to the same point
	By      string          `json:"by"`  // who asks, for the record
	Device  string          `json:"dev"`
	Point   string          `json:"point"`
	Value   json.RawMessage `json:"value"`
	Lane    string          `json:"lane"`
	From    uint64          `json:"from"`
	To      uint64          `json:"to"`
	Rate    *int64          `json:"rate"`
}

// signed is the form of a signed command: the command as text, so that the
// signature is over bytes and not over a meaning.
type signed struct {
	Command   string `json:"cmd"`
	Signature string `json:"sig"`
}

// Refusal says why a command is not taken.
type Refusal struct {
	Code string
	Msg  string
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Msg }

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

// Options say whose commands are taken.
type Options struct {
	Gateway string            // id of this gateway
	File    string            // the audit log
	Key     ed25519.PublicKey // who signs; nil: signatures are not asked for
	Lockout string            // a file: while it is there, everything is refused; "" for none
	// Record is told of each line of the audit log, without the line feed. It
	// may be nil, and must not keep the line.
	Record func(line []byte)
}

// Desk takes commands. It is not safe for concurrent use.
type Desk struct {
	o    Options
	log  auditLog
	seen map[string]*taken
}

// taken is a command that was taken.
type taken struct {
	expires int64
	on      string // device/point of a write
	asked   int64
	answer  []byte // what was answered, once that is known
}

// Open reads the audit log and goes on in it. The error is the file's.
func Open(o Options) (*Desk, error) {
	d := &Desk{o: o, seen: map[string]*taken{}}
	err := d.log.open(o.File, func(e *entry) {
		if e.What == whatTaken && e.Expires > time.Now().Add(-maxAhead).UnixMilli() {
			d.seen[e.ID] = &taken{expires: e.Expires, on: e.On, asked: e.Asked}
		}
	})
	d.log.record, d.log.live = o.Record, d.alive
	return d, err
}

// Close closes the audit log.
func (d *Desk) Close() error { return d.log.close() }

// alive are the ids that must be remembered in a new file of the log.
func (d *Desk) alive() (out []entry) {
	now := time.Now().UnixMilli()
	for id, t := range d.seen {
		if t.expires >= now {
			out = append(out, entry{What: whatTaken, ID: id, On: t.on, Expires: t.expires, Asked: t.asked, Code: "carried"})
		}
	}
	return out
}

// Take judges a message. Without a Refusal the command is to be carried out,
// and that it was taken is on disk; Finish must follow. A repeat of a command
// that was carried out since the start comes with the answer that it got.
// Every message leaves a line in the audit log. An error is the log's: the
// command is not taken then.
func (d *Desk) Take(body []byte, retained, synced bool) (r Request, no *Refusal, answer []byte, err error) {
	r, no = d.judge(body, retained, synced, time.Now())
	if no == nil {
		err = d.log.add(entry{What: whatTaken, ID: r.ID, Op: r.Op, On: on(&r), Value: r.Value, By: r.By, Expires: r.Expires, Asked: r.Asked, Count: r.Count}, true)
		if err != nil {
			return r, nil, nil, err
		}
		d.forget()
		d.seen[r.ID] = &taken{expires: r.Expires, on: on(&r), asked: r.Asked}
		return r, nil, nil, nil
	}
	if t := d.seen[r.ID]; no.Code == CodeReplayed && t != nil {
		answer = t.answer
	}
	return r, no, answer, d.Refuse(&r, no)
}

// Refuse writes a refusal into the audit log.
func (d *Desk) Refuse(r *Request, no *Refusal) error {
	return d.log.add(entry{What: whatRefused, ID: clip(r.ID), Op: clip(r.Op), On: clip(on(r)), By: clip(r.By), Code: no.Code, Msg: no.Msg}, false)
}

// Finish writes the outcome of a command that was taken, and remembers the
// answer for a repeat. code "" is success.
func (d *Desk) Finish(r *Request, code, msg string, answer []byte) error {
	if t := d.seen[r.ID]; t != nil {
		t.answer = answer
	}
	e := entry{What: whatDone, ID: r.ID, Op: r.Op, On: on(r), Code: code, Msg: msg}
	if code != "" {
		e.What = whatFailed
	}
	return d.log.add(e, true)
}

// forget drops ids that nothing can use any more: their commands expired.
func (d *Desk) forget() {
	if len(d.seen) < 1024 {
		return
	}
	now := time.Now().UnixMilli()
	for id, t := range d.seen {
		if t.expires < now {
			delete(d.seen, id)
		}
	}
}

func on(r *Request) string {
	if r.Point == "" {
		return r.Device
	}
	return r.Device + "/" + r.Point
}

// clip bounds what a stranger can write into the log.
func clip(s string) string {
	if len(s) > maxID {
		return s[:maxID]
	}
	return s
}

func (d *Desk) judge(body []byte, retained, synced bool, now time.Time) (r Request, no *Refusal) {
	if len(body) > maxSize {
		return r, refuse(CodeTooLarge, "%d bytes are too many for a command", len(body))
	}
	plain, no := d.open(body)
	if plain != nil {
		dec := json.NewDecoder(bytes.NewReader(plain))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil && no == nil {
			no = refuse(CodeMalformed, "it cannot be read: %v", err)
		} else if _, err := dec.Token(); err == nil && no == nil {
			no = refuse(CodeMalformed, "more follows after the command")
		}
	}
	if no != nil {
		return r, no
	}
	if retained {
		return r, refuse(CodeRetained, "the broker has kept it: nobody asks for it now")
	}
	if no := d.whole(&r); no != nil {
		return r, no
	}
	if d.o.Lockout != "" {
		if _, err := os.Lstat(d.o.Lockout); !errors.Is(err, fs.ErrNotExist) {
			return r, refuse(CodeLocked, "commands are locked out at the gateway")
		}
	}
	if !synced {
		return r, refuse(CodeClock, "the gateway's clock is not set")
	}
	switch exp := time.UnixMilli(r.Expires); {
	case !exp.After(now):
		return r, refuse(CodeExpired, "it expired %v ago", now.Sub(exp).Round(time.Millisecond))
	case exp.Sub(now) > maxAhead:
		return r, refuse(CodeTooFar, "it would be valid for more than a day")
	case time.UnixMilli(r.Asked).Sub(now) > maxEarly:
		return r, refuse(CodeTooFar, "it is from a time that has not come")
	}
	if d.seen[r.ID] != nil {
		return r, refuse(CodeReplayed, "%s was taken before", r.ID)
	}
	if r.Asked != 0 && r.Op == Write {
		for _, t := range d.seen {
			if t.on == on(&r) && t.asked >= r.Asked {
				return r, refuse(CodeOrder, "one that was asked later was taken")
			}
		}
	}
	if d.o.Key != nil && r.Count <= d.log.count {
		return r, refuse(CodeOrder, "its counter is %d, and %d was taken", r.Count, d.log.count)
	}
	return r, nil
}

// open returns the command inside a message. With a refusal it may be there
// as well, for the record.
func (d *Desk) open(body []byte) (plain []byte, no *Refusal) {
	var s signed
	err := json.Unmarshal(body, &s)
	if err != nil {
		return nil, refuse(CodeMalformed, "it is no JSON: %v", err)
	}
	if s.Command == "" {
		if d.o.Key != nil {
			return body, refuse(CodeUnsigned, "it is not signed")
		}
		return body, nil
	}
	plain = []byte(s.Command)
	if d.o.Key == nil {
		return plain, nil
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(s.Signature)
	if err != nil || s.Signature == "" {
		return plain, refuse(CodeUnsigned, "it is not signed")
	}
	if !ed25519.Verify(d.o.Key, Signed(d.o.Gateway, s.Command), sig) {
		return plain, refuse(CodeSignature, "the signature does not fit")
	}
	return plain, nil
}

// Signed is what the signature of a command is made over: a word, the id of
// the gateway and the command, each ended by a line feed but the last.
func Signed(gateway, command string) []byte {
	return []byte("tidegate command 1\n" + gateway + "\n" + command)
}

// whole checks that everything is there that the operation needs.
func (d *Desk) whole(r *Request) *Refusal {
	switch {
	case r.ID == "" || len(r.ID) > maxID:
		return refuse(CodeMalformed, "an id has 1 to %d bytes", maxID)
	case r.Gateway != "" && r.Gateway != d.o.Gateway, r.Gateway == "" && d.o.Key != nil:
		return refuse(CodeForeign, "it is for gateway %q", clip(r.Gateway))
	case r.Expires == 0:
		return refuse(CodeMalformed, "exp is missing")
	}
	missing := ""
	switch r.Op {
	case Write:
		if len(r.Value) == 0 || string(r.Value) == "null" {
			missing = "value"
		}
		fallthrough
	case Read:
		if r.Device == "" || r.Point == "" {
			missing = "dev and point"
		}
	case Resend:
		if r.Lane == "" {
			r.Lane = "data"
		}
		if r.From == 0 || r.To < r.From || r.Lane != "data" && r.Lane != "event" {
			missing = "from and to"
		}
	case Rate:
		if r.Rate == nil || *r.Rate < 0 {
			missing = "rate"
		}
	case Meta, Ping:
	default:
		return refuse(CodeMalformed, "unknown op %q", clip(r.Op))
	}
	if missing != "" {
		return refuse(CodeMalformed, "%s: %s is missing or wrong", r.Op, missing)
	}
	return nil
}

// ReadKey reads the public key of those who sign commands: PEM, as
// `openssl pkey -pubout` writes it.
func ReadKey(file string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p, _ := pem.Decode(b)
	if p == nil || p.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s holds no PEM block PUBLIC KEY", file)
	}
	k, err := x509.ParsePKIXPublicKey(p.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a key of another kind than Ed25519", file)
	}
	return key, nil
}
