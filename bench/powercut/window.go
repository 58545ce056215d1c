package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidegate/buffer"
)

// window is a moment at which a cut is aimed: when something happens to a
// file, the power goes within so many writes.
type window struct {
	name  string
	mask  uint32
	match func(file string) bool
	most  int
	start bool // it comes while the buffer is opened
}

// windows are those that a random cut hits too rarely. The first is none: the
// cut comes anywhere.
var windows = [...]window{
	{name: "anywhere"},
	{name: "creation", mask: unix.IN_CREATE, match: func(string) bool { return true }, most: 60, start: true},
	{name: "segment change", mask: unix.IN_CREATE, match: func(f string) bool { return isSegment(strings.TrimSuffix(f, ".new")) }, most: 20},
	{name: "unlink after delivery or drop", mask: unix.IN_DELETE, match: isSegment, most: 8},
	{name: "state and tombstones", mask: unix.IN_MODIFY, match: func(f string) bool { return f == "state.db" }, most: 10},
	{name: "numbers", mask: unix.IN_MODIFY, match: func(f string) bool { return f == "numbers" }, most: 24, start: true},
	{name: "salvage", mask: unix.IN_CREATE, match: func(f string) bool { return strings.HasSuffix(f, ".salvaged") }, most: 40, start: true},
}

const (
	windowCreation = 1
	windowSalvage  = 6
)

func isSegment(file string) bool {
	return strings.HasSuffix(file, ".db") && (strings.HasPrefix(file, buffer.Data.String()+"-") || strings.HasPrefix(file, buffer.Event.String()+"-"))
}

// watch calls seen when the window opens, until it says that this is enough.
// stop ends it.
func (w *window) watch(dir string, seen func() bool) (stop func(), err error) {
	if w.match == nil {
		return func() {}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, w.mask); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("inotify of %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	over := make(chan struct{})
	go func() {
		defer close(over)
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
				size := int(binary.NativeEndian.Uint32(b[12:]))
				name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
				if w.match(name) && seen() {
					return
				}
				b = b[unix.SizeofInotifyEvent+size:]
			}
		}
	}()
	return func() {
		_ = f.SetReadDeadline(time.Now())
		f.Close()
		<-over
	}, nil
}

// spoil makes a segment unreadable for bbolt without touching a batch: both
// meta pages are gone. All that was in it must be saved.
func (l *life) spoil() (bool, error) {
	list, err := filepath.Glob(filepath.Join(l.o.Dir, "*.db"))
	if err != nil {
		return false, err
	}
	var segments []string
	for _, path := range list {
		if isSegment(filepath.Base(path)) {
			segments = append(segments, path)
		}
	}
	pick := l.rng.Uint64()
	if len(segments) == 0 {
		return false, nil
	}
	f, err := os.OpenFile(segments[pick%uint64(len(segments))], os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 8192), 0); err != nil {
		return false, err
	}
	l.h.Spoilt = true
	// It is as old as all else on this disk, whatever the disk says of flushes.
	if err := f.Sync(); err != nil {
		return false, err
	}
	unix.Sync()
	l.d.settle()
	return true, nil
}
