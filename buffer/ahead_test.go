package buffer

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// TestZerosAhead: small commits go into blocks to which zeros were written
// before, large ones do not. No page that is held is written over, what is
// written is counted, and the file keeps its size. What is only for ext4 is
// done here on every file system.
func TestZerosAhead(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes int
		ahead bool
	}{{"small", 2100, true}, {"large", 21_000, false}} {
		t.Run(c.name, func(t *testing.T) {
			const size = 1 << 20
			dir := filepath.Join(t.TempDir(), "q")
			q := mustOpen(t, Options{Dir: dir, Size: 16 * size, Segment: size, MaxLoss: time.Second})
			defer mustClose(t, q)
			mustSync(t, q) // numbers are reserved
			path := filepath.Join(dir, segmentName(Data, 1))
			most, counted, wrote := int64(0), q.Stats().Written, wchar(t)
			for n := uint64(1); ; n++ {
				if _, err := q.Append(Data, Batch{Bytes: body(Data, n, c.bytes), Count: 1}); err != nil {
					t.Fatal(err)
				}
				mustSync(t, q)
				f := q.tail[Data].file
				f.blocks = size
				if q.tail[Data].path != path {
					if (most > 0) != c.ahead {
						t.Errorf("zeros %d bytes ahead", most)
					}
					if counted, wrote = q.Stats().Written-counted, wchar(t)-wrote; counted < wrote*95/100 || counted > wrote {
						t.Errorf("%d bytes counted, %d written", counted, wrote)
					}
					return
				}
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if len(b) != size {
					t.Fatalf("the segment has %d bytes", len(b))
				}
				high := int64(0)
				if err := f.view(func(tx *bbolt.Tx) error { high = tx.Size(); return nil }); err != nil {
					t.Fatal(err)
				}
				if len(bytes.TrimRight(b[high:], "\x00")) > 0 {
					t.Fatalf("after %d commits: no zeros behind the pages", n)
				}
				if sum, _, err := inspect(path, nil); err != nil || sum.count != int64(n) {
					t.Fatalf("after %d commits: %d batches, %v", n, sum.count, err)
				}
				most = max(most, f.zeroed-high)
			}
		})
	}
}

// TestZerosExt4: a segment has them on ext4, and nowhere else.
func TestZerosExt4(t *testing.T) {
	for _, dir := range []string{t.TempDir(), fastDir(t)} {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		want := int64(0)
		if st.Type == ext4Magic {
			want = leastSegment
		}
		path := filepath.Join(dir, segmentName(Data, 1))
		b, err := makeSegment(path, leastSegment, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b.blocks != want {
			t.Errorf("file system %x: zeros up to %d, not %d", st.Type, b.blocks, want)
		}
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestZerosEnd: behind the blocks of the file nothing is written, and nothing
// when the last commit was long ago.
func TestZerosEnd(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := &boltFile{file: f, blocks: 10 * pageSize, high: 5 * pageSize, last: time.Now().Add(-2 * zeroWithin)}
	if n, err := b.writeAhead(6 * pageSize); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	b.high, b.last = 5*pageSize, time.Now().Add(time.Hour)
	n, err := b.writeAhead(6 * pageSize)
	fi, statErr := f.Stat()
	if err != nil || statErr != nil || n != 4*pageSize || fi.Size() != b.blocks {
		t.Fatal(n, err, fi.Size(), statErr)
	}
	b.high = 9 * pageSize
	if n, err := b.writeAhead(10 * pageSize); n != 0 || err != nil {
		t.Fatal(n, err)
	}
}
