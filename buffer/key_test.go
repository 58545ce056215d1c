package buffer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const goldenEncrypted = "../testdata/queue/v1-encrypted"

// secret is a key of 32 bytes for tests.
func secret(n byte) []byte {
	b := body(Data, uint64(n)+1000, keySize)
	return b
}

func keyFile(t testing.TB, n byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, secret(n), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// contents are all bytes of all files under a directory, by name, but the lock.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name := range files(t, dir) {
		if name == lockName {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// TestCanary: no eight bytes of any batch stand in any file, with a key; and
// they do without, so the search is a search.
func TestCanary(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		o := testOptions(t)
		o.KeyFile = ""
		if encrypted {
			o.KeyFile = keyFile(t, 1)
		}
		q := mustOpen(t, o)
		canary := "CANARY-37.2-DEGREES-OF-BED-12"
		for range 30 {
			put(t, q, Data)
		}
		for _, l := range []Lane{Data, Event} {
			if _, err := q.Append(l, Batch{Bytes: []byte(strings.Repeat(canary, 50)), Count: 1, From: 1, To: 2}); err != nil {
				t.Fatal(err)
			}
		}
		mustSync(t, q)
		look := func(when string) {
			t.Helper()
			found, random := 0, 0
			for _, b := range contents(t, o.Dir) {
				found += strings.Count(b, canary[:8])
				for seq := uint64(1); seq <= 30; seq++ {
					random += strings.Count(b, string(body(Data, seq, 40)[:8]))
				}
			}
			if encrypted != (found == 0) || encrypted != (random == 0) {
				t.Errorf("%s, encrypted %v: %d and %d places", when, encrypted, found, random)
			}
		}
		look("open")
		crash(q)
		spoil(t, filepath.Join(o.Dir, segmentName(Data, 1)), 0, 200) // its repair copies ciphertext
		q = mustOpen(t, o)
		if q.Stats().Salvaged == 0 || q.Stats().Quarantined == 0 {
			t.Error("nothing was repaired", q.Stats())
		}
		look("after a repair")
		for _, l := range []Lane{Data, Event} {
			it, ok, err := q.Next(l, map[Lane]uint64{Data: 31, Event: 1}[l])
			if err != nil || !ok || string(it.Bytes) != strings.Repeat(canary, 50) {
				t.Error(l, ok, err)
			}
		}
		mustClose(t, q)
		look("closed")
	}
}

// spoil flips every bit of n bytes of a file.
func spoil(t testing.TB, path string, at, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0xff
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// A key set later, removed and changed: what is there stays, and is told.
func TestKeyComesAndGoes(t *testing.T) {
	for _, end := range []string{"clean", "crash", "damage"} {
		t.Run(end, func(t *testing.T) {
			o := testOptions(t)
			o.KeyFile = ""
			stop := func(q *Queue) {
				if end == "clean" {
					mustClose(t, q)
				} else {
					crash(q)
				}
			}
			q := mustOpen(t, o)
			for range 10 {
				put(t, q, Data)
			}
			mustSync(t, q)
			stop(q)

			o.KeyFile = keyFile(t, 1)
			q = mustOpen(t, o)
			first := q.Given(Data) + 1
			for range 10 {
				put(t, q, Data)
			}
			mustSync(t, q)
			want := all(t, q, Data)
			if len(want) != 20 {
				t.Fatal(want)
			}
			stop(q)
			if end == "damage" {
				spoil(t, filepath.Join(o.Dir, segmentName(Data, 2)), 0, 200)
			}

			right := o.KeyFile
			before := contents(t, o.Dir)
			for _, c := range []struct{ file, msg string }{
				{"", "buffer.key_file is not set"},
				{keyFile(t, 2), "is not the key of what waits"},
				{filepath.Join(t.TempDir(), "none"), "no such file"},
			} {
				o.KeyFile = c.file
				_, err := Open(o)
				var e *KeyError
				if !errors.As(err, &e) || !errors.Is(err, ErrKey) || !strings.Contains(e.Error(), c.msg) || e.File != c.file || e.Hint == "" {
					t.Fatalf("%q: %v", c.file, err)
				}
				if after := contents(t, o.Dir); !reflect.DeepEqual(before, after) {
					t.Fatalf("%q: something was written", c.file)
				}
				if end == "damage" {
					continue
				}
				r, err := OpenReadOnly(o)
				if err != nil {
					t.Fatal(err)
				}
				if s := r.Stats(); s.Waiting[Data] != 20 {
					t.Error(s.Waiting)
				}
				if it, ok, err := r.Next(Data, 1); err != nil || !ok || it.Seq != 1 {
					t.Error("an old batch needs no key", ok, err)
				}
				if _, _, err := r.Next(Data, first); !errors.Is(err, ErrKey) {
					t.Error(err)
				}
				mustClose(t, r)
				if after := contents(t, o.Dir); !reflect.DeepEqual(before, after) {
					t.Fatalf("%q: something was written", c.file)
				}
			}
			o.KeyFile = right
			q = mustOpen(t, o)
			if got := all(t, q, Data); !slices.Equal(got, want) {
				t.Fatal(got, want)
			}
			for _, l := range q.Losses() {
				if l.Why != WhyRestart {
					t.Error(l)
				}
			}
			q.Ack(Data, want...)
			mustSync(t, q)
			mustClose(t, q)

			// Delivered: nothing wants the old key any more.
			o.KeyFile = keyFile(t, 3)
			q = mustOpen(t, o)
			put(t, q, Data)
			mustClose(t, q)
			o.KeyFile = right
			if _, err := Open(o); !errors.Is(err, ErrKey) {
				t.Fatal(err)
			}
		})
	}
}

// TestEncryptedFlips: each flipped bit of a segment gives the right bytes, or
// a batch in a tombstone; never other bytes, and never a question for the key.
func TestEncryptedFlips(t *testing.T) {
	o := testOptions(t)
	o.KeyFile = keyFile(t, 1)
	q := mustOpen(t, o)
	for range 20 {
		put(t, q, Data)
	}
	mustSync(t, q)
	crash(q)
	rng, _ := seed(t)
	lostOnes := 0
	for range rounds(t, "BUFFER_FLIPS", 60) {
		x := o
		x.Dir = filepath.Join(fastDir(t), "buffer")
		copyDir(t, o.Dir, x.Dir)
		path := filepath.Join(x.Dir, segmentName(Data, 1))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[rng.IntN(150<<10)] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		q := mustOpen(t, x)
		held, gone := set(all(t, q, Data)), lost(q, Data)
		for n := uint64(1); n <= 20; n++ {
			if held.has(n) == gone.has(n) {
				t.Fatalf("%d: held %v, lost %v", n, held.has(n), gone.has(n))
			}
			if gone.has(n) {
				lostOnes++
			}
		}
		mustClose(t, q)
	}
	if lostOnes == 0 {
		t.Error("no flip met a batch")
	}
}

// TestForged: a record whose checksum was made right again is not believed.
func TestForged(t *testing.T) {
	k, err := newKey(secret(1))
	if err != nil {
		t.Fatal(err)
	}
	q := &Queue{key: k}
	e := envelope{lane: Data, number: 7, count: 3, t0: 1, t1: 2}
	plain := []byte("the bytes of a batch")
	good := k.seal(e, 99, append(make([]byte, recordHead), plain...))
	if got, b, err := q.unseal(good); err != nil || !bytes.Equal(b, plain) || got.number != 7 || got.count != 3 || len(good) != recordHead+len(plain)+sealedExtra {
		t.Fatal(got, b, err)
	}
	other := k.seal(e, 99, append(make([]byte, recordHead), plain...))
	if bytes.Equal(good[recordHead+sealedHead:recordHead+sealedHead+12], other[recordHead+sealedHead:recordHead+sealedHead+12]) {
		t.Error("a nonce came twice")
	}
	for i := range good {
		rec := bytes.Clone(good)
		rec[i] ^= 4
		copy(rec[44:], sumOf(rec))
		if _, b, err := q.unseal(rec); err == nil {
			if i >= 44 && i < 48 {
				continue // the checksum itself, and it is right again
			}
			t.Fatalf("byte %d: %q", i, b)
		}
	}
}

func sumOf(rec []byte) []byte {
	s := recordSum(rec)
	return []byte{byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)}
}

// A forged record is damage: the rest is saved, it gets a tombstone.
func TestForgedInFile(t *testing.T) {
	o := testOptions(t)
	o.KeyFile = keyFile(t, 1)
	q := mustOpen(t, o)
	for range 10 {
		put(t, q, Data)
	}
	mustSync(t, q)
	crash(q)
	path := filepath.Join(o.Dir, segmentName(Data, 1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	scan(bytes.NewReader(b), int64(len(b)), Data, func(r found) {
		if r.number == 4 {
			rec := b[r.at : r.at+int64(r.length)]
			rec[len(rec)-1] ^= 1
			copy(rec[44:], sumOf(rec))
		}
	}, func(*ride) {})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	q = mustOpen(t, o)
	if got := all(t, q, Data); !slices.Equal(got, []uint64{1, 2, 3, 5, 6, 7, 8, 9, 10}) {
		t.Error(got)
	}
	if l := lost(q, Data); !l.has(4) || l.has(3) || l.has(5) {
		t.Error(l)
	}
	mustClose(t, q)
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	good := secret(1)
	for _, c := range []struct {
		name string
		text []byte
		mode fs.FileMode
		want string
	}{
		{"raw", good, 0o600, ""},
		{"read only", good, 0o400, ""},
		{"hex", []byte(hex.EncodeToString(good)), 0o600, ""},
		{"hex, upper case, with a line end", []byte(strings.ToUpper(hex.EncodeToString(good)) + "\n"), 0o600, ""},
		{"group", good, 0o640, "can be read by others"},
		{"all", good, 0o604, "can be read by others"},
		{"empty", nil, 0o600, "32 random bytes"},
		{"short", good[:31], 0o600, "32 random bytes"},
		{"long", append(bytes.Clone(good), '\n'), 0o600, "32 random bytes"},
		{"half of a key in hex", []byte(hex.EncodeToString(good[:16])), 0o600, "32 random bytes"},
		{"zeros", make([]byte, 32), 0o600, "32 random bytes"},
		{"no hex", bytes.Repeat([]byte("xyz!"), 16), 0o600, "32 random bytes"},
	} {
		path := filepath.Join(dir, "key")
		os.Remove(path)
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		err := CheckKey(path)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// A credential of systemd: the rights of the group are its access list.
	os.WriteFile(filepath.Join(dir, "key"), good, 0o600)
	os.Chmod(filepath.Join(dir, "key"), 0o440)
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := CheckKey(filepath.Join(dir, "key")); err != nil {
		t.Error(err)
	}
	if err := CheckKey(dir); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	a, err := newKey(good)
	if err != nil || hex.EncodeToString([]byte(a.name)) != goldenKeyName {
		t.Errorf("the name of the key: %x %v", a.name, err)
	}
}

const goldenKeyName = "43f34a0ff27a7648" // in the encrypted golden queue

// TestGoldenEncrypted opens what an earlier version wrote: three batches
// without a key, then with one, and a catalog. It must open for ever.
func TestGoldenEncrypted(t *testing.T) {
	o := testOptions(t)
	o.KeyFile = ""
	copyDir(t, goldenEncrypted, o.Dir)
	o.KeyFile = keyFile(t, 1)
	q := mustOpen(t, o)
	defer mustClose(t, q)
	if got := all(t, q, Data); !slices.Equal(got, []uint64{1, 3, 4, 5, 7, 8}) {
		t.Error(got)
	}
	if got := all(t, q, Event); !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Error(got)
	}
	if q.Stopped() != "clean" || q.Stats().Quarantined != 0 || len(q.Losses()) != 0 {
		t.Error(q.Stopped(), q.Stats(), q.Losses())
	}
}

// FuzzUnseal: whatever is changed, only the bytes that were encrypted come out.
func FuzzUnseal(f *testing.F) {
	k, err := newKey(secret(1))
	if err != nil {
		f.Fatal(err)
	}
	q := &Queue{key: k}
	rec := k.seal(envelope{lane: Event, number: 3, count: 2, t0: 5, t1: 9}, 1, append(make([]byte, recordHead), "bytes"...))
	f.Add(rec)
	f.Add(rec[:len(rec)-20])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= recordHead { // so that more than the checksum is tried
			copy(b[44:], sumOf(b))
		}
		e, plain, err := q.unseal(b)
		if err == nil && e.flags&flagEncrypted != 0 && (string(plain) != "bytes" || e.number != 3 || e.lane != Event || e.count != 2) {
			t.Fatalf("%+v %q", e, plain)
		}
	})
}

// BenchmarkSeal is what encryption costs a batch of 1000 readings, both ways.
func BenchmarkSeal(b *testing.B) {
	k, err := newKey(secret(1))
	if err != nil {
		b.Fatal(err)
	}
	const n = 1000 * readingBytes
	plain := append(make([]byte, recordHead), body(Data, 1, n)...)
	e := envelope{lane: Data, number: 1, count: 1000}
	for _, q := range []*Queue{{}, {key: k}} {
		name := map[bool]string{true: "plain", false: "encrypted"}[q.key == nil]
		b.Run(name+"/write", func(b *testing.B) {
			b.SetBytes(n)
			b.ReportAllocs()
			for b.Loop() {
				q.key.seal(e, 1, plain)
			}
		})
		b.Run(name+"/read", func(b *testing.B) {
			rec := bytes.Clone(q.key.seal(e, 1, plain))
			b.SetBytes(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := q.unseal(rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestEncryptedTorn: batches of a commit that did not finish are brought back
// decrypted; when they want another key, the start stops.
func TestEncryptedTorn(t *testing.T) {
	o := testOptions(t)
	o.KeyFile = keyFile(t, 1)
	q := mustOpen(t, o)
	for range 3 {
		put(t, q, Data)
	}
	mustSync(t, q)
	q.Ack(Data, 1, 2, 3)
	q.disk.Lock()
	if err := q.saveState(false); err != nil {
		t.Fatal(err)
	}
	q.disk.Unlock()
	path := filepath.Join(o.Dir, segmentName(Data, 1))
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, q, Data)
	put(t, q, Data)
	mustSync(t, q)
	crash(q)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[:2*pageSize], old) // the meta pages did not reach the disk
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	before := contents(t, o.Dir)
	right := o.KeyFile
	for _, o.KeyFile = range []string{"", keyFile(t, 2)} {
		if _, err := Open(o); !errors.Is(err, ErrKey) {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(before, contents(t, o.Dir)) {
		t.Fatal("something was written")
	}
	o.KeyFile = right
	q = mustOpen(t, o)
	if got := all(t, q, Data); !slices.Equal(got, []uint64{4, 5}) || q.Stats().Salvaged != 2 {
		t.Fatal(got, q.Stats())
	}
	mustClose(t, q)
	q = mustOpen(t, o)
	if got := all(t, q, Data); !slices.Equal(got, []uint64{4, 5}) {
		t.Fatal(got)
	}
	mustClose(t, q)
}
