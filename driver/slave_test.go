package driver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/goburrow/modbus"

	"tidegate/driver/profile"
)

// openPTY makes a pair: what is written to the master comes out of the port
// at path. Closing the master is pulling the adapter.
func openPTY(t testing.TB) (master *os.File, path string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err != nil {
			return
		}
		// Raw before anybody opens it: else the terminal echoes.
		var tio *unix.Termios
		if tio, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			tio.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
			tio.Oflag &^= unix.OPOST
			tio.Iflag &^= unix.ICRNL | unix.IXON
			err = unix.IoctlSetTermios(int(fd), unix.TCSETS, tio)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	path = fmt.Sprintf("/dev/pts/%d", n)
	hold, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	return master, path
}

// fault is what goes wrong with one answer. The zero value is a good answer.
type fault struct {
	name      string
	delay     time.Duration
	silent    bool
	garble    bool // one byte changed
	split     time.Duration
	pieces    int
	echo      bool // our own bytes first
	onlyEcho  bool // our own bytes and nothing else
	noise     int  // random bytes before
	tail      int  // random bytes after
	foreign   bool // the frame of another unit first
	twice     bool
	wrongUnit bool
	wrongFunc bool
	short     bool // the last byte is missing
	long      bool // more registers than asked for
	exception byte
	noCRC     bool // the refusal without its check
	empty     bool // an answer of 0 registers
	oldID     bool // TCP: the transaction number before this one
}

// slave is a Modbus server that misbehaves to order. Each answer is bound to
// its request: registers hold truth(number of the request, address).
type slave struct {
	kind  kind
	units []byte // nil: all
	order bool   // answers one after the other, as a real device; else each as late as it is
	plan  func(n int, unit byte, addr uint16) fault
	turn  time.Duration // usual turnaround

	mu    sync.Mutex // guards rng, fired
	rng   *rand.Rand
	fired map[string]int
	last  atomic.Int64 // number of the last request received
	seen  sync.Map     // unit and PDU of a request -> number of the last such
	asked [256]atomic.Int64
	bad   atomic.Int64
}

func newSlave(k kind, seed uint64) *slave {
	return &slave{kind: k, rng: rand.New(rand.NewPCG(seed, 7)), fired: map[string]int{}, order: true}
}

// truth is the content of a register in the answer to request n.
func truth(n int64, addr uint16) uint16 {
	x := uint64(n)*0x9E3779B97F4A7C15 ^ uint64(addr)*0xD1B54A32D192ED03
	x ^= x >> 29
	x *= 0xBF58476D1CE4E5B9
	return uint16(x >> 40)
}

// right says whether data is the whole answer to the last such request. The
// number of the last request of all would not do: after a connection was
// given up, the slave may read its last request later than the next one.
func (s *slave) right(unit byte, t profile.Table, addr, count uint16, data []byte) bool {
	n, ok := s.seen.Load([6]byte{unit, byte(t), byte(addr >> 8), byte(addr), byte(count >> 8), byte(count)})
	return ok && slices.Equal(data, truthBytes(n.(int64), byte(t), addr, count))
}

// lastSays says whether a register is what the last request of its shape for it
// was answered with: a unit that was long in answering is asked for a block in
// parts.
func (s *slave) lastSays(unit byte, addr uint16, value int64) (right bool) {
	s.seen.Range(func(k, n any) bool {
		q := k.([6]byte)
		from, count := binary.BigEndian.Uint16(q[2:]), binary.BigEndian.Uint16(q[4:])
		right = q[0] == unit && q[1] == 3 && addr >= from && addr-from < count && value == int64(truth(n.(int64), addr))
		return !right
	})
	return right
}

func truthBytes(n int64, fc byte, addr, count uint16) []byte {
	var out []byte
	if fc <= 2 {
		out = make([]byte, (count+7)/8)
		for i := range count {
			out[i/8] |= byte(truth(n, addr+i)&1) << (i % 8)
		}
		return out
	}
	for i := range count {
		out = binary.BigEndian.AppendUint16(out, truth(n, addr+i))
	}
	return out
}

// serve answers on rw until it fails.
func (s *slave) serve(rw io.ReadWriter) {
	var out sync.Mutex
	write := func(b []byte) {
		out.Lock()
		defer out.Unlock()
		rw.Write(b)
	}
	// A device that answers in order has one hand: what is late delays what
	// comes after it.
	var line chan func()
	if s.order {
		line = make(chan func(), 1024)
		defer close(line)
		go func() {
			for f := range line {
				f()
			}
		}()
	}
	var buf []byte
	tmp := make([]byte, 512)
	for {
		n, err := rw.Read(tmp)
		if err != nil {
			return
		}
		buf = append(buf, tmp[:n]...)
		for {
			req, pdu, unit, used := s.request(buf)
			if used == 0 {
				break
			}
			if pdu != nil {
				job := s.handle(req, pdu, unit, write)
				switch {
				case job == nil:
				case s.order:
					line <- job
				default:
					go job()
				}
			}
			buf = buf[used:]
		}
	}
}

// request cuts one request from the front.
func (s *slave) request(b []byte) (req []byte, pdu *modbus.ProtocolDataUnit, unit byte, used int) {
	pk := packager(s.kind, 1)
	switch s.kind {
	case kindTCP:
		if len(b) < 12 {
			return nil, nil, 0, 0
		}
		pdu, _ = pk.Decode(b[:12])
		return slices.Clone(b[:12]), pdu, b[6], 12
	case kindASCII:
		for i, c := range b {
			if c == '\n' {
				pdu, err := pk.Decode(b[:i+1])
				if err != nil {
					s.bad.Add(1)
					return nil, nil, 0, i + 1
				}
				u, _ := hexByte(b[1], b[2])
				return slices.Clone(b[:i+1]), pdu, u, i + 1
			}
		}
		return nil, nil, 0, 0
	}
	if len(b) < 8 {
		return nil, nil, 0, 0
	}
	pdu, err := pk.Decode(b[:8])
	if err != nil {
		s.bad.Add(1)
		return nil, nil, 0, 1
	}
	return slices.Clone(b[:8]), pdu, b[0], 8
}

// encode packs an answer for the framing.
func (s *slave) encode(unit, fc byte, data []byte, req []byte) []byte {
	b, err := packager(s.kind, unit).Encode(&modbus.ProtocolDataUnit{FunctionCode: fc, Data: data})
	if err != nil {
		panic(err)
	}
	if s.kind == kindTCP {
		copy(b, req[:2])
	}
	return b
}

func (s *slave) handle(req []byte, pdu *modbus.ProtocolDataUnit, unit byte, write func([]byte)) func() {
	n := s.last.Add(1)
	s.asked[unit].Add(1)
	s.seen.Store([6]byte(append([]byte{unit, pdu.FunctionCode}, pdu.Data...)), n)
	if s.units != nil && !slices.Contains(s.units, unit) {
		return nil
	}
	addr, count := binary.BigEndian.Uint16(pdu.Data), binary.BigEndian.Uint16(pdu.Data[2:])
	var f fault
	if s.plan != nil {
		f = s.plan(int(n), unit, addr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.name != "" {
		s.fired[f.name]++
	}
	if f.silent {
		return nil
	}
	fc, data := pdu.FunctionCode, truthBytes(n, pdu.FunctionCode, addr, count)
	if f.long {
		data = append(data, 0xAB, 0xCD)
	}
	if f.wrongUnit {
		unit = unit%247 + 1
	}
	if f.wrongFunc {
		fc ^= 7 // 3 <-> 4
	}
	var ans []byte
	if f.exception != 0 {
		ans = s.encode(unit, fc|0x80, []byte{f.exception}, req)
	} else {
		ans = s.encode(unit, fc, append([]byte{byte(len(data))}, data...), req)
	}
	if f.empty {
		ans = s.encode(unit, fc, []byte{0}, req)
	}
	if f.noCRC {
		ans = ans[:len(ans)-2]
	}
	if f.oldID {
		binary.BigEndian.PutUint16(ans, binary.BigEndian.Uint16(ans)-1)
	}
	if f.garble {
		lim := len(ans)
		if s.kind == kindTCP {
			lim = 7 // TCP has no check of its own over the data
		}
		i := s.rng.IntN(lim)
		if s.kind == kindTCP && i < 2 {
			i = 2 + i
		}
		ans[i] ^= byte(1 + s.rng.IntN(255))
	}
	if f.short {
		ans = ans[:len(ans)-1]
	}
	random := func(k int) []byte {
		b := make([]byte, k)
		for i := range b {
			b[i] = byte(s.rng.Uint32())
			if s.kind == kindASCII && b[i] == ':' {
				b[i] = 0
			}
		}
		return b
	}
	var pre []byte
	if f.echo {
		pre = append(pre, req...)
	}
	if f.foreign {
		other := append([]byte{byte(len(data))}, make([]byte, len(data))...)
		fr := s.encode(unit%247+1, fc, other, req)
		if s.kind == kindTCP {
			binary.BigEndian.PutUint16(fr, binary.BigEndian.Uint16(fr)+7)
		}
		pre = append(pre, fr...)
	}
	pre = append(pre, random(f.noise)...)
	whole := append(pre, ans...)
	if f.twice {
		whole = append(whole, ans...)
	}
	whole = append(whole, random(f.tail)...)
	if f.onlyEcho {
		whole = req
	}
	pieces := max(f.pieces, 1)
	if pieces > len(whole) {
		pieces = len(whole)
	}
	return func() {
		time.Sleep(s.turn + f.delay)
		for i := range pieces {
			if i > 0 {
				time.Sleep(f.split)
			}
			write(whole[i*len(whole)/pieces : (i+1)*len(whole)/pieces])
		}
	}
}

func (s *slave) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fired[name]
}

// onPTY serves on a fresh pty and returns its path.
func (s *slave) onPTY(t testing.TB) string {
	master, path := openPTY(t)
	done := make(chan struct{})
	go func() { defer close(done); s.serve(master) }()
	t.Cleanup(func() { master.Close(); <-done })
	return path
}

// onTCP serves on a loopback port and returns HOST:PORT.
func (s *slave) onTCP(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.listen(t, ln)
	return ln.Addr().String()
}

func (s *slave) listen(t testing.TB, ln net.Listener) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				s.serve(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}
