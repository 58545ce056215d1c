package driver

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/driver/obis"
	"tidegate/internal/telemetry"
)

// answering is a stream whose other side has one answer ready for each thing
// it is told.
type answering struct {
	ready   bytes.Buffer
	answers [][]byte
	told    bytes.Buffer
	piece   int
}

func (s *answering) Alive() error { return nil }
func (s *answering) Close() error { return nil }

func (s *answering) WriteAll(p []byte, _ time.Time) error {
	s.told.Write(p)
	if len(s.answers) > 0 {
		s.ready.Write(s.answers[0])
		s.answers = s.answers[1:]
	}
	return nil
}

func (s *answering) ReadSome(p []byte, until time.Time) (int, error) {
	if n, _ := s.ready.Read(p[:min(len(p), s.piece)]); n > 0 {
		return n, nil
	}
	time.Sleep(time.Until(until))
	return 0, ErrTimeout
}

func (s *answering) SetMode(lineMode) error { return nil }

// FuzzReadout gives any bytes as identification and readout: no panic, no
// endless wait, and what is emitted comes from a telegram that stands sound
// in the bytes.
func FuzzReadout(f *testing.F) {
	block := string((&d0Meter{body: table}).readout())
	f.Add("/LGZ5ZMD\r\n", block, uint8(7))
	f.Add("/?!\r\n/LGz0\\2ZMD\r\n", "\x06000\r\n"+block, uint8(255))
	f.Add("/LGZ@ZMD\r\n"+table, "", uint8(1))
	f.Add("/LGZEZMD\r\n\x00\xff"+block, "", uint8(3))
	f.Add("\x00/LG", "Z5\r\n", uint8(1))
	f.Add("/LGZ9Z\r\n", block[1:], uint8(4))
	f.Add("/?!\r\n", "!\r\n\x15", uint8(4))
	f.Add("/LGZD\n32.7.0(1*V)!", "\xa9\xc9|g", uint8(6))
	p := ready(f, "iec62056-21")
	f.Fuzz(func(t *testing.T, ident, data string, piece uint8) {
		if len(ident)+len(data) > 600 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			l, err := Open(Options{Name: "head", Connect: "serial:///dev/none", Devices: []Device{{Name: "meter", Profile: "x", Map: p}}}, Env{})
			if err != nil {
				t.Fatal(err)
			}
			st := &answering{answers: [][]byte{[]byte(ident), []byte(data), []byte(ident), []byte(data)}, piece: int(piece) + 1}
			l.wire.attach(st, time.Now())
			l.open.seen = time.Now()
			good := 0
			began := time.Now()
			l.serve(t.Context(), l.jobs[0], time.Now(), func(g *telemetry.Group) {
				for _, r := range g.Readings {
					if r.Quality == telemetry.Good {
						good++
					}
				}
			})
			if d := time.Since(began); d > 4*readoutMost {
				t.Fatalf("the round took %v", d)
			}
			if good == 0 {
				return
			}
			// Behind some place of the bytes stands a sound body of a telegram.
			found := false
			take := func([]byte) { found = true }
			for _, in := range []string{ident, data, ident + data} {
				for i := 0; i < len(in) && !found; i++ {
					s := obis.Scanner{}
					s.Feed([]byte("/LGZ5\r\n"+in[i:]), take)
					s.Flush(take)
				}
			}
			if !found {
				t.Fatalf("%d values came of %q and %q", good, ident, data)
			}
		})
	})
}
