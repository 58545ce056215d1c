package buffer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestErase: all that a buffer may leave behind goes, in whatever state, and
// nothing else; what was never sent is counted before.
func TestErase(t *testing.T) {
	o := testOptions(t)
	if r, err := Erase(o, true); err != nil || len(r.Files) != 0 {
		t.Error("a directory that is not there:", r, err)
	}
	q := mustOpen(t, o)
	for range 10 {
		put(t, q, Data)
	}
	mustSync(t, q)
	if _, err := Erase(o, true); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	crash(q)
	spoil(t, filepath.Join(o.Dir, segmentName(Data, 1)), 0, 200)
	q = mustOpen(t, o) // it moves the damaged file aside
	mustClose(t, q)
	for _, name := range []string{"data-00000009.db.new", "data-00000009.db.salvaged", markerName, "clock.json", "notes.txt", "data-1.txt"} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(o.Dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := contents(t, o.Dir)
	r, err := Erase(o, false, "clock.json")
	if err != nil || r.Batches != 10 || r.Readings <= 0 || r.Bytes < 256<<10 || len(r.Others) != 3 {
		t.Errorf("%+v %v", r, err)
	}
	if !reflect.DeepEqual(before, contents(t, o.Dir)) {
		t.Error("looking has changed something")
	}
	spoil(t, filepath.Join(o.Dir, stateNames[0]), 0, 200) // it must go in any state
	spoil(t, filepath.Join(o.Dir, stateNames[1]), 0, 200)
	if again, err := Erase(o, true, "clock.json"); err != nil || !reflect.DeepEqual(again.Files, r.Files) {
		t.Errorf("%+v %v", again, err)
	}
	left := files(t, o.Dir)
	if n, ok := left[lockName]; !ok || n != 0 || len(left) != 3 {
		t.Error(left)
	}
	q = mustOpen(t, o)
	if q.Stopped() != "first" || q.Given(Data) != 0 {
		t.Error(q.Stopped(), q.Given(Data))
	}
	mustClose(t, q)
}

// TestShred: the inode is overwritten before its name goes.
func TestShred(t *testing.T) {
	dir := t.TempDir()
	file, link, keep := filepath.Join(dir, "key"), filepath.Join(dir, "link"), filepath.Join(dir, "keep")
	if err := os.WriteFile(file, []byte(strings.Repeat("secret", 9)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink("key", link), os.Link(file, keep)); err != nil {
		t.Fatal(err)
	}
	if err := Shred(link); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(keep); err != nil || len(b) != 54 || strings.Contains(string(b), "secret") {
		t.Errorf("%q %v", b, err)
	}
	for _, gone := range []string{file, link} {
		if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Error(gone, err)
		}
	}
	if err := Shred(file); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
