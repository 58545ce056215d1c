package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"tidegate/bench/history"
	"tidegate/bench/writer"
)

// inventory adds to held what a buffer finds on a disk after a cut that has the
// journal of ext4 as it was before the flushes that were a lie.
//
// When an inode is in its place, or once more in the journal, ext4 moves the head
// of the journal past where it stood. Of both writes a disk that lies may lose the
// first and keep the second. The file is then as it was long before, in a file
// system that is sound, and batches that are on the disk are not found. With the
// journal of before they must be.
func (l *life) inventory(disk []byte, held map[history.Batch]bool) error {
	base := filepath.Dir(l.dir)
	path, dir := filepath.Join(base, "older"), filepath.Join(base, "look")
	defer os.Remove(path)
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	o := l.o
	o.Dir, o.Look = filepath.Join(dir, filepath.Base(l.o.Dir)), true
	var err error
	for i := range 2 + maxDeath { // the last time e2fsck is at work before
		var m *mounted
		if m, _, err = mount(path, dir, true, i > maxDeath); err != nil {
			continue
		}
		err = found(o, held)
		if un := m.unmount(); err == nil {
			err = un
		}
		if err == nil {
			break
		}
	}
	return err
}

func found(o writer.Options, held map[history.Batch]bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append([]string{"writer"}, o.Args()...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = history.Read(out, func(line string) {
		if b, ok := history.Found(line); ok {
			held[b] = true
		}
	})
	if wait := cmd.Wait(); err == nil {
		err = wait
	}
	return err
}
