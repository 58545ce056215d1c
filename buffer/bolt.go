package buffer

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

const (
	pageSize  = 4096
	ext4Magic = 0xef53 // EXT4_SUPER_MAGIC of linux/magic.h

	zeroStep = 64 << 10
	zeroMost = 2 * pageSize // more cost as much as a commit of the journal of ext4

	zeroWithin = time.Second // of the commit before
)

// boltFile is a bbolt file whose every transaction is caught: bbolt panics
// or faults on a damaged file, and a damaged file must not end the process.
type boltFile struct {
	db    *bbolt.DB
	file  *os.File
	stuck atomic.Bool // bbolt panicked holding a lock: whoever asks it again waits for ever

	hold int         // so many commits back, no page of theirs is written over
	held []*bbolt.Tx // their snapshots, the oldest first

	blocks int64     // up to where zeros may be written ahead of small commits
	high   int64     // where the pages ended before the last commit, 0: not known
	zeroed int64     // up to where zeros were written
	last   time.Time // of the last commit
}

// appended prepares a file that has all its blocks for being appended to. Its
// commits write no list of free pages: bbolt finds them when it opens the file.
// Only ext4 was seen to gain by zeros; where each write goes to a new place they
// would be a loss.
func (b *boltFile) appended(size int64) {
	b.db.NoFreelistSync = true
	b.hold = snapshots(size)
	var st syscall.Statfs_t
	if syscall.Fstatfs(int(b.file.Fd()), &st) == nil && st.Type == ext4Magic {
		b.blocks = size
	}
}

// guarded runs fn and turns a panic or a memory fault into errDamaged.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("bbolt: %v", p)
		}
	}()
	return fn()
}

// openBolt opens a file. size is the most it may grow to; 0 opens it for
// reading only. alloc is by how much it grows.
func openBolt(path string, size, alloc int64, log *slog.Logger) (*boltFile, error) {
	b := &boltFile{}
	o := &bbolt.Options{
		PageSize: pageSize, FreelistType: bbolt.FreelistMapType, InitialMmapSize: int(2 * size),
		Timeout: 2 * time.Second, ReadOnly: size == 0, MaxSize: int(size),
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW, mode)
			b.file = f
			return f, err
		},
	}
	if log != nil {
		o.Logger = boltLog{log}
	}
	err := guarded(func() (err error) {
		b.db, err = bbolt.Open(path, 0o600, o)
		return err
	})
	if err != nil {
		if b.file != nil {
			b.file.Close() // bbolt has closed it unless it panicked
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	b.db.AllocSize = int(alloc)
	return b, nil
}

// update runs fn in a transaction and commits it. After an error the outcome
// is unknown: the file must be closed and read anew. It returns the bytes of
// the pages and zeros written.
func (b *boltFile) update(fn func(*bbolt.Tx) error) (written int64, err error) {
	var tx *bbolt.Tx
	if err := b.begin(true, &tx); err != nil {
		return 0, err
	}
	before := b.pages()
	err = guarded(func() error {
		if err := fn(tx); err != nil {
			return err
		}
		if written, err = b.writeAhead(tx.Size()); err != nil {
			return err
		}
		return tx.Commit()
	})
	if err != nil {
		b.end(tx)
		return 0, err
	}
	b.keep()
	return written + b.pages() - before + pageSize, nil // the pages and the meta page
}

// writeAhead writes zeros behind the pages, which end at high, when the last
// commit grew by little. A block that was allocated and not yet written has to
// be marked as written by the journal, and then each fdatasync waits for it
// and writes as much again. Marked in one go, many small commits need no
// journal. Large ones take the blocks as they are: zeros would cost them more.
// So would seldom ones: the journal writes the time of change within 5 s anyway.
// No page that any commit leads to lies behind high.
func (b *boltFile) writeAhead(high int64) (written int64, err error) {
	grew := high - b.high
	if b.high == 0 {
		grew = 0
	}
	b.high = high
	seldom := time.Since(b.last) > zeroWithin
	b.last = time.Now()
	from := max(high, b.zeroed)
	if seldom || grew == 0 || grew > zeroMost || from-high >= zeroMost {
		return 0, nil
	}
	written, err = io.Copy(io.NewOffsetWriter(b.file, from), io.LimitReader(zeros{}, min(zeroStep, b.blocks-from)))
	b.zeroed = from + written
	return written, err
}

// keep takes a snapshot of what was just committed and lets go of the oldest
// one. bbolt does not use the pages of a snapshot again. So a disk that
// forgets its last confirmed flushes takes only what was committed with them,
// and not older batches that stood beside it on a page that was written over.
// The map is large enough from the start, so a snapshot blocks no writer.
func (b *boltFile) keep() {
	if b.hold == 0 {
		return
	}
	_ = guarded(func() error {
		tx, err := b.db.Begin(false)
		if err == nil {
			b.held = append(b.held, tx)
		}
		return err
	})
	for len(b.held) > b.hold {
		b.end(b.held[0])
		b.held[0] = nil
		b.held = b.held[1:]
	}
}

// view runs fn in a transaction that only reads.
func (b *boltFile) view(fn func(*bbolt.Tx) error) error {
	var tx *bbolt.Tx
	if err := b.begin(false, &tx); err != nil {
		return err
	}
	defer b.end(tx)
	return guarded(func() error { return fn(tx) })
}

// begin starts a transaction. bbolt panics with its locks held when neither
// meta page can be read, so that is looked at before: the file may have been
// cut or overwritten while it is open.
func (b *boltFile) begin(write bool, tx **bbolt.Tx) error {
	if b.stuck.Load() {
		return damaged("bbolt cannot use the file any more")
	}
	if err := metasReadable(b.file); err != nil {
		return err
	}
	began := false
	err := guarded(func() (err error) {
		*tx, err = b.db.Begin(write)
		began = true
		return err
	})
	if !began {
		b.stuck.Store(true)
	}
	return err
}

func (b *boltFile) end(tx *bbolt.Tx) {
	ended := false
	_ = guarded(func() error {
		_ = tx.Rollback()
		ended = true
		return nil
	})
	if !ended {
		b.stuck.Store(true)
	}
}

func (b *boltFile) pages() int64 {
	s := b.db.Stats()
	return s.TxStats.GetPageAlloc()
}

// close releases the file. A stuck one keeps its mapping until the process
// ends; its descriptor and lock are given back.
func (b *boltFile) close() error {
	for _, tx := range b.held {
		if !b.stuck.Load() {
			b.end(tx)
		}
	}
	b.held = nil
	if b.stuck.Load() {
		return b.file.Close()
	}
	return guarded(b.db.Close)
}

// boltLog passes warnings and errors of bbolt on.
type boltLog struct{ log *slog.Logger }

func (l boltLog) Debug(...any)                     {}
func (l boltLog) Debugf(string, ...any)            {}
func (l boltLog) Info(...any)                      {}
func (l boltLog) Infof(string, ...any)             {}
func (l boltLog) Warning(v ...any)                 { l.log.Warn("bbolt: " + fmt.Sprint(v...)) }
func (l boltLog) Warningf(format string, v ...any) { l.log.Warn("bbolt: " + fmt.Sprintf(format, v...)) }
func (l boltLog) Error(v ...any)                   { l.log.Error("bbolt: " + fmt.Sprint(v...)) }
func (l boltLog) Errorf(format string, v ...any)   { l.log.Error("bbolt: " + fmt.Sprintf(format, v...)) }
func (l boltLog) Fatal(v ...any)                   { panic(fmt.Sprint(v...)) }
func (l boltLog) Fatalf(format string, v ...any)   { panic(fmt.Sprintf(format, v...)) }
func (l boltLog) Panic(v ...any)                   { panic(fmt.Sprint(v...)) }
func (l boltLog) Panicf(format string, v ...any)   { panic(fmt.Sprintf(format, v...)) }
