package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// A buffer is adrift when it was opened on a disk that cannot be written:
// full, read-only, broken. It works in memory, in an epoch of its own, and
// what is already on the disk can be read. A number of the old epoch could
// not be reserved, and one that is not reserved could be given again. Sync
// tries to get ashore; then the new epoch takes over what the store holds.

// unwritable tells an error of a disk that may yet be written, from one that
// somebody has to do something about, such as a missing right.
func unwritable(err error) bool {
	for _, e := range []error{syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// enter makes the directory and takes its lock.
func (q *Queue) enter() (err error) {
	if !q.readOnly {
		if err := os.MkdirAll(q.dir, 0o700); err != nil {
			return err
		}
	}
	q.lock, err = lockDir(q.dir)
	return err
}

// takeUnwritten takes the lock where nothing can be written: by the lock file
// if there is one, else by the directory, else there is nothing to lock.
func (q *Queue) takeUnwritten() error {
	for _, path := range []string{filepath.Join(q.dir, lockName), q.dir} {
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return holder(q.dir)
			}
			continue
		}
		q.lock = f
		return nil
	}
	return nil
}

// startAdrift opens the buffer in memory because of an error of the disk.
func (q *Queue) startAdrift(cause error) error {
	if q.lock == nil {
		if err := q.takeUnwritten(); err != nil {
			return err
		}
	}
	q.adrift = fmt.Errorf("nothing can be written, readings are only in memory: %w", cause)
	if err := q.start(); err != nil {
		return err
	}
	_ = q.failed(q.adrift)
	return nil
}

// forgetStart undoes what a start that failed has found.
func (q *Queue) forgetStart() {
	q.closeFiles()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes, q.ledger = [laneCount]lane{}, nil
	q.states, q.numbers = [len(stateNames)]stateFile{}, numbersFile{}
	q.memory, q.cached, q.salvaged = 0, 0, 0
	q.lossDirty, q.lastError = false, nil
	q.opener.hot = nil
}

// ashore ends being adrift if the disk can be written again. The caller holds
// the disk lock.
func (q *Queue) ashore() error {
	if q.lock != nil {
		q.lock.Close()
		q.lock = nil
	}
	if err := q.enter(); err != nil {
		return err
	}
	s, _, wrong, err := loadStates(q.dir)
	if err != nil {
		return err
	}
	list, err := os.ReadDir(q.dir)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range list {
		if _, _, ok := parseName(d.Name()); ok {
			names = append(names, d.Name())
		}
	}
	if s == nil {
		s = &state{}
	}
	if s.epoch != q.foundEpoch || s.gen != q.foundGen || !slices.Equal(names, q.foundNames) {
		return fmt.Errorf("%s holds another buffer than at the start: start anew to use it", q.dir)
	}
	for i := range q.states {
		if b := q.states[i].b; b != nil {
			_ = b.close()
		}
		q.states[i] = stateFile{}
	}
	cause := q.adrift
	q.setAdrift(nil)
	if err = q.tidy(); err == nil {
		err = q.openStates(wrong)
	}
	if err == nil {
		err = q.reserve()
	}
	if err == nil {
		err = q.saveState(false)
	}
	metas := q.metas
	q.metas = nil
	for key, val := range metas {
		if err == nil {
			err = q.saveMeta(key, val)
		}
	}
	if err != nil {
		q.metas = metas
		q.setAdrift(cause)
	}
	return err
}

func (q *Queue) setAdrift(cause error) {
	q.mu.Lock()
	q.adrift = cause
	q.mu.Unlock()
}
