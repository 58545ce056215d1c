package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tidegate/buffer"
	"tidegate/uplink"
)

// cursorsFile keeps what each of several uplinks has, in the directory of the
// buffer; docs/buffer-format.md specifies it.
const cursorsFile = "cursors.json"

// maxSpans bounds what is written of a lane of an uplink. What it has and is
// left out is sent again, or told as missed; what it has missed is joined.
const maxSpans = 512

// cursors is the content of the file.
type cursors struct {
	V       int           `json:"v"`
	Epoch   string        `json:"ep"`
	Boot    uint32        `json:"boot"` // of the run that wrote it
	Uplinks []savedCursor `json:"uplinks"`
}

type savedCursor struct {
	Name string `json:"name"`
	// Required: all that was let go of by this run was delivered to it or
	// told, as far as neither Missed nor Aside names it.
	Required bool                   `json:"required"`
	Has      map[string][][2]uint64 `json:"has"`
	Missed   map[string][][2]uint64 `json:"missed"`
	Aside    []uplink.Loss          `json:"aside,omitempty"` // tombstones of single batches
}

// encode writes the cursors as they go to disk: a checksum, a blank, JSON.
// The caller holds mu.
func (s *share) encode() []byte {
	c := cursors{V: 1, Epoch: s.queue.Epoch(), Boot: s.queue.Boot()}
	for _, m := range s.members {
		x := savedCursor{Name: m.name, Required: m.required && (s.begun || m.trusted), Has: map[string][][2]uint64{}, Missed: map[string][][2]uint64{}}
		for _, l := range lanes {
			has := m.cursors[l].has.Spans()
			if n := len(has); n > maxSpans {
				has = append(has[:maxSpans/2], has[n-maxSpans/2:]...)
			}
			var missed buffer.Numbers
			for _, r := range m.cursors[l].missed.Spans() {
				missed.Add(r[0], r[1])
			}
			for _, t := range m.telling {
				if t.Why == whyPassed && t.Lane == l.String() {
					for _, h := range m.cursors[l].has.Holes(t.From, t.To) {
						missed.Add(h[0], h[1])
					}
				}
			}
			lack := missed.Spans()
			if n := len(lack); n > maxSpans {
				lack[maxSpans-1][1], lack = lack[n-1][1], lack[:maxSpans]
			}
			x.Has[l.String()], x.Missed[l.String()] = has, lack
		}
		for _, t := range m.telling {
			if t.Why != whyPassed {
				x.Aside = append(x.Aside, t)
			}
		}
		c.Uplinks = append(c.Uplinks, x)
	}
	b, err := json.Marshal(c)
	if err != nil { // numbers and names: it cannot be
		return nil
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(b), b)
}

// save writes the cursors down. Trouble is logged when it begins, and tried again.
func (s *share) save() {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	b := s.encode()
	s.dirty, s.news = time.Time{}, false
	s.mu.Unlock()
	err := s.write(b)
	if err == nil {
		s.fail = false
		return
	}
	if !s.fail {
		s.fail = true
		s.log.Warn("what each uplink has cannot be written down; after a power cut more is sent again", "error", err)
	}
	s.mu.Lock()
	s.news = true
	s.touch()
	s.mu.Unlock()
}

// write makes b the content of the file in one step. The caller holds disk.
func (s *share) write(b []byte) error {
	f, err := os.OpenFile(s.file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.file); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(s.file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load begins where the file says. A file that cannot be used, or of another
// epoch, says nothing: what is held is sent again, what is not is told.
func (s *share) load() {
	c, err := readCursors(s.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		s.log.Warn("what each uplink has is not known: what is held is sent again, the rest is told as missed", "file", s.file, "error", err)
		return
	case c.Epoch != s.queue.Epoch():
		return
	}
	for _, m := range s.members {
		for _, x := range c.Uplinks {
			if x.Name != m.name {
				continue
			}
			m.trusted = m.required && x.Required && c.Boot+1 == s.queue.Boot()
			m.telling = x.Aside
			for _, l := range lanes {
				k := &m.cursors[l]
				for _, r := range x.Has[l.String()] {
					k.has.Add(r[0], min(r[1], s.queue.Given(l)))
				}
				for _, r := range x.Missed[l.String()] {
					s.eachDone(l, r[0], r[1], func(a, b uint64) {
						for _, h := range k.has.Holes(a, b) {
							k.missed.Add(h[0], h[1])
						}
					})
				}
			}
		}
	}
}

func readCursors(file string) (*cursors, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var sum uint32
	if _, err := fmt.Sscanf(string(b[:min(len(b), 9)]), "%08x ", &sum); err != nil || len(b) < 10 || b[len(b)-1] != '\n' || crc32.ChecksumIEEE(b[9:len(b)-1]) != sum {
		return nil, errors.New("it is damaged")
	}
	c := new(cursors)
	if err := json.Unmarshal(b[9:], c); err != nil {
		return nil, err
	}
	if c.V != 1 {
		return nil, fmt.Errorf("version %d was written by a newer tidegate", c.V)
	}
	return c, nil
}
