package command

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The audit log is one JSON object a line. Each line holds the hash of the
// line before it, so that a line that is changed, removed or put in between
// breaks the chain. It fills a file up to maxFile; then that file becomes
// NAME.1, in the place of the one before, and the chain goes on in a new one,
// which begins with the ids that must not be taken again.
const maxFile = 1 << 20

// ErrChain means that the audit log is not what was written. The text names
// the file and the line.
var ErrChain = errors.New("the chain of the audit log is broken")

// What a line says.
const (
	whatTaken   = "taken"   // to be carried out
	whatRefused = "refused" //
	whatDone    = "done"    // carried out
	whatFailed  = "failed"  // taken, and it did not succeed
	whatTorn    = "torn"    // the last line of the run before was cut short and was removed
)

type entry struct {
	N       uint64          `json:"n"`    // number of the line, +1 each
	T       int64           `json:"t"`    // Unix ms
	Prev    string          `json:"prev"` // SHA-256 of the line before it, 64 hex digits; "" for the first
	What    string          `json:"what"`
	ID      string          `json:"id,omitempty"`
	Op      string          `json:"op,omitempty"`
	On      string          `json:"on,omitempty"` // device/point
	Value   json.RawMessage `json:"value,omitempty"`
	By      string          `json:"by,omitempty"`
	Expires int64           `json:"exp,omitempty"`
	Asked   int64           `json:"asked,omitempty"` // Unix ms
	Count   uint64          `json:"count,omitempty"` // of a signed command
	Code    string          `json:"code,omitempty"`
	Msg     string          `json:"msg,omitempty"`
}

type auditLog struct {
	path   string
	f      *os.File
	size   int64
	n      uint64
	prev   string
	count  uint64 // highest counter of a signed command that was taken
	record func([]byte)
	live   func() []entry
}

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// open reads both files and goes on behind the last whole line. A last line
// without an end is what a power cut leaves: it was never relied upon.
func (a *auditLog) open(path string, each func(*entry)) error {
	a.path = path
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	torn := false
	for _, name := range []string{path + ".1", path} {
		size, cut, err := readLog(name, func(e *entry, line []byte) error {
			a.n, a.prev, a.count = e.N, hashOf(line), max(a.count, e.Count)
			each(e)
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		if name == path {
			a.size, torn = size, cut
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	a.f = f
	if torn {
		if err := f.Truncate(a.size); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		return a.add(entry{What: whatTorn}, true)
	}
	return nil
}

// readLog reads the whole lines of a file. size is where they end; cut tells
// that something follows that is none.
func readLog(name string, each func(e *entry, line []byte) error) (size int64, cut bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	for no := 1; ; no++ {
		line, err := r.ReadSlice('\n')
		if err == io.EOF {
			return size, len(line) > 0, nil
		}
		var e entry
		if err != nil || json.Unmarshal(line, &e) != nil {
			// In the middle of the file that is no torn write.
			if _, err := r.Peek(1); err == io.EOF {
				return size, true, nil
			}
			return size, false, fmt.Errorf("%w: %s line %d is no entry", ErrChain, name, no)
		}
		size += int64(len(line))
		if err := each(&e, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return size, false, fmt.Errorf("%s line %d: %w", name, no, err)
		}
	}
}

// add writes a line; durable ones are on disk when it returns.
func (a *auditLog) add(e entry, durable bool) error {
	if a.size > maxFile {
		if err := a.turn(); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
	}
	return a.put(e, durable)
}

func (a *auditLog) put(e entry, durable bool) error {
	e.N, e.T, e.Prev = a.n+1, time.Now().UnixMilli(), a.prev
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	n, err := a.f.WriteAt(append(slices.Clip(line), '\n'), a.size)
	if err == nil && durable {
		err = a.f.Sync()
	}
	if err != nil {
		if n > 0 {
			// Whatever part of it is there is written over by the next line.
			_ = a.f.Truncate(a.size)
		}
		return fmt.Errorf("audit log: %w", err)
	}
	a.n, a.prev, a.size, a.count = e.N, hashOf(line), a.size+int64(len(line))+1, max(a.count, e.Count)
	if a.record != nil {
		a.record(line)
	}
	return nil
}

// turn begins a new file.
func (a *auditLog) turn() error {
	if err := a.f.Sync(); err != nil {
		return err
	}
	f, err := os.OpenFile(a.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err = os.Rename(a.path, a.path+".1"); err == nil {
		err = os.Rename(a.path+".new", a.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	a.f.Close()
	a.f, a.size = f, 0
	record := a.record
	a.record = nil // they were told when they were taken
	defer func() { a.record = record }()
	for _, e := range a.live() {
		e.Count = 0
		if err := a.put(e, false); err != nil {
			return err
		}
	}
	// The highest counter must outlive the files, too.
	return a.put(entry{What: whatTaken, Count: a.count, Code: "carried"}, true)
}

func (a *auditLog) close() error {
	if a.f == nil {
		return nil
	}
	return errors.Join(a.f.Sync(), a.f.Close())
}

// Check verifies the chain of an audit log, the older file first. It returns
// how many lines hold. ErrChain names the first line that does not.
func Check(path string) (lines int, err error) {
	prev, n := "", uint64(0)
	found := false
	for _, name := range []string{path + ".1", path} {
		_, cut, err := readLog(name, func(e *entry, line []byte) error {
			if lines > 0 && (e.Prev != prev || e.N != n+1) {
				return fmt.Errorf("%w: entry %d does not follow entry %d", ErrChain, e.N, n)
			}
			if lines == 0 && (e.N == 1) != (e.Prev == "") {
				return fmt.Errorf("%w: entry %d cannot be the first", ErrChain, e.N)
			}
			prev, n = hashOf(line), e.N
			lines++
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		found = true
		if err != nil {
			return lines, err
		}
		if cut {
			return lines, fmt.Errorf("%w: %s ends within a line", ErrChain, name)
		}
	}
	if !found {
		return 0, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return lines, nil
}
