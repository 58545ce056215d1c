package buffer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Remains are the files of a buffer, as Erase found them.
type Remains struct {
	Files    []string // paths of what goes
	Bytes    int64    // what they take on disk
	Batches  int64    // not delivered; -1 when it could not be found out
	Readings int64    // in them; -1 when it could not be found out
	Others   []string // paths in the directory that are not of a buffer and stay
}

// Erase removes all files of the buffer of a directory, whatever state they
// are in, also without its key; also names further files in the directory
// that go with it. The directory and an empty lock file stay. With yes false
// it only tells what would go. It holds the lock meanwhile: ErrLocked says
// that an agent runs. A directory that is not there has nothing in it.
//
// Blocks of removed files may stay on flash until they are used again.
func Erase(o Options, yes bool, also ...string) (Remains, error) {
	r := Remains{Batches: -1, Readings: -1}
	if _, err := os.Stat(o.Dir); errors.Is(err, fs.ErrNotExist) {
		return Remains{}, nil
	}
	_, err := os.Lstat(filepath.Join(o.Dir, lockName))
	used := err == nil
	lock, err := r.count(o)
	if err != nil {
		return r, err
	}
	defer lock.Close()
	if !used { // it is ours, and may belong to another user than the buffer
		defer os.Remove(filepath.Join(o.Dir, lockName))
	}
	if err := r.list(o.Dir, also); err != nil || !yes {
		return r, err
	}
	var failed []error
	for _, path := range r.Files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	aside := filepath.Join(o.Dir, quarantineDir)
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		failed = append(failed, err)
	}
	failed = append(failed, lock.Truncate(0), syncDir(o.Dir))
	return r, errors.Join(failed...)
}

// count takes the lock and says what waits, as far as the files can be read.
func (r *Remains) count(o Options) (*os.File, error) {
	q, err := OpenReadOnly(o)
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err != nil {
		return lockDir(o.Dir)
	}
	s := q.Stats()
	r.Batches, r.Readings = 0, 0
	for i := range s.Waiting {
		r.Batches += s.Waiting[i]
		r.Readings += s.Readings[i]
	}
	q.closeFiles()
	return q.lock, nil
}

// list finds the files of the buffer and tells them from others.
func (r *Remains) list(dir string, also []string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		aside := path == filepath.Join(dir, quarantineDir)
		switch {
		case path == dir || path == filepath.Join(dir, lockName) || d.IsDir() && aside:
			return nil
		case d.IsDir():
			r.Others = append(r.Others, path)
			return filepath.SkipDir
		case filepath.Dir(path) == dir && !ours(name) && !slices.Contains(also, name):
			r.Others = append(r.Others, path)
			return nil
		}
		r.Files = append(r.Files, path)
		if fi, err := d.Info(); err == nil {
			r.Bytes += fileBytes(fi)
		}
		return nil
	})
}

// ours tells whether a file in the directory is one of a buffer.
func ours(name string) bool {
	name = strings.TrimSuffix(strings.TrimSuffix(name, suffixNew), suffixSalvaged)
	_, _, segment := parseName(name)
	return segment || name == markerName || name == numbersName || slices.Contains(stateNames[:], name)
}

// Shred overwrites a file that holds a key, unlinks it and makes that
// durable. Of a link, what it leads to goes, and the link. On flash the old
// blocks may outlive being overwritten. A file that is not there is
// fs.ErrNotExist.
func Shred(file string) error {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	over := overwrite(real)
	if err := os.Remove(real); err != nil {
		return errors.Join(err, over)
	}
	if err := syncDir(filepath.Dir(real)); err != nil {
		return err
	}
	if fi, err := os.Lstat(file); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		if err := os.Remove(file); err != nil {
			return err
		}
		return syncDir(filepath.Dir(file))
	}
	return nil
}

// overwrite puts random bytes in the place of what a file holds.
func overwrite(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", file)
	}
	if _, err := io.CopyN(f, rand.Reader, fi.Size()); err != nil {
		return err
	}
	return f.Sync()
}
