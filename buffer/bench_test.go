package buffer

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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
// readings a second. Bare bbolt puts the same bytes with one Update, in turns
// with the queue, so that what else the machine does meets both; x-bbolt is
// the median of the turns.
func BenchmarkDurable(b *testing.B) {
	const turns = 40
	for _, group := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(group), func(b *testing.B) {
			bytes := body(Data, 1, group*readingBytes)
			dir := diskDir(b)
			q := mustOpen(b, Options{Dir: filepath.Join(dir, "q"), Size: 512 << 20, MaxLoss: time.Second})
			bare, err := bbolt.Open(filepath.Join(dir, "bare.db"), 0o600, &bbolt.Options{PageSize: pageSize, FreelistType: bbolt.FreelistMapType, InitialMmapSize: 1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			n := uint64(0)
			commit := []func() error{func() error {
				if _, err := q.Append(Data, Batch{Bytes: bytes, Count: group}); err != nil {
					return err
				}
				return q.Sync(0)
			}, func() error {
				n++
				return bare.Update(func(tx *bbolt.Tx) error {
					q, err := tx.CreateBucketIfNotExists([]byte("q"))
					if err != nil {
						return err
					}
					return q.Put(binary.BigEndian.AppendUint64(nil, n), bytes)
				})
			}}
			mustSync(b, q) // numbers are reserved
			before := q.Stats().Written
			var took [2]time.Duration
			var ratios []float64
			for range b.N {
				for range turns {
					var turn [2]time.Duration
					for who := range commit {
						start := time.Now()
						for range max(4, 4000/group) {
							if err := commit[who](); err != nil {
								b.Fatal(err)
							}
						}
						turn[who] = time.Since(start)
						took[who] += turn[who]
					}
					ratios = append(ratios, float64(turn[1])/float64(turn[0]))
				}
			}
			readings := float64(n) * float64(group)
			slices.Sort(ratios)
			b.ReportMetric(readings/took[0].Seconds(), "readings/s")
			b.ReportMetric(readings/took[1].Seconds(), "bbolt-readings/s")
			b.ReportMetric(ratios[len(ratios)/2], "x-bbolt")
			b.ReportMetric(float64(q.Stats().Written-before)/readings, "disk-B/reading")
			b.ReportMetric(0, "ns/op")
			mustClose(b, q)
			bare.Close()
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

// BenchmarkDrain sends a backlog of 100 million readings, in order. heap-kB is
// the most that it ever took, looked at two hundred times.
func BenchmarkDrain(b *testing.B) {
	const batches = 10_000
	heap := uint64(0)
	for range b.N {
		b.StopTimer()
		o := backlog(b, filepath.Join(diskDir(b), "q"), batches, 512<<20)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		q := mustOpen(b, o)
		b.StartTimer()
		for n := uint64(1); ; n++ {
			it, ok, err := q.Next(Data, 1)
			if err != nil {
				b.Fatal(err)
			}
			if !ok {
				if n != batches+1 {
					b.Fatal(n)
				}
				break
			}
			if it.Seq != n {
				b.Fatalf("%d came where %d was next", it.Seq, n)
			}
			q.Ack(Data, it.Seq)
			if n%50 == 0 {
				if err := q.Sync(time.Hour); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				heap = max(heap, after.HeapAlloc-min(before.HeapAlloc, after.HeapAlloc))
				b.StartTimer()
			}
		}
		mustSync(b, q)
		b.StopTimer()
		mustClose(b, q)
	}
	b.ReportMetric(float64(heap)/1024, "heap-kB")
	b.ReportMetric(float64(b.N)*batches/b.Elapsed().Seconds(), "batches/s")
	b.ReportMetric(float64(b.N)*batches*10_000/b.Elapsed().Seconds(), "readings/s")
	b.ReportMetric(0, "ns/op")
}
