package buffer

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// TestBlocks: small batches of one commit share pages, and each is found
// again under its number, from both ends, with numbers missing between them.
func TestBlocks(t *testing.T) {
	o := testOptions(t)
	o.Segment, o.MaxLoss = 1<<20, time.Hour
	q := mustOpen(t, o)
	const batches, size = 400, 1270 // of a thousand readings
	for i := range batches {
		if _, err := q.Append(Data, Batch{Bytes: body(Data, uint64(i+1), size), Count: i + 1, From: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	missing := []uint64{1, 2, 7, 50, 51, 52, 399, 400}
	q.Ack(Data, missing...)
	before := q.Stats().Written
	mustSync(t, q)
	if per := float64(q.Stats().Written-before) / batches; per > 1.25*size {
		t.Errorf("%.0f bytes written for a batch of %d", per, size)
	}
	crash(q)
	q = mustOpen(t, o)
	defer func() { mustClose(t, q) }()
	var up, down []uint64
	see := func(it Item) {
		if !bytes.Equal(it.Bytes, body(Data, it.Seq, size)) || it.Count != int(it.Seq) || it.From != int64(it.Seq)-1 {
			t.Fatalf("%d is not what was appended", it.Seq)
		}
	}
	for n := uint64(1); ; {
		it, ok, err := q.Next(Data, n)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		see(it)
		up, n = append(up, it.Seq), it.Seq+1
	}
	for n := uint64(batches); ; {
		it, ok, err := q.Prev(Data, n)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		see(it)
		down, n = append(down, it.Seq), it.Seq-1
	}
	slices.Reverse(down)
	if !slices.Equal(up, down) || len(up) != batches-len(missing) {
		t.Fatal(len(up), len(down))
	}
	for _, n := range missing {
		if slices.Contains(up, n) {
			t.Error("delivered, and back:", n)
		}
	}
	if s := q.Stats(); s.Quarantined > 0 {
		t.Fatalf("%+v", s)
	}
}

// TestStoredAgain: a batch that a damaged segment has lost, and that is still
// in memory, is stored again. It must not come behind higher numbers into the
// segment that is open, where nobody would find them.
func TestStoredAgain(t *testing.T) {
	o := testOptions(t)
	o.MaxLoss = time.Hour
	q := mustOpen(t, o)
	for range 2 {
		for len(q.lanes[Data].segs) == 0 || q.lanes[Data].segs[len(q.lanes[Data].segs)-1].sum.count < 8 {
			put(t, q, Data)
			mustSync(t, q)
		}
		if err := q.tail[Data].close(false); err != nil {
			t.Fatal(err)
		}
		q.tail[Data] = nil // the next commit begins a segment
		put(t, q, Data)
		mustSync(t, q)
	}
	older := q.lanes[Data].segs[0]
	path := filepath.Join(o.Dir, filepath.Base(older.path))
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const spoiled = 3
	at := -1
	scan(bytes.NewReader(file), int64(len(file)), Data, func(r found) {
		if r.number == spoiled {
			at = int(r.at)
		}
	}, func(*ride) {})
	if at < 0 {
		t.Fatal("not there")
	}
	for i := range file { // also what is left of it on free pages
		if bytes.HasPrefix(file[i:], file[at:at+recordHead]) {
			file[i+recordHead] ^= 0x55
		}
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	q.mu.Lock()
	older.bad = true
	q.mu.Unlock()
	mustSync(t, q) // repairs
	for range 3 {
		put(t, q, Data)
	}
	mustSync(t, q)
	given := q.Given(Data)
	crash(q)
	q = mustOpen(t, o)
	defer mustClose(t, q)
	got := all(t, q, Data)
	for n := uint64(1); n <= given; n++ {
		if !slices.Contains(got, n) {
			t.Errorf("%d is gone", n)
		}
	}
	if s := q.Stats(); s.Quarantined != 1 {
		t.Errorf("%d files in quarantine, the damaged one was one: %+v", s.Quarantined, q.Losses())
	}
}

// TestAge: a batch is due MaxLoss after its first reading, however long it
// took to fill.
func TestAge(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	defer mustClose(t, q)
	for i, age := range []time.Duration{time.Hour, time.Minute} {
		if _, err := q.Append(Data, Batch{Bytes: []byte("batch"), Count: 1, Age: age}); err != nil {
			t.Fatal(err)
		}
		if err := q.Sync(30 * time.Minute); err != nil {
			t.Fatal(err)
		}
		if q.lanes[Data].stored != 1 {
			t.Fatalf("batch %d: stored up to %d, want 1", i+1, q.lanes[Data].stored)
		}
	}
}

// TestOldSegmentGoesOn: a segment whose blocks are in a bucket of their own, as
// before v1.3, is appended to in its own way.
func TestOldSegmentGoesOn(t *testing.T) {
	o := testOptions(t)
	q := mustOpen(t, o)
	put(t, q, Data)
	mustSync(t, q)
	path, size := q.tail[Data].path, q.tail[Data].size
	mustClose(t, q)
	b, err := openBolt(path, size, pageSize, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.update(func(tx *bbolt.Tx) error {
		key := []byte{0, 0, 0, 0, 0, 0, 0, 1}
		block := bytes.Clone(tx.Bucket(key).Get([]byte(keyRecord)))
		old, err := tx.CreateBucket([]byte(bucketBatch))
		if err == nil {
			err = putBlock(old, 1, block)
		}
		if err == nil {
			err = tx.DeleteBucket(key)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	for n := uint64(2); n < 5; n++ {
		q = mustOpen(t, o)
		put(t, q, Data)
		mustSync(t, q)
		if got := set(all(t, q, Data)); q.tail[Data].path != path || !got.covers(1, n) || q.Stats().Quarantined > 0 {
			t.Fatal(got, q.tail[Data].path, q.Stats())
		}
		if err := q.tail[Data].file.view(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
				if s := string(name); s != bucketBatch && s != bucketMeta {
					t.Errorf("%x beside the blocks", name)
				}
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		mustClose(t, q)
	}
}
