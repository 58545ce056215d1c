package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attach makes a loop device of a file. It frees itself when the last user is gone.
func attach(path string) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("no loop devices: %w", err)
	}
	defer control.Close()
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(back.Fd()), Size: sector,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) || try == 20 { // somebody else was faster
			return nil, fmt.Errorf("%s: %w", loop.Name(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const (
	block       = 1024 // of the file system; what mkfs takes for so small a one
	journalSize = 1 << 20
)

// mounted is an ext4 file system on a disk.
type mounted struct{ dir string }

// mount attaches the disk and mounts it. With may, a file system that does not
// mount is repaired first, as a start of the machine would do it; with must,
// in any case.
func mount(diskFile, dir string, may, must bool) (m *mounted, repaired bool, err error) {
	loop, err := attach(diskFile)
	if err != nil {
		return nil, false, err
	}
	defer loop.Close()
	try := func() error { return unix.Mount(loop.Name(), dir, "ext4", unix.MS_NOATIME, "") }
	if !must {
		err = try()
	}
	if must || err != nil && may {
		repaired = true
		_ = exec.Command("e2fsck", "-fy", loop.Name()).Run() // its exit code tells that it found something
		err = try()
	}
	if err != nil {
		return nil, repaired, fmt.Errorf("mount of %s: %w", loop.Name(), err)
	}
	return &mounted{dir: dir}, repaired, nil
}

// sound tells whether the file system of a disk is whole after its journal was
// replayed. It looks at a copy, so the buffer still meets what ext4 does not see.
func sound(dir string, content []byte) (bool, error) {
	path := filepath.Join(dir, "copy")
	defer os.Remove(path)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return false, err
	}
	_ = exec.Command("e2fsck", "-y", "-E", "journal_only", path).Run()
	err := exec.Command("e2fsck", "-fn", path).Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, err
	}
	return err == nil, nil
}

// unmount waits until nobody uses the file system any more.
func (m *mounted) unmount() error {
	var err error
	for range 200 {
		if err = unix.Unmount(m.dir, 0); err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = unix.Unmount(m.dir, unix.MNT_DETACH)
	return fmt.Errorf("umount of %s: %w", m.dir, err)
}

// emptying lets ext4 bring home what is in its journal, so often, until it is stopped.
func emptying(dir string, every time.Duration) (stop func()) {
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		const checkpoint = 0x4004662b // EXT4_IOC_CHECKPOINT
		f, err := os.Open(dir)
		if err != nil {
			return
		}
		defer f.Close()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = unix.IoctlSetPointerInt(int(f.Fd()), checkpoint, 0) // once the power is off it fails
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-over
	}
}

// template makes the content of a disk with an empty file system, and tells
// where its journal is.
func template(dir string, size int64) (content []byte, journal int64, err error) {
	path := filepath.Join(dir, "template")
	f, err := os.Create(path)
	if err != nil {
		return nil, 0, err
	}
	defer os.Remove(path)
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, 0, err
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-b", strconv.Itoa(block), "-J", "size="+strconv.Itoa(journalSize>>20), "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput()
	if err != nil {
		return nil, 0, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	const last = journalSize/block - 1
	at := map[int]int64{0: 0, last: 0}
	for i := range at {
		out, err := exec.Command("debugfs", "-R", fmt.Sprintf("bmap <8> %d", i), path).Output()
		if err != nil {
			return nil, 0, fmt.Errorf("debugfs: %w", err)
		}
		if at[i], err = strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64); err != nil {
			return nil, 0, fmt.Errorf("debugfs: %w", err)
		}
	}
	if at[0] == 0 || at[last]-at[0] != last {
		return nil, 0, fmt.Errorf("the journal is not in one piece: %v", at)
	}
	content, err = os.ReadFile(path)
	return content, at[0] * block, err
}
