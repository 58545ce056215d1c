package sim

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
)

// pipe serves s on one end of a line and returns the other, which reads with
// a deadline.
func pipe(t *testing.T, serve func(context.Context, io.ReadWriter) error) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := serve(ctx, a); err != nil {
			t.Errorf("serve: %v", err)
		}
		a.Close()
	})
	t.Cleanup(func() { cancel(); b.Close(); wg.Wait() })
	return b
}

// quiet is how long nothing comes when all has come, on a machine that is busy.
const quiet = 250 * time.Millisecond

// receive reads until the line has been quiet for a moment.
func receive(c net.Conn, first time.Duration) []byte {
	var out []byte
	b := make([]byte, 600)
	for wait := first; ; wait = quiet {
		c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(b)
		out = append(out, b[:n]...)
		if err != nil {
			return out
		}
	}
}

func withCRC(b ...byte) []byte {
	crc := crc16(b)
	return append(b, byte(crc), byte(crc>>8))
}

func TestPDU(t *testing.T) {
	u := peerUnit().Unit(17)
	long := func(head string, n int) string { return head + hex.EncodeToString(make([]byte, n)) }
	for _, c := range []struct{ name, ask, want string }{
		{"coils", "01 0000 000a", "01 02 4902"},
		{"discrete", "02 0064 0008", "02 01 b6"},
		{"holding", "03 0001 0002", "03 04 020c 0411"},
		{"input", "04 03e8 0001", "04 02 0009"},
		{"no coils", "01 0000 0000", "81 03"},
		{"too many coils", "01 0000 07d1", "81 03"},
		{"no registers", "03 0000 0000", "83 03"},
		{"too many registers", "03 0000 007e", "83 03"},
		{"quantity before address", "04 ffff 007e", "84 03"},
		{"past the end", "03 ffff 0002", "83 02"},
		{"not there", "04 0000 0001", "84 02"},
		{"the last is not there", "03 007c 0002", "83 02"},
		{"long read", "03 0000 0001 00", "83 03"},
		{"short read", "03 0000 01", "83 03"},
		{"coil on", "05 0001 ff00", "05 0001 ff00"},
		{"coil half on", "05 0001 0001", "85 03"},
		{"coil not there", "05 0100 ff00", "85 02"},
		{"register", "06 0005 abcd", "06 0005 abcd"},
		{"register back", "03 0005 0001", "03 02 abcd"},
		{"coils", "0f 0008 000b 02 cd05", "0f 0008 000b"},
		{"coils back", "01 0008 000b", "01 02 cd05"},
		{"coils, byte count", "0f 0008 000b 01 cd", "8f 03"},
		{"coils, too short", "0f 0008 000b 02 cd", "8f 03"},
		{"coils, none", "0f 0008 0000 00", "8f 03"},
		{"registers", "10 0006 0002 04 0001 0002", "10 0006 0002"},
		{"registers, byte count", "10 0006 0002 02 0001", "90 03"},
		{"registers, too many", long("10 0000 007c f8", 248), "90 03"},
		{"registers, not there", "10 007c 0002 04 0001 0002", "90 02"},
		{"mask", "16 0006 00f2 0025", "16 0006 00f2 0025"},
		{"mask back", "03 0006 0001", "03 02 0005"},
		{"mask not there", "16 0100 00f2 0025", "96 02"},
		{"mask short", "16 0006 00f2", "96 03"},
		{"read and write", "17 0006 0002 0007 0001 02 0009", "17 04 0005 0009"},
		{"read and write, one not there", "17 0100 0002 0007 0001 02 000a", "97 02"},
		{"nothing was written", "03 0007 0001", "03 02 0009"},
		{"read and write, count", "17 0006 0000 0007 0001 02 0009", "97 03"},
		{"unknown function", "2b 0e 01 00", "ab 01"},
		{"function 0", "00", "80 01"},
	} {
		ask, err := hex.DecodeString(clean(c.ask))
		if err != nil {
			t.Fatal(c.name, err)
		}
		if got := hex.EncodeToString(u.answer(ask, time.Time{})); got != clean(c.want) {
			t.Errorf("%s: %s gives %s, want %s", c.name, c.ask, got, c.want)
		}
	}
	u.Limit(10, 8)
	if got := u.answer([]byte{3, 0, 0, 0, 11}, time.Time{}); !bytes.Equal(got, []byte{0x83, 2}) {
		t.Errorf("more registers than the device takes: % x", got)
	}
}

func clean(s string) string { return string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)) }

// FuzzRequest: no request makes the model panic or answer with more than a
// PDU can hold, whatever the framing.
func FuzzRequest(f *testing.F) {
	f.Add([]byte{3, 0, 0, 0, 1})
	f.Add([]byte{16, 0, 6, 0, 2, 4, 0, 1, 0, 2})
	f.Add([]byte{23, 0, 6, 0, 2, 0, 7, 0, 1, 2, 0, 9})
	f.Add([]byte(":1103000000\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := peerUnit()
		if len(b) > 0 && len(b) <= 253 {
			a, _, _ := s.take(mbap, 17, b, time.Time{})
			if len(a) < 2 || len(a) > 253 || a[0]&0x7F != b[0]&0x7F {
				t.Fatalf("% x gives % x", b, a)
			}
		}
		for _, k := range []framing{rtu, ascii, mbap} {
			e := &session{s: s, kind: k, busy: map[byte]time.Time{}, buf: slices.Clone(b)}
			if e.scan(true) == nil {
				e.scan(false)
			}
		}
	})
}

// ask17 asks unit 17 for holding registers 1 and 2; answer17 is the answer.
var (
	ask17    = []byte{17, 3, 0, 1, 0, 2}
	answer17 = []byte{17, 3, 4, 0x02, 0x0c, 0x04, 0x11}
)

func TestFaultsOnRTU(t *testing.T) {
	good, request := withCRC(answer17...), withCRC(ask17...)
	valid := func(b []byte) bool { return len(b) > 4 && bytes.Equal(b, withCRC(slices.Clone(b[:len(b)-2])...)) }
	for _, c := range []struct {
		fault Fault
		want  func(b []byte, after time.Duration) bool
	}{
		{Fault{}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, good) }},
		{Fault{Kind: Silent}, func(b []byte, _ time.Duration) bool { return len(b) == 0 }},
		{Fault{Kind: Hangup}, func(b []byte, _ time.Duration) bool { return len(b) == 0 }},
		{Fault{Kind: Late, Delay: 80 * time.Millisecond}, func(b []byte, after time.Duration) bool {
			return bytes.Equal(b, good) && after >= 80*time.Millisecond
		}},
		{Fault{Kind: Garbled}, func(b []byte, _ time.Duration) bool { return len(b) == len(good) && !valid(b) }},
		{Fault{Kind: Split, Delay: 10 * time.Millisecond}, func(b []byte, after time.Duration) bool {
			return bytes.Equal(b, good) && after >= 10*time.Millisecond
		}},
		{Fault{Kind: NoiseBefore}, func(b []byte, _ time.Duration) bool { return len(b) > len(good) && bytes.HasSuffix(b, good) }},
		{Fault{Kind: NoiseAfter}, func(b []byte, _ time.Duration) bool { return len(b) > len(good) && bytes.HasPrefix(b, good) }},
		{Fault{Kind: OtherUnit}, func(b []byte, _ time.Duration) bool { return valid(b) && b[0] == 18 }},
		{Fault{Kind: OtherFunction}, func(b []byte, _ time.Duration) bool { return valid(b) && b[1] == 4 }},
		{Fault{Kind: OtherCount}, func(b []byte, _ time.Duration) bool { return valid(b) && b[2] == 2 && len(b) == 7 }},
		{Fault{Kind: Echo}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, append(slices.Clone(request), good...)) }},
		{Fault{Kind: WrongID}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, good) }},
		{Fault{Kind: Exception}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, withCRC(17, 0x83, 4)) }},
		{Fault{Kind: Exception, Code: 6}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, withCRC(17, 0x83, 6)) }},
		{Fault{Kind: Doubled}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, append(slices.Clone(good), good...)) }},
		{Fault{Kind: Short}, func(b []byte, _ time.Duration) bool { return bytes.Equal(b, good[:len(good)/2]) }},
	} {
		t.Run(c.fault.Kind.String(), func(t *testing.T) {
			t.Parallel()
			s := peerUnit()
			var seen []Exchange
			s.Observe(func(x Exchange) { seen = append(seen, x) })
			// Net.Pipe is no net.TCPConn but a net.Conn: hide that, this is a line.
			line := pipe(t, func(ctx context.Context, rw io.ReadWriter) error {
				return s.ServeRTU(ctx, noConn{rw.(net.Conn)}, Wire{})
			})
			s.SetPlan(At(map[int]Fault{2: c.fault}))
			for n := 1; n <= 3; n++ {
				start := time.Now()
				if _, err := line.Write(request); err != nil {
					t.Fatal(err)
				}
				first := 5 * time.Second
				if n == 2 && (c.fault.Kind == Silent || c.fault.Kind == Hangup) {
					first = quiet
				}
				b := receive(line, first)
				took := time.Since(start)
				if n == 2 && !c.want(b, took) {
					t.Errorf("got % x after %v", b, took)
				}
				if n != 2 && !bytes.Equal(b, good) {
					t.Errorf("request %d without a fault: % x", n, b)
				}
			}
			st := s.Stats()
			fired := int64(1)
			if c.fault.Kind == None || c.fault.Kind == WrongID {
				fired = 0
			}
			if st.Requests != 3 || st.Faults[c.fault.Kind] != fired || len(seen) != 3 || seen[2].N != 3 || seen[0].Count != 2 {
				t.Errorf("stats %+v, seen %+v", st, seen)
			}
		})
	}
}

// noConn hides that a line is a connection.
type noConn struct{ c net.Conn }

func (n noConn) Read(b []byte) (int, error)        { return n.c.Read(b) }
func (n noConn) Write(b []byte) (int, error)       { return n.c.Write(b) }
func (n noConn) SetReadDeadline(t time.Time) error { return n.c.SetReadDeadline(t) }

func TestFaultsOnTCP(t *testing.T) {
	t.Parallel()
	s := peerUnit()
	port := serveOn(t, s, "tcp")
	request := append([]byte{0xAB, 0xCD, 0, 0, 0, 6}, ask17...)
	good := append([]byte{0xAB, 0xCD, 0, 0, 0, 7}, answer17...)
	ask := func(f Fault) []byte {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s.SetPlan(At(map[int]Fault{1: f}))
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		return receive(c, 5*time.Second)
	}
	if b := ask(Fault{}); !bytes.Equal(b, good) {
		t.Errorf("% x", b)
	}
	if b := ask(Fault{Kind: WrongID}); len(b) != len(good) || b[1] != 0xCE || !bytes.Equal(b[2:], good[2:]) {
		t.Errorf("wrong id: % x", b)
	}
	for range 20 {
		b := ask(Fault{Kind: Garbled})
		if len(b) != len(good) || bytes.Equal(b, good) || !bytes.Equal(b[8:], good[8:]) || !bytes.Equal(b[:2], good[:2]) {
			t.Fatalf("garbled: % x", b)
		}
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.SetPlan(At(map[int]Fault{2: {Kind: Hangup}}))
	for n := 1; n <= 2; n++ {
		c.Write(request)
		b := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(15 * time.Second))
		k, err := c.Read(b)
		if n == 1 && k != len(good) || n == 2 && err != io.EOF {
			t.Errorf("request %d: %d bytes, %v", n, k, err)
		}
	}
	for _, bad := range []string{"0001 0001 0006 11 03 0001 0002", "0001 0000 0001 11 03", "0001 0000 00ff 11 03"} {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := hex.DecodeString(clean(bad))
		c.Write(raw)
		c.SetReadDeadline(time.Now().Add(15 * time.Second))
		if _, err := c.Read(make([]byte, 9)); err == nil || os.IsTimeout(err) {
			t.Errorf("header %s: the connection stayed open", bad)
		}
		c.Close()
	}
}

// TestLateAnswerHoldsUpItsUnitOnly: while one unit thinks, another answers;
// what the slow one is asked meanwhile it answers afterwards, in order.
func TestLateAnswerHoldsUpItsUnitOnly(t *testing.T) {
	s := peerUnit()
	s.Unit(5).Set(profile.Holding, 0, 0x1234)
	line := pipe(t, func(ctx context.Context, rw io.ReadWriter) error { return s.ServeRTU(ctx, rw, Wire{}) })
	s.SetPlan(At(map[int]Fault{1: {Kind: Late, Delay: 500 * time.Millisecond}}))
	line.Write(withCRC(ask17...))
	line.Write(withCRC(17, 3, 0, 1, 0, 1))
	line.Write(withCRC(5, 3, 0, 0, 0, 1))
	var got []byte
	for len(got) < 7+9+7 {
		b := receive(line, 5*time.Second)
		if len(b) == 0 {
			break
		}
		got = append(got, b...)
	}
	want := slices.Concat(withCRC(5, 3, 2, 0x12, 0x34), withCRC(answer17...), withCRC(17, 3, 2, 0x02, 0x0c))
	if !bytes.Equal(got, want) {
		t.Errorf("got  % x\nwant % x", got, want)
	}
}

func TestStrangersAndDamage(t *testing.T) {
	s := peerUnit()
	line := pipe(t, func(ctx context.Context, rw io.ReadWriter) error { return s.ServeRTU(ctx, rw, Wire{}) })
	for _, c := range []struct {
		name      string
		ask, want []byte
	}{
		{"other unit", withCRC(18, 3, 0, 1, 0, 2), nil},
		{"broken checksum", []byte{17, 3, 0, 1, 0, 2, 0, 0}, nil},
		{"half a frame", []byte{17, 3, 0}, nil},
		{"unknown function", withCRC(17, 43, 14, 1, 0), withCRC(17, 0xAB, 1)},
		{"broadcast write", withCRC(0, 6, 0, 1, 0, 9), nil},
		{"it was obeyed", withCRC(17, 3, 0, 1, 0, 1), withCRC(17, 3, 2, 0, 9)},
	} {
		line.Write(c.ask)
		first := quiet
		if c.want != nil {
			first = 5 * time.Second
		}
		if got := receive(line, first); !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x", c.name, got)
		}
	}
	s.Unit(17).SetOff(true)
	line.Write(withCRC(ask17...))
	if got := receive(line, quiet); len(got) != 0 {
		t.Errorf("off: % x", got)
	}
	if st := s.Stats(); st.Foreign != 2 || st.Damaged != 2 || st.Exceptions != 1 || st.Answers != 2 {
		t.Errorf("%+v", st)
	}
}

// TestPace: at 9600 baud an exchange takes what its bytes take.
func TestPace(t *testing.T) {
	s := peerUnit()
	w := Wire{Baud: 9600, CharBits: 11}
	line := pipe(t, func(ctx context.Context, rw io.ReadWriter) error { return s.ServeRTU(ctx, rw, w) })
	start := time.Now()
	line.Write(withCRC(17, 3, 0, 0, 0, 100))
	b := make([]byte, 300)
	line.SetReadDeadline(start.Add(5 * time.Second))
	if _, err := io.ReadFull(line, b[:205]); err != nil {
		t.Fatal(err)
	}
	char := 11 * time.Second / 9600
	want := (8+205)*char + 7*char/2
	if took := time.Since(start); took < want-time.Millisecond || took > want*10 {
		t.Errorf("took %v, want %v", took, want)
	}
}

func TestRandomPlanRepeats(t *testing.T) {
	faults := []Fault{{Kind: Silent}, {Kind: Garbled}, {Kind: Exception, Code: 2}}
	a, b := Random(7, 0.3, faults...), Random(7, 0.3, faults...)
	n := 0
	for i := range 1000 {
		f := a(Request{N: i})
		if f != b(Request{N: i}) {
			t.Fatal("the same seed gives other faults")
		}
		if f.Kind != None {
			n++
		}
	}
	if n < 230 || n > 370 {
		t.Errorf("%d faults of 1000, want about 300", n)
	}
}

func TestLiveRegisters(t *testing.T) {
	u := NewSlave().Unit(1)
	n := uint16(0)
	u.Live(profile.Input, 10, 2, func(_ time.Time, regs []uint16) { n++; regs[0], regs[1] = n, n })
	u.Live(profile.Holding, 0, 1, func(_ time.Time, regs []uint16) { regs[0] = 7 })
	for i := uint16(1); i < 4; i++ {
		if v, ok := u.Get(profile.Input, 10, 2); !ok || v[0] != i || v[1] != i {
			t.Errorf("read %d: %v", i, v)
		}
	}
	u.answer([]byte{6, 0, 0, 0, 99}, time.Now())
	if v, _ := u.Get(profile.Holding, 0, 1); v[0] != 99 {
		t.Errorf("what was written did not stay: %v", v)
	}
	if _, ok := u.Get(profile.Input, 9, 1); ok {
		t.Error("a register that nobody made exists")
	}
}

// TestPTYReopened: a program that closes the port and opens it again, or is
// killed in between, finds the slave where it was.
func TestPTYReopened(t *testing.T) {
	s := peerUnit()
	port := serveOn(t, s, "rtu")
	for n := range 3 {
		f, err := os.OpenFile(port, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Write(withCRC(ask17...))
		got := make([]byte, 9)
		f.SetReadDeadline(time.Now().Add(15 * time.Second))
		if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, withCRC(answer17...)) {
			t.Fatalf("opened %d times: % x %v", n+1, got, err)
		}
		f.Close()
		time.Sleep(15 * time.Millisecond)
	}
}

// TestNothingOldInThePort: an answer that nobody read is not there for who
// opens the port next.
func TestNothingOldInThePort(t *testing.T) {
	s := peerUnit()
	port := serveOn(t, s, "rtu")
	f, err := os.OpenFile(port, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.SetPlan(At(map[int]Fault{2: {Kind: Late, Delay: 30 * time.Millisecond}}))
	f.Write(slices.Concat(withCRC(ask17...), withCRC(ask17...)))
	time.Sleep(15 * time.Millisecond)
	f.Close()
	time.Sleep(500 * time.Millisecond)
	if f, err = os.OpenFile(port, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := f.Read(make([]byte, 50)); n != 0 || !os.IsTimeout(err) {
		t.Errorf("%d old bytes, %v", n, err)
	}
}

// TestUnplug: closing the master ends the service and is an error at once
// for who has the port open.
func TestUnplug(t *testing.T) {
	master, path, err := OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- peerUnit().ServeRTU(t.Context(), master, Wire{}) }()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	time.Sleep(20 * time.Millisecond)
	master.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("unplugged without an error")
		}
	case <-time.After(15 * time.Second):
		t.Fatal("still serving")
	}
	f.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := f.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("read on an unplugged port: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the port is still listed")
	}
}

func TestTalker(t *testing.T) {
	talker := &Talker{Frames: [][]byte{[]byte("one\r\n"), []byte("two\r\n")}, Every: 10 * time.Millisecond,
		Spoil: func(n int64, f []byte) []byte {
			if n == 3 {
				return []byte("?\n")
			}
			return f
		}}
	want := []byte("one\r\ntwo\r\n?\ntwo\r\none\r\n")
	read := func(r io.Reader) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q %v", got, err)
		}
	}
	line := pipe(t, talker.Serve)
	line.Write([]byte("nobody cares"))
	read(line)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- talker.ServeTCP(ctx, ln) }()
	for range 2 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(15 * time.Second))
		read(c)
		c.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := talker.Sent(); n < 15 {
		t.Errorf("sent %d", n)
	}
	if err := (&Talker{}).Serve(t.Context(), line); err == nil {
		t.Error("a talker without frames is no error")
	}
}

// TestTalkerOnPTY: frames that nobody listens to are gone, not stored up.
func TestTalkerOnPTY(t *testing.T) {
	master, path, err := OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	talker := &Talker{Frames: [][]byte{[]byte("x\n")}, Every: 5 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- talker.Serve(ctx, master) }()
	time.Sleep(100 * time.Millisecond)
	if n := talker.Sent(); n != 0 {
		t.Errorf("%d frames sent to nobody", n)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.ReadFull(f, make([]byte, 6)); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
