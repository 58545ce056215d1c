package buffer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

var update = flag.Bool("update", false, "write the golden queue of this version anew")

// Each version that wrote something new left a queue. They must open for
// ever; only the last one is written anew by -update. reserved is up to where
// numbers were reserved.
var goldens = []struct {
	dir      string
	reserved uint64
}{
	{"../testdata/queue/v1", 4096},
	{"../testdata/queue/v1.1", 32768}, // with the file of the numbers
	{"../testdata/queue/v1.2", 32768}, // with blocks of several records
	{"../testdata/queue/v1.3", 32768}, // with the blocks in the root, and no list of free pages
}

// makeGolden writes a queue that has everything in it: both lanes, two data
// segments, partly delivered, an elided number, a catalog, losses, and an end
// without Close.
func makeGolden(t *testing.T) {
	golden := goldens[len(goldens)-1].dir
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	o := testOptions(t)
	q := mustOpen(t, o)
	if err := q.SaveMeta("b81c0000", []byte("the catalog of the golden queue")); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		put(t, q, Data)
	}
	for range 3 {
		put(t, q, Event)
	}
	q.Ack(Data, 5) // before it was due
	if err := q.SetAside(Data, 7, WhyPoison); err != nil {
		t.Fatal(err)
	}
	mustSync(t, q)
	q.Ack(Data, 1, 2, 9)
	for range 4 {
		put(t, q, Data)
		mustSync(t, q)
	}
	crash(q)
	if err := os.MkdirAll(golden, 0o755); err != nil {
		t.Fatal(err)
	}
	for name := range files(t, o.Dir) {
		if name == lockName {
			continue
		}
		b, err := os.ReadFile(filepath.Join(o.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == numbersName {
			if err := os.WriteFile(filepath.Join(golden, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		m, err := openImage(filepath.Join(o.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		m.close()
		if err := os.WriteFile(filepath.Join(golden, name), b[:m.high*pageSize], 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGolden opens what earlier versions wrote.
func TestGolden(t *testing.T) {
	if *update {
		makeGolden(t)
	}
	for _, g := range goldens {
		t.Run(filepath.Base(g.dir), func(t *testing.T) { openGolden(t, g.dir, g.reserved) })
	}
}

func openGolden(t *testing.T, golden string, reserved uint64) {
	o := testOptions(t)
	copyDir(t, golden, o.Dir)
	q := mustOpen(t, o)
	defer func() { mustClose(t, q) }()
	if q.Stopped() != "power" || q.Boot() != 2 || q.Stats().Quarantined != 0 {
		t.Fatal(q.Stopped(), q.Boot(), q.Stats())
	}
	data, event := all(t, q, Data), all(t, q, Event)
	d := set(data)
	if len(data) < 46 || d.has(1) || d.has(2) || d.has(5) || d.has(7) || d.has(9) || !d.has(3) || !d.has(50) || !reflect.DeepEqual(event, []uint64{1, 2, 3}) {
		t.Fatal(data, event)
	}
	last := data[len(data)-1]
	want := []Loss{
		{Lane: Data, From: 7, To: 7, Batches: 1, Readings: int64(batch(Data, 7).Count), T0: batch(Data, 7).From, T1: batch(Data, 7).To, Why: WhyPoison},
		{Lane: Data, From: last + 1, To: reserved, Batches: -1, Readings: -1, Why: WhyRestart},
		{Lane: Event, From: 4, To: reserved, Batches: -1, Readings: -1, Why: WhyRestart},
	}
	got := q.Losses()
	for i := range got {
		if got[i].Why == WhyRestart {
			got[i].T0, got[i].T1 = 0, 0
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v", got)
	}
	if v, ok, err := q.Meta("b81c0000"); err != nil || !ok || string(v) != "the catalog of the golden queue" {
		t.Fatal(string(v), ok, err)
	}
	// It is gone on with, and nothing of it is taken for damaged.
	next := put(t, q, Data)
	mustSync(t, q)
	crash(q)
	q = mustOpen(t, o)
	if got := all(t, q, Data); !slices.Equal(got, append(data, next)) || q.Stats().Quarantined != 0 {
		t.Fatal(got, q.Stats())
	}
}

// TestRecordBytes pins the envelope byte by byte.
func TestRecordBytes(t *testing.T) {
	rec := append(make([]byte, recordHead), "bytes"...)
	(&envelope{lane: Event, number: 0x0102030405060708, count: 0x0a0b0c0d, t0: 1_700_000_000_000, t1: -1}).seal(rec)
	const want = "89544742" + "0d0a1a0a" + "01" + "01" + "00" + "00" + "0a0b0c0d" + "0102030405060708" + "0000018bcfe56800" + "ffffffffffffffff" + "00000005" + "ee9a3f2c" + "6279746573"
	if got := hex.EncodeToString(rec); got != want {
		t.Fatal(got)
	}
	for i := range rec {
		for bit := range 8 {
			rec[i] ^= 1 << bit
			if _, err := openRecord(rec); err == nil {
				t.Fatal("a flipped bit was not seen", i, bit)
			}
			rec[i] ^= 1 << bit
		}
	}
}

// What a newer version wrote is refused, and not taken for damage.
func TestNewer(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	mustClose(t, q)
	q = mustOpen(t, o)
	s := state{gen: 99, epoch: 1, boot: 7, clean: true}
	blob := s.encode()
	blob[8] = 2
	sum := blobSum(blob)
	copy(blob[16:], []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	for i := range q.states {
		if err := q.writeState(i, func(b, _ *bbolt.Bucket) error { return b.Put([]byte(keyState), blob) }); err != nil {
			t.Fatal(err)
		}
	}
	crash(q)
	before := files(t, o.Dir)
	if _, err := Open(o); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), o.Dir) {
		t.Fatal(err)
	}
	if after := files(t, o.Dir); !reflect.DeepEqual(before, after) {
		t.Fatal("something was written", before, after)
	}
}

// FuzzImage reads files of a queue that were written over: each four bytes of
// patch are a place and two bytes for it, and cut is what is missing at the
// end. The files themselves are no inputs: the fuzzer would spend its time on
// making 180 kB smaller.
func FuzzImage(f *testing.F) {
	var images [][]byte
	add := func(dir, name string) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(len(images)), uint16(0), []byte{})
		f.Add(uint8(len(images)), uint16(5), []byte{0x10, 0x10, 2, 0, 0x30, 0, 0xff, 0xff})
		images = append(images, b)
	}
	add(goldenEncrypted, segmentName(Event, 1))
	for _, g := range []int{0, len(goldens) - 1} {
		for _, name := range []string{stateNames[0], segmentName(Data, 1), segmentName(Event, 1)} {
			add(goldens[g].dir, name)
		}
	}
	path := filepath.Join(f.TempDir(), "file")
	f.Fuzz(func(t *testing.T, which uint8, cut uint16, patch []byte) {
		b := bytes.Clone(images[int(which)%len(images)])
		for p := patch; len(p) >= 4; p = p[4:] {
			copy(b[int(binary.BigEndian.Uint16(p))*4%len(b):], p[2:4])
		}
		b = b[:len(b)-int(cut)%len(b)]
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readState(path)
		sum, _, err := inspect(path, nil)
		scan(bytes.NewReader(b), int64(len(b)), Data, func(r found) {
			if r.at < 0 || r.at+int64(r.length) > int64(len(b)) {
				t.Fatal(r)
			}
		}, func(*ride) {})
		if err != nil || sum.count == 0 {
			return
		}
		// To go on in it bbolt looks for the free pages by itself, in a goroutine whose panic ends the process.
		size := int64(len(b)) + 64*pageSize
		db, err := openBolt(path, size, pageSize, nil)
		if err != nil {
			return
		}
		defer db.close()
		db.db.NoSync, db.db.NoFreelistSync, db.hold = true, true, 2
		for range 3 {
			sum.last++
			sum.count++
			rec := make([]byte, recordHead+1)
			(&envelope{lane: sum.lane, number: sum.last}).seal(rec)
			if _, err := db.update(func(tx *bbolt.Tx) error {
				return putBatches(tx, 1, func(int) (uint64, []byte, error) { return sum.last, rec, nil }, &sum, &ride{})
			}); err != nil {
				return
			}
		}
		if _, _, err := inspect(path, nil); err != nil {
			t.Fatal("spoiled by what came behind:", err)
		}
	})
}

func FuzzState(f *testing.F) {
	s := state{gen: 5, epoch: 6, boot: 7, ledger: []entry{{Loss: Loss{From: 3, To: 9, Why: WhyFull}}}}
	s.lanes[Data].done.add(4, 9)
	f.Add(s.encode()[blobHead:])
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = decodeState(sealBlob(kindState, body))
		_, _ = decodeRide(sealBlob(kindRide, body))
		_, _ = decodeSummary(sealBlob(kindSummary, body))
	})
}
