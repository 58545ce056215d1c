package buffer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// fill writes to a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for junk := make([]byte, 4096); err == nil; {
		_, err = f.Write(junk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestOpenOnFullDisk: a new buffer on a full disk works in memory and says
// so, its batches leave, and it goes to the disk by itself when there is room.
func TestOpenOnFullDisk(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, time.Second} {
		t.Run("max_loss "+maxLoss.String(), func(t *testing.T) {
			dir, resize := mountSmall(t, "1m")
			fill(t, filepath.Join(dir, "foreign"))
			onFullDisk(t, filepath.Join(dir, "buffer"), maxLoss, syscall.ENOSPC, func() { resize("16m") })
		})
		t.Run("no inodes, max_loss "+maxLoss.String(), func(t *testing.T) {
			dir, resize := mountSmall(t, "16m,nr_inodes=4")
			for i := range 3 {
				_ = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
			}
			onFullDisk(t, filepath.Join(dir, "buffer"), maxLoss, syscall.ENOSPC, func() { resize("16m,nr_inodes=100") })
		})
		t.Run("read-only, max_loss "+maxLoss.String(), func(t *testing.T) {
			dir, _ := mountSmall(t, "16m")
			remount(t, dir, true)
			onFullDisk(t, filepath.Join(dir, "buffer"), maxLoss, syscall.EROFS, func() { remount(t, dir, false) })
		})
	}
}

func remount(t *testing.T, dir string, readOnly bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, ""); err != nil {
		t.Fatal(err)
	}
}

func onFullDisk(t *testing.T, dir string, maxLoss time.Duration, why error, heal func()) {
	o := testOptions(t)
	o.Dir, o.MaxLoss = dir, maxLoss
	tune := defaultTuning()
	tune.retry = 0
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	if s := q.Stats(); s.LastError == "" || q.Boot() != 1 || q.Stopped() != "first" {
		t.Fatal(s, q.Boot(), q.Stopped())
	}
	if err := q.SaveMeta("catalog", []byte("points")); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := q.Append(Data, batch(Data, q.Given(Data)+1)); err != nil && !(maxLoss == 0 && errors.Is(err, ErrNotDurable)) {
			t.Fatal(err)
		}
	}
	if err := q.Sync(0); !errors.Is(err, why) {
		t.Fatal(err)
	}
	for n := range uint64(3) {
		it, ok, err := q.Next(Data, 1)
		if err != nil || !ok || it.Seq != n+1 {
			t.Fatal(it.Seq, ok, err)
		}
		check(t, it)
		q.Ack(Data, it.Seq)
	}
	epoch := q.Epoch()
	heal()
	mustSync(t, q)
	if s := q.Stats(); s.LastError != "" || s.Memory != 0 || q.Epoch() != epoch {
		t.Fatalf("%+v", s)
	}
	put(t, q, Data)
	mustSync(t, q)
	crash(q)
	o.Size = 16 << 20
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if got := set(all(t, q, Data)).String(); got != "[{4 11}]" || q.Epoch() != epoch || q.Boot() != 2 {
		t.Fatal(got, q.Epoch(), epoch, q.Boot())
	}
	if v, ok, err := q.Meta("catalog"); err != nil || !ok || string(v) != "points" {
		t.Fatal(string(v), ok, err)
	}
}

// TestStartOnReadOnlyDisk: the card has turned read-only, and the gateway
// starts anew. What is on the card is delivered, and new readings are, too, in
// an epoch of their own; nothing of the store is touched. When the card can
// be written again, the store goes on in the new epoch.
func TestStartOnReadOnlyDisk(t *testing.T) {
	dir, _ := mountSmall(t, "16m")
	o := testOptions(t)
	o.Dir = filepath.Join(dir, "buffer")
	q := mustOpen(t, o)
	if err := q.SaveMeta("catalog", []byte("points")); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		put(t, q, Data)
	}
	q.Ack(Data, 1, 2)
	if err := q.SetAside(Data, 3, WhyPoison); err != nil {
		t.Fatal(err)
	}
	mustSync(t, q)
	old, given := q.Epoch(), q.Given(Data)
	crash(q)
	before := picture(t, o.Dir)
	remount(t, dir, true)
	for round := range 2 {
		tune := defaultTuning()
		tune.retry = 0
		q, err := open(o, tune)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(o); !errors.Is(err, ErrLocked) {
			t.Fatal(err)
		}
		if q.Epoch() == old || q.Stats().LastError == "" || q.Stopped() != "power" {
			t.Fatal(q.Epoch(), q.Stats().LastError, q.Stopped())
		}
		if v, ok, err := q.Meta("catalog"); err != nil || !ok || string(v) != "points" {
			t.Fatal(string(v), ok, err)
		}
		first := put(t, q, Data)
		if got := set(all(t, q, Data)); first <= given || !got.covers(4, 20) || !got.has(first) || got.n != 18 {
			t.Fatal(first, got)
		}
		if l := lost(q, Data); !l.has(1) || !l.has(3) || !l.has(21) || l.has(first) || l.has(4) {
			t.Fatal(l)
		}
		if err := q.Sync(0); !errors.Is(err, syscall.EROFS) {
			t.Fatal(err)
		}
		if round == 0 { // the power goes once more
			crash(q)
			continue
		}
		for name, b := range picture(t, o.Dir) {
			if before[name] != b {
				t.Fatal(name, "was touched")
			}
		}
		q.Ack(Data, 4, 5)
		epoch := q.Epoch()
		remount(t, dir, false)
		mustSync(t, q)
		mustClose(t, q)
		q = mustOpen(t, o)
		if got := set(all(t, q, Data)); q.Epoch() != epoch || got.n != 16 || !got.has(first) || got.has(5) || q.Stopped() != "clean" {
			t.Fatal(q.Epoch(), epoch, got, q.Stopped())
		}
		mustClose(t, q)
	}
}

// mountDisk mounts ext4 on a loop device.
func mountDisk(t *testing.T) (dir, image string) {
	t.Helper()
	dir, image = t.TempDir(), filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 24<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("CI must be able to mount a disk: %s", out)
			}
			t.Skipf("NOT TESTED: a disk that turns read-only. It cannot be mounted (run as root): %s", out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, image
}

// TestReadOnlyWhileRunning: ext4 meets an error and turns read-only under a
// running buffer. Appending goes on, what is in memory leaves, and after the
// next mount everything is there that was durable.
func TestReadOnlyWhileRunning(t *testing.T) {
	dir, image := mountDisk(t)
	o := testOptions(t)
	o.Dir = filepath.Join(dir, "buffer")
	tune := defaultTuning()
	tune.retry = 0
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	put(t, q, Data)
	put(t, q, Event)
	mustSync(t, q)
	if out, err := exec.Command("mount", "-o", "remount,abort", dir).CombinedOutput(); err != nil {
		t.Logf("mount says %v: %s", err, out)
	}
	for range 10 {
		put(t, q, Data)
	}
	for range 3 {
		if err := q.Sync(0); !errors.Is(err, syscall.EROFS) || q.Stats().LastError == "" {
			t.Fatal("it was not seen", err)
		}
	}
	if got := set(all(t, q, Data)).String(); got != "[{1 11}]" {
		t.Fatal(got)
	}
	q.Ack(Data, 1, 2)
	if err := q.Close(); err == nil {
		t.Fatal("Close says that all is stored")
	}
	if err := syscall.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if got := set(all(t, q, Data)).String(); got != "[{1 1}]" || !lost(q, Data).has(11) {
		t.Fatal(got, q.Losses())
	}
}

// TestSmallDisk: the disk is smaller than one segment of the default
// configuration. The segments are made to fit, in both lanes, and when the
// disk is full the oldest data makes way.
func TestSmallDisk(t *testing.T) {
	dir, _ := mountSmall(t, "3m")
	o := Defaults()
	o.Dir = filepath.Join(dir, "buffer")
	tune := defaultTuning()
	tune.retry, tune.memory = 0, 256<<10
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	send := func(n int) (failed int) {
		for i := range n {
			put(t, q, Data)
			if i%40 == 0 {
				put(t, q, Event)
			}
			if i%5 == 0 {
				if err := q.Sync(0); err != nil {
					if !errors.Is(err, syscall.ENOSPC) {
						t.Fatal(err)
					}
					failed++
				}
			}
		}
		return failed
	}
	if n := send(40); n != 0 {
		t.Fatal(n, "commits failed while there was room")
	}
	if s := q.Stats(); s.Memory != 0 && s.Segments < 2 {
		t.Fatalf("%+v", s)
	}
	crash(q)
	if q, err = open(o, tune); err != nil {
		t.Fatal(err)
	}
	if got := all(t, q, Data); len(got) < 36 {
		t.Fatal(got)
	}
	send(2000)
	held, gone := account(t, q, Data, nil)
	if held < 40 || gone == 0 {
		t.Fatal(held, gone)
	}
	if _, gone := account(t, q, Event, nil); gone > block {
		t.Fatal(gone, "events are gone")
	}
	t.Logf("%d held in %d segments, %d told as lost", held, q.Stats().Segments, gone)
	crash(q)
}

// Another store that turns up under a buffer that is adrift is not touched.
func TestAdriftMeetsAnother(t *testing.T) {
	dir, _ := mountSmall(t, "16m")
	o := testOptions(t)
	o.Dir = filepath.Join(dir, "buffer")
	remount(t, dir, true)
	tune := defaultTuning()
	tune.retry = 0
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	put(t, q, Data)
	remount(t, dir, false)
	other := mustOpen(t, o)
	put(t, other, Data)
	mustSync(t, other)
	var locked *LockError
	if err := q.Sync(0); !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Fatal(err)
	}
	mustClose(t, other)
	before := picture(t, o.Dir)
	if err := q.Sync(0); err == nil {
		t.Fatal("it took over the store of another")
	}
	for name, b := range picture(t, o.Dir) {
		if before[name] != b {
			t.Fatal(name, "was touched")
		}
	}
	crash(q)
}

// TestBroughtBackAdrift: a batch whose commit did not finish is brought back
// where nothing can be written, too, and stored when something can. What was
// delivered is not.
func TestBroughtBackAdrift(t *testing.T) {
	dir, _ := mountSmall(t, "16m")
	o := testOptions(t)
	o.Dir = filepath.Join(dir, "buffer")
	q := mustOpen(t, o)
	undo := undoable(t, q)
	put(t, q, Data)
	mustSync(t, q)
	q.Ack(Data, 5)
	mustClose(t, q)
	undo()
	remount(t, dir, true)
	tune := defaultTuning()
	tune.retry = 0
	q, err := open(o, tune)
	if err != nil {
		t.Fatal(err)
	}
	want := []uint64{1, 2, 3, 4, 6}
	if got := all(t, q, Data); !slices.Equal(got, want) {
		t.Fatal(got, q.Losses())
	}
	remount(t, dir, false)
	if err := q.Sync(0); err != nil {
		t.Fatal(err)
	}
	crash(q)
	q = mustOpen(t, o)
	if got := all(t, q, Data); !slices.Equal(got, want) || lost(q, Data).has(6) {
		t.Fatal(got, q.Losses())
	}
	crash(q)
}
