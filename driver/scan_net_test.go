package driver

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// modbusHost answers Modbus TCP requests with what answer returns: a PDU, or
// nil for silence. asked holds all that came.
func modbusHost(t *testing.T, hangups int32, answer func(unit byte, pdu []byte) []byte) (connect string, asked *sentPDUs) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	asked = &sentPDUs{}
	var left atomic.Int32
	left.Store(hangups)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				defer c.Close()
				for {
					head := make([]byte, 7)
					if _, err := io.ReadFull(c, head); err != nil {
						return
					}
					pdu := make([]byte, int(binary.BigEndian.Uint16(head[4:]))-1)
					if _, err := io.ReadFull(c, pdu); err != nil {
						return
					}
					asked.add(append([]byte{head[6]}, pdu...))
					if left.Add(-1) >= 0 {
						return
					}
					out := answer(head[6], pdu)
					if out == nil {
						continue
					}
					binary.BigEndian.PutUint16(head[4:], uint16(1+len(out)))
					c.Write(append(head, out...))
				}
			}()
		}
	}()
	return "tcp://" + ln.Addr().String(), asked
}

type sentPDUs struct{ exchanges }

func (s *sentPDUs) add(b []byte) {
	s.mu.Lock()
	s.seen = append(s.seen, sim.Exchange{Request: sim.Request{Unit: b[0], Function: b[1]}})
	s.mu.Unlock()
}

func register(n uint16) []byte { return []byte{3, 2, byte(n >> 8), byte(n)} }

// TestScanTCP: a host that looks at the unit, one that does not, a gateway
// that speaks for the units behind it, and one that is silent.
func TestScanTCP(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		hangups int32
		o       ScanOptions
		answer  func(unit byte, pdu []byte) []byte
		units   []int
		any     bool
		silence string
	}{
		{"one unit", 0, ScanOptions{}, func(u byte, p []byte) []byte {
			if u != 255 {
				return nil
			}
			return []byte{p[0] | 0x80, 2}
		}, []int{255}, false, ""},
		{"every unit", 0, ScanOptions{}, func(u byte, p []byte) []byte { return register(7) }, []int{1}, true, ""},
		{"every unit, all asked for", 0, ScanOptions{IDs: []int{5, 6, 7, 8}}, func(u byte, p []byte) []byte { return register(7) }, []int{5}, true, ""},
		{"gateway", 0, ScanOptions{IDs: []int{1, 2, 3, 4}}, func(u byte, p []byte) []byte {
			if u == 3 {
				return register(9)
			}
			return []byte{p[0] | 0x80, 11}
		}, []int{3}, false, ""},
		{"gateway without units", 0, ScanOptions{}, func(u byte, p []byte) []byte { return []byte{p[0] | 0x80, 11} }, nil, false, "unit-silent"},
		{"silent", 0, ScanOptions{}, func(byte, []byte) []byte { return nil }, nil, false, "unit-silent"},
		{"hangs up at first", 1, ScanOptions{}, func(u byte, p []byte) []byte {
			if u == 1 {
				return register(1)
			}
			return nil
		}, []int{1}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			connect, asked := modbusHost(t, c.hangups, c.answer)
			c.o.Timeout = time.Second
			r, err := Scan(t.Context(), connect, c.o, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(ids(r), c.units) || r.AnyID != c.any {
				t.Errorf("units %v, any %v; want %v, %v", ids(r), r.AnyID, c.units, c.any)
			}
			if len(c.units) == 0 {
				if e := r.Silence(); e.Code != c.silence {
					t.Errorf("%s: %+v", e.Code, e)
				}
			}
			asked.mu.Lock()
			defer asked.mu.Unlock()
			if len(asked.seen) == 0 {
				t.Error("nothing was asked")
			}
			for _, x := range asked.seen {
				if x.Function < 1 || x.Function > 4 {
					t.Errorf("function %d was sent", x.Function)
				}
			}
		})
	}
}

// TestScanIdentify: the identification is asked for only when it is wanted,
// and with reads alone.
func TestScanIdentify(t *testing.T) {
	t.Parallel()
	mei := []byte{43, 14, 1, 1, 0, 0, 2, 0, 4, 'A', 'C', 'M', 'E', 1, 3, 'X', '-', '1'}
	connect, asked := modbusHost(t, 0, func(u byte, p []byte) []byte {
		switch {
		case u != 1:
			return nil
		case p[0] == 43 && p[2] == 1:
			return mei
		case p[0] == 17:
			return []byte{17, 3, 9, 0xFF, 'x'}
		case p[0] == 3:
			return register(1)
		}
		return []byte{p[0] | 0x80, 1}
	})
	for _, identify := range []bool{false, true} {
		r, err := Scan(t.Context(), connect, ScanOptions{Timeout: time.Second, Identify: identify}, nil)
		if err != nil || len(r.Units) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		id := r.Units[0].Identity
		if identify && (id["vendor"] != "ACME" || id["product code"] != "X-1" || id["server id"] == "") || !identify && id != nil {
			t.Errorf("identify %v: %+v", identify, id)
		}
		asked.mu.Lock()
		for _, x := range asked.seen {
			if ok := x.Function <= 4 || identify && (x.Function == 17 || x.Function == 43); !ok {
				t.Errorf("identify %v: function %d was sent", identify, x.Function)
			}
		}
		asked.mu.Unlock()
	}
}

// TestScanRTUOverTCP: a serial server is swept like the line behind it.
func TestScanRTUOverTCP(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := sim.NewSlave()
	s.Unit(12).Set(profile.Holding, 0, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeRTUOverTCP(ctx, ln, sim.Wire{}) }()
	t.Cleanup(func() { cancel(); <-done })
	r, err := Scan(t.Context(), "rtu+tcp://"+ln.Addr().String(), ScanOptions{IDs: []int{10, 11, 12, 13}, Timeout: 500 * time.Millisecond}, nil)
	if err != nil || !slices.Equal(ids(r), []int{12}) {
		t.Errorf("%+v, %v", r, err)
	}
}
