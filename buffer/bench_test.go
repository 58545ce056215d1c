package buffer

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// diskDir is a directory on a real disk: BUFFER_BENCH_DIR, or the temporary one.
func diskDir(b *testing.B) string {
	dir := os.Getenv("BUFFER_BENCH_DIR")
	if dir == "" {
		return b.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "buffer-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const readingBytes = 21 // of one reading; a record of the bare stores in performance.md

// BenchmarkDurable commits groups of readings, one batch each, and counts
// readings a second; bare bbolt puts the same bytes with one Update.
func BenchmarkDurable(b *testing.B) {
	for _, group := range []int{100, 1000, 10000} {
		bytes := body(Data, 1, group*readingBytes)
		rate := func(b *testing.B) {
			b.ReportMetric(float64(group)*float64(b.N)/b.Elapsed().Seconds(), "readings/s")
		}
		b.Run(fmt.Sprintf("queue/%d", group), func(b *testing.B) {
			q := mustOpen(b, Options{Dir: filepath.Join(diskDir(b), "q"), Size: 256 << 20, MaxLoss: time.Second})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := q.Append(Data, Batch{Bytes: bytes, Count: group}); err != nil {
					b.Fatal(err)
				}
				if err := q.Sync(0); err != nil {
					b.Fatal(err)
				}
			}
			rate(b)
			b.ReportMetric(float64(q.Stats().Written)/float64(b.N)/float64(group), "disk-B/reading")
			b.StopTimer()
			mustClose(b, q)
		})
		b.Run(fmt.Sprintf("bbolt/%d", group), func(b *testing.B) {
			db, err := bbolt.Open(filepath.Join(diskDir(b), "bare.db"), 0o600, &bbolt.Options{PageSize: pageSize, FreelistType: bbolt.FreelistMapType, InitialMmapSize: 1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			var key [8]byte
			n := uint64(0)
			for b.Loop() {
				n++
				binary.BigEndian.PutUint64(key[:], n)
				err := db.Update(func(tx *bbolt.Tx) error {
					q, err := tx.CreateBucketIfNotExists([]byte("q"))
					if err != nil {
						return err
					}
					return q.Put(key[:], bytes)
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			rate(b)
			b.StopTimer()
			db.Close()
		})
	}
}

// BenchmarkOnline is the way of a batch that is acknowledged before it is due.
func BenchmarkOnline(b *testing.B) {
	q := mustOpen(b, Options{Dir: filepath.Join(fastDir(b), "q"), Size: 64 << 20, MaxLoss: 2 * time.Second})
	bytes := body(Data, 1, 20_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.Append(Data, Batch{Bytes: bytes, Count: 1000}); err != nil {
			b.Fatal(err)
		}
		it, ok, err := q.Next(Data, 1)
		if err != nil || !ok {
			b.Fatal(ok, err)
		}
		q.Ack(Data, it.Seq)
		if err := q.Sync(2 * time.Second); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	mustClose(b, q)
}

// backlog fills a queue with batches of 12 kB, 10,000 readings of 1.2 bytes.
func backlog(b *testing.B, dir string, batches int, size int64) Options {
	o := Options{Dir: dir, Size: size, MaxLoss: time.Hour}
	q := mustOpen(b, o)
	bytes := body(Data, 1, 12_000)
	for i := range batches {
		if _, err := q.Append(Data, Batch{Bytes: bytes, Count: 10_000}); err != nil {
			b.Fatal(err)
		}
		if i%100 == 99 {
			mustSync(b, q)
		}
	}
	mustSync(b, q)
	if len(q.Losses()) > 0 {
		b.Fatal("dropped", q.Losses())
	}
	crash(q)
	return o
}

// BenchmarkOpen opens after a crash with a backlog behind it.
func BenchmarkOpen(b *testing.B) {
	for _, readings := range []int{0, 1_000_000, 100_000_000} {
		b.Run(fmt.Sprintf("%d", readings), func(b *testing.B) {
			o := backlog(b, filepath.Join(diskDir(b), "q"), readings/10_000, 512<<20)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			heap := uint64(0)
			for b.Loop() {
				q := mustOpen(b, o)
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				heap = max(heap, after.HeapAlloc-min(before.HeapAlloc, after.HeapAlloc))
				for _, l := range q.Losses() {
					if err := q.AckLoss(l); err != nil {
						b.Fatal(err)
					}
				}
				crash(q)
				b.StartTimer()
			}
			b.ReportMetric(float64(heap)/1024, "heap-kB")
		})
	}
}

// BenchmarkDrain sends a backlog of 24 MB.
func BenchmarkDrain(b *testing.B) {
	const batches = 2000
	for range b.N {
		b.StopTimer()
		o := backlog(b, filepath.Join(diskDir(b), "q"), batches, 256<<20)
		q := mustOpen(b, o)
		b.StartTimer()
		for n := 0; ; n++ {
			it, ok, err := q.Next(Data, 1)
			if err != nil {
				b.Fatal(err)
			}
			if !ok {
				if n != batches {
					b.Fatal(n)
				}
				break
			}
			q.Ack(Data, it.Seq)
			if n%100 == 0 {
				if err := q.Sync(time.Hour); err != nil {
					b.Fatal(err)
				}
			}
		}
		mustSync(b, q)
		b.StopTimer()
		mustClose(b, q)
	}
	b.ReportMetric(float64(b.N)*batches/b.Elapsed().Seconds(), "batches/s")
	b.ReportMetric(float64(b.N)*batches*10_000/b.Elapsed().Seconds(), "readings/s")
}
