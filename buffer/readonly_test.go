package buffer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// picture is what stands in a directory: names, sizes, contents.
func picture(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if b, err := os.ReadFile(filepath.Join(dir, d.Name())); err == nil && d.Name() != "lock" {
			out[d.Name()] = string(b)
		}
	}
	return out
}

// TestReadOnly: looking at a buffer, also at one that was not closed, shows
// what waits and changes no byte of it.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Size: 16 << 20, MaxLoss: time.Second}
	if _, err := OpenReadOnly(Options{Dir: filepath.Join(dir, "nothing"), Size: 16 << 20}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := q.Append(Data, Batch{Bytes: []byte{byte(i)}, Count: 1, From: 1, To: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.SaveMeta("catalog/1", []byte("points")); err != nil {
		t.Fatal(err)
	}
	if err := q.Sync(0); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(o); !errors.Is(err, ErrLocked) {
		t.Errorf("beside an open queue: %v", err)
	}
	q.abandon() // the power goes
	before := picture(t, dir)

	r, err := OpenReadOnly(o)
	if err != nil {
		t.Fatal(err)
	}
	if item, ok, err := r.Prev(Data, 1<<40); err != nil || !ok || item.Seq != 20 || item.Bytes[0] != 19 {
		t.Errorf("the newest: %+v %v %v", item, ok, err)
	}
	if item, ok, err := r.Next(Data, 1); err != nil || !ok || item.Seq != 1 {
		t.Errorf("the oldest: %+v %v %v", item, ok, err)
	}
	if b, ok, err := r.Meta("catalog/1"); err != nil || !ok || string(b) != "points" {
		t.Errorf("catalog %q %v %v", b, ok, err)
	}
	if s := r.Stats(); s.Waiting[Data] != 20 {
		t.Errorf("%d batches wait, want 20", s.Waiting[Data])
	}
	if _, err := r.Append(Data, Batch{Bytes: []byte("x")}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Append: %v", err)
	}
	if err := r.Sync(0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Sync: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	after := picture(t, dir)
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s has changed", name)
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d files before, %d after", len(before), len(after))
	}
	if q, err = Open(o); err != nil {
		t.Fatal(err)
	}
	if q.Boot() != 2 || q.Stopped() != "power" {
		t.Errorf("start %d after %q, want 2 after power", q.Boot(), q.Stopped())
	}
	q.Close()
}
