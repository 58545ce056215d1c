package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const sector = 512

var errOff = errors.New("the disk is off")

// disk is a block device in memory that remembers which writes a power cut
// may still undo.
type disk struct {
	mu      sync.Mutex
	now     []byte    // what a read returns
	safe    []byte    // what a power cut leaves in any case
	open    []write   // since the last flush
	flushed [][]write // flushes that were confirmed and are a lie, the oldest first
	lag     int       // how many of them the disk keeps

	off     bool
	writes  int // since it was switched on
	flushes int
	cutAt   int           // at this write the power goes; 0: it stays
	cut     chan struct{} // closed when it has gone
}

type write struct {
	at   int64
	data []byte
}

// newDisk makes a disk with a content.
func newDisk(content []byte, lag int) *disk {
	d := &disk{now: make([]byte, len(content)), safe: make([]byte, len(content)), lag: lag, cut: make(chan struct{})}
	copy(d.now, content)
	copy(d.safe, content)
	return d
}

// arm lets the power go at the n-th write from now.
func (d *disk) arm(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = d.writes + n
}

// sooner lets it go at the n-th write from now, if it does not go before.
func (d *disk) sooner(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cutAt == 0 || d.writes+n < d.cutAt {
		d.cutAt = d.writes + n
	}
}

// settle makes safe all that was ever written.
func (d *disk) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.safe, d.now)
	d.open, d.flushed = nil, nil
}

// disarm keeps the power on. It tells whether it is.
func (d *disk) disarm() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = 0
	return !d.off
}

func (d *disk) confirmed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

func (d *disk) read(b []byte, at int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off || at < 0 || at+int64(len(b)) > int64(len(d.now)) {
		return errOff
	}
	copy(b, d.now[at:])
	return nil
}

func (d *disk) write(b []byte, at int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off || at < 0 || at+int64(len(b)) > int64(len(d.now)) {
		return errOff
	}
	copy(d.now[at:], b)
	d.open = append(d.open, write{at, append([]byte(nil), b...)})
	d.writes++
	if d.writes == d.cutAt { // in the middle of this write
		d.off = true
		close(d.cut)
		return errOff
	}
	return nil
}

func (d *disk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errOff
	}
	d.flushes++
	d.flushed = append(d.flushed, d.open)
	d.open = nil
	for len(d.flushed) > d.lag {
		for _, w := range d.flushed[0] {
			copy(d.safe[w.at:], w.data)
		}
		d.flushed = d.flushed[1:]
	}
	return nil
}

// powerOn brings the disk back as a power cut leaves it: each sector that was
// written and is not safe is there with probability keep. It returns how many
// were kept and how many were not, whether the head of the journal of ext4 is
// another one now, and the whole journal as it was before.
func (d *disk) powerOn(r *rand.Rand, keep float64, journal int64) (kept, gone int, moved bool, before []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before = bytes.Clone(d.safe[journal : journal+journalSize])
	all := append(d.flushed, d.open)
	for _, group := range all {
		for _, w := range group {
			for i := 0; i < len(w.data); i += sector {
				part := w.data[i:min(i+sector, len(w.data))]
				if r.Float64() >= keep {
					gone++
					continue
				}
				kept++
				copy(d.safe[w.at+int64(i):], part)
			}
		}
	}
	for _, group := range all {
		for _, w := range group {
			copy(d.now[w.at:w.at+int64(len(w.data))], d.safe[w.at:])
		}
	}
	d.open, d.flushed = nil, nil
	d.off, d.writes, d.flushes, d.cutAt, d.cut = false, 0, 0, 0, make(chan struct{})
	return kept, gone, !bytes.Equal(before[:block], d.safe[journal:journal+block]), before
}

// file shows the disk to the kernel as a file.
type file struct {
	fs.Inode
	d *disk
}

var (
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
)

// Open asks the kernel for no cache of its own: all that is volatile is here.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(len(f.d.now))
	return 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, b []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	if err := f.d.read(b, at); err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(b), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, b []byte, at int64) (uint32, syscall.Errno) {
	if err := f.d.write(b, at); err != nil {
		return 0, syscall.EIO
	}
	return uint32(len(b)), 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if err := f.d.flush(); err != nil {
		return syscall.EIO
	}
	return 0
}

// serve mounts a directory with the one file "disk" in it.
func serve(dir string, d *disk) (*fuse.Server, error) {
	root := &fs.Inode{}
	o := &fs.Options{OnAdd: func(ctx context.Context) {
		root.AddChild("disk", root.NewPersistentInode(ctx, &file{d: d}, fs.StableAttr{Mode: fuse.S_IFREG}), false)
	}}
	o.DirectMountStrict = true
	o.DisableXAttrs = true
	o.FsName, o.Name = "powercut", "powercut"
	return fs.Mount(dir, root, o)
}
