package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const lockName = "lock"

// lockDir takes the lock of a directory and writes our process id into it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock of %s: %w", dir, err)
		}
		return nil, holder(dir)
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(pid), 0)
		if err != nil { // a full disk does not make the lock worse
			err = f.Truncate(0)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock of %s: %w", dir, err)
		}
	}
	return f, nil
}

// holder reads who has the lock.
func holder(dir string) *LockError {
	e := &LockError{Dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, lockName))
	if err == nil {
		e.PID, _ = strconv.Atoi(strings.TrimSpace(string(b[:min(len(b), 32)])))
		e.Command = commandOf(e.PID)
	}
	return e
}

// commandOf returns the command line of a process, "" when it cannot be read.
func commandOf(pid int) string {
	if pid <= 0 {
		return ""
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// preallocate gives a file its size and its blocks, so that a foreign file
// cannot take the space away. A file system that cannot do it gets the size.
func preallocate(f *os.File, size int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			return f.Truncate(size)
		case err != nil:
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// fileBytes is what a file costs: its length or its blocks, whatever is more.
func fileBytes(fi fs.FileInfo) int64 {
	n := fi.Size()
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		n = max(n, int64(st.Blocks)*512)
	}
	return n
}

// usage adds up what all files under a directory cost.
func usage(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				sum += fileBytes(fi)
			}
		}
		return nil
	})
	return sum, err
}

// rename moves a file and makes both directories durable.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if a, b := filepath.Dir(from), filepath.Dir(to); a != b {
		if err := syncDir(a); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(to))
}
