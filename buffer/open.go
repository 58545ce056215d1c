package buffer

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	markerName = "opening"
	maxHot     = 2 // segments kept open for reading; what is read of them counts as our memory
	maxKills   = 2 // so often may opening a file end the process before it is set aside
)

// opener opens segments and keeps the last few open. While bbolt opens a
// file, the marker file names it: if that ends the process, the next start
// knows which file it was.
type opener struct {
	mu    sync.Mutex
	hot   []*segment
	kills map[string]int
}

// Open opens the buffer of a directory, or makes one. It takes the lock, reads
// the state and a few pages of each segment, closes what the last run left
// unknown with a Loss, and repairs what is damaged.
//
// Errors: ErrLocked when another process has it, with the name of that
// process; ErrNewer when a newer version wrote it; else what the file system
// says. ErrKey when the key file is not usable, or is not the key of what is
// held: then nothing is changed. Damage is no error.
func Open(o Options) (*Queue, error) { return open(o, defaultTuning()) }

// OpenReadOnly opens the buffer of a directory for looking at it: Next, Prev,
// Losses, Meta and Stats tell what the next Open would find, and nothing is
// counted, closed, repaired or moved aside. Every other call is refused with
// ErrReadOnly. It takes the lock like Open, so that no agent runs meanwhile.
// Without the right key only Next and Prev fail, with ErrKey.
func OpenReadOnly(o Options) (*Queue, error) {
	if _, err := os.Stat(o.Dir); err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	return openFor(o, defaultTuning(), true)
}

func open(o Options, tune tuning) (*Queue, error) { return openFor(o, tune, false) }

func openFor(o Options, tune tuning, readOnly bool) (*Queue, error) {
	if o.Dir == "" || o.Size < 2<<20 || o.MaxLoss < 0 || !o.knownPolicy() {
		return nil, fmt.Errorf("buffer: options are not valid: dir %q, size %d, max_loss %s, when_full %q", o.Dir, o.Size, o.MaxLoss, o.WhenFull)
	}
	q := &Queue{dir: o.Dir, size: o.Size, maxLoss: o.MaxLoss, log: o.Logger, tune: tune, readOnly: readOnly, keyFile: o.KeyFile, thin: o.Thin, shared: o.Shared, changed: make(chan struct{}, 1)}
	if o.WhenFull != thinFirst {
		q.thin = nil
	}
	if o.Segment == 0 {
		o.Segment = min(max(o.Size/16, 1<<20), 8<<20)
	}
	o.Segment = max(o.Segment, 256<<10) / pageSize * pageSize
	if o.Size < 4*o.Segment {
		return nil, fmt.Errorf("buffer: size %d has no room for four segments of %d", o.Size, o.Segment)
	}
	q.segSize = [laneCount]int64{Data: o.Segment, Event: max(o.Segment/8, 256<<10)}
	q.stateCap = min(max(o.Size/128, 256<<10), 16<<20) / pageSize * pageSize
	if o.KeyFile != "" {
		var err error
		if q.key, err = readKey(o.KeyFile); err != nil && !readOnly {
			return nil, err
		}
		q.keyErr = err
	}
	err := q.enter()
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err == nil {
		err = q.start()
	}
	if unwritable(err) && !readOnly { // a fault that passes must not cost the epoch
		time.Sleep(q.tune.retry / 10)
		if q.forgetStart(); q.lock == nil {
			err = q.enter()
		}
		if q.lock != nil {
			err = q.start()
		}
	}
	if unwritable(err) && !readOnly {
		q.forgetStart()
		err = q.startAdrift(err)
	}
	if err != nil {
		q.abandon()
		if errors.Is(err, ErrLocked) {
			return nil, err
		}
		return nil, fmt.Errorf("buffer %s: %w", o.Dir, err)
	}
	q.signal()
	return q, nil
}

// writes tells whether the directory may be written. The caller holds the
// disk lock, or nobody else knows of the queue yet.
func (q *Queue) writes() bool { return !q.readOnly && q.adrift == nil }

// abandon gives back what a failed Open has taken.
func (q *Queue) abandon() {
	q.closeFiles()
	if q.lock != nil {
		q.lock.Close()
	}
}

// closeFiles closes all but the lock.
func (q *Queue) closeFiles() {
	for i := range q.lanes {
		for _, s := range q.lanes[i].segs {
			_ = s.close(true)
		}
	}
	for i := range q.states {
		if b := q.states[i].b; b != nil {
			_ = b.close()
		}
	}
	if q.numbers.f != nil {
		q.numbers.f.Close()
	}
}

func (q *Queue) start() error {
	q.disk.Lock()
	defer q.disk.Unlock()
	began := time.Now()
	q.opener.kills = make(map[string]int)
	if q.writes() {
		if err := q.tidy(); err != nil {
			return err
		}
	}
	s, missing, wrong, err := loadStates(q.dir)
	if err != nil && !(q.adrift != nil && unwritable(err)) {
		return err
	}
	given, slot, err := readNumbers(q.dir)
	if err != nil && !(q.adrift != nil && unwritable(err)) {
		return err
	}
	q.numbers.slot = slot
	for name := range q.opener.kills {
		if slices.Contains(stateNames[:], name) && q.opener.kills[name] >= maxKills {
			wrong[name] = damaged("opening it ended the process")
		}
	}
	rides, err := q.findSegments()
	if err != nil {
		return err
	}
	anew := s == nil
	if !anew {
		q.foundEpoch, q.foundGen = s.epoch, s.gen
	}
	q.how = "power"
	if anew {
		if s, err = given.state(); err != nil {
			return err
		}
		if given.epoch == 0 && missing == len(stateNames) && q.segments() == 0 {
			q.how = "first"
		}
	}
	unsure := s.catchUp(&given, rides)
	if q.adrift != nil {
		anew = true
		if s.epoch, err = newEpoch(); err != nil {
			return err
		}
		s.ledger, s.lostB, s.lostR = nil, 0, 0
	}
	if anew { // all is told
		unsure = [laneCount]ranges{}
	}
	if s.clean {
		q.how = "clean"
	}
	q.epoch, q.boot, q.gen = s.epoch, s.boot+1, s.gen
	q.ledger, q.lostB, q.lostR = s.ledger, s.lostB, s.lostR
	q.last = s.last
	if !q.readOnly {
		if err := q.checkKeys(s); err != nil {
			return err
		}
	}
	for i := range q.lanes {
		q.lanes[i].laneState = s.lanes[i]
	}
	if err := q.openStates(wrong); err != nil {
		return err
	}
	before := q.last
	for i := range q.lanes {
		if err := q.account(Lane(i), s.clean, anew, before); err != nil {
			return err
		}
		for _, h := range unsure[i].s {
			q.lose(Loss{Lane: Lane(i), From: h.a, To: h.b, Batches: -1, Readings: -1, T0: before, T1: before, Why: WhyRestart})
		}
	}
	if !q.writes() {
		q.measure()
		return nil
	}
	q.showBefore()
	if err := q.reserve(); err != nil {
		return err
	}
	if q.numbers.left > 0 { // on such a disk the start would not end: Sync does the rest, and nothing leaves before
		q.mu.Lock()
		q.lossDirty, q.settling = true, true
		q.mu.Unlock()
		q.measure()
		return nil
	}
	if err := q.saveState(false); err != nil {
		return err
	}
	if err := q.ensureRoom(Event, 0, true); err != nil && !errors.Is(err, errFull) { // the cap may be lower than it was
		return err
	}
	for time.Since(began) < q.tune.opening { // the others are repaired by and by
		seg := q.damagedOne()
		if seg == nil {
			break
		}
		if err := q.repair(seg); err != nil {
			_ = q.failed(err)
			break
		}
	}
	_, _ = q.trimQuarantine(2, max(q.size/8, q.segSize[Data]))
	q.measure()
	return nil
}

func newEpoch() (uint32, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, err
	}
	return max(1, binary.BigEndian.Uint32(b[:])), nil
}

// tidy takes away what an interrupted run left half done and reads the marker.
func (q *Queue) tidy() error {
	marker := filepath.Join(q.dir, markerName)
	if b, err := os.ReadFile(marker); err == nil {
		if name, n, ok := strings.Cut(strings.TrimSpace(string(b)), " "); ok {
			kills, _ := strconv.Atoi(n)
			q.opener.kills[name] = kills
		}
		if err := os.Remove(marker); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(q.dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		path := filepath.Join(q.dir, d.Name())
		switch {
		case strings.HasSuffix(path, suffixNew):
			err = os.Remove(path)
		case strings.HasSuffix(path, suffixSalvaged):
			whole := strings.TrimSuffix(path, suffixSalvaged)
			if _, err = os.Lstat(whole); err == nil {
				err = os.Remove(path) // the repair is begun again
			} else if errors.Is(err, os.ErrNotExist) {
				err = rename(path, whole) // the damaged one was already moved aside
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// findSegments lists the segments, reads the summary of each, and gives
// those whose summary cannot be read the numbers between their neighbours.
func (q *Queue) findSegments() (rides []*ride, err error) {
	q.foundNames = nil
	list, err := os.ReadDir(q.dir)
	if err != nil && (q.adrift == nil || q.lock != nil && !unwritable(err)) {
		return nil, err
	}
	for _, d := range list {
		l, no, ok := parseName(d.Name())
		if !ok {
			continue
		}
		q.foundNames = append(q.foundNames, d.Name())
		seg := &segment{lane: l, path: filepath.Join(q.dir, d.Name()), log: q.log}
		sum, r, size, err := glance(seg.path)
		if q.opener.kills[d.Name()] >= maxKills && err == nil {
			err = damaged("opening it ended the process")
		}
		if err == nil && sum.count == 0 { // nothing was ever committed to it
			if !q.writes() {
				continue
			}
			if err := seg.unlink(); err != nil {
				return nil, err
			}
			continue
		}
		if err == nil && sum.lane != l {
			err = damaged("the file of another lane")
		}
		switch {
		case isDamage(err):
			seg.bad = true
			if fi, err := d.Info(); err == nil {
				size = fi.Size()
			}
		case err != nil:
			return nil, fmt.Errorf("%s: %w", d.Name(), err)
		default:
			rides = append(rides, r)
		}
		sum.lane, sum.no = l, no
		seg.sum, seg.size = sum, size
		q.lanes[l].segs = append(q.lanes[l].segs, seg)
	}
	for i := range q.lanes {
		slices.SortFunc(q.lanes[i].segs, func(a, b *segment) int { return cmp.Compare(a.sum.no, b.sum.no) })
		rides = append(rides, q.guess(Lane(i))...)
	}
	return rides, nil
}

// guess gives damaged segments the numbers and times that they may hold: those
// between the sound ones before and behind. If the last one is damaged, it
// is looked through now: it says how far the numbers went.
func (q *Queue) guess(l Lane) (rides []*ride) {
	segs := q.lanes[l].segs
	n := len(segs)
	end := summary{}
	if n > 0 && segs[n-1].bad {
		end, rides = lookThrough(segs[n-1])
	}
	for i := n - 1; i >= 0; i-- {
		s := segs[i]
		if !s.bad {
			end = summary{last: s.sum.first - 1, t1: s.sum.t0}
			continue
		}
		if s.sum.first > 0 {
			continue
		}
		s.sum.first, s.sum.last, s.sum.t0, s.sum.t1 = 1, end.last, 0, end.t1
		for j := i - 1; j >= 0; j-- {
			if !segs[j].bad {
				s.sum.first, s.sum.t0 = segs[j].sum.last+1, segs[j].sum.t1
				break
			}
		}
	}
	return rides
}

// lookThrough scans a damaged segment for its highest number, its latest time and its rides.
func lookThrough(s *segment) (end summary, rides []*ride) {
	f, err := os.Open(s.path)
	if err != nil {
		return end, nil
	}
	defer f.Close()
	scan(f, s.size, s.sum.lane, func(r found) {
		end.last, end.t1 = max(end.last, r.number), max(end.t1, r.t1)
	}, func(r *ride) { rides = append(rides, r) })
	top := &ride{}
	top.lanes[s.sum.lane].given = end.last
	return end, append(rides, top)
}

// openStates opens the state files for writing; what is damaged or missing is made anew.
func (q *Queue) openStates(wrong map[string]error) error {
	for i, name := range stateNames {
		f := &q.states[i]
		f.path = filepath.Join(q.dir, name)
		if wrong[name] != nil {
			if !q.writes() {
				continue
			}
			if err := q.quarantine(f.path); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Lstat(f.path); err != nil {
			continue
		}
		q.mark(name)
		most := q.stateCap
		if q.adrift != nil {
			most = 0
		}
		b, err := openBolt(f.path, most, stateStep, q.log)
		q.unmark()
		if err != nil && !q.writes() && (isDamage(err) || q.adrift != nil) {
			continue
		}
		if isDamage(err) {
			err = q.quarantine(f.path)
		}
		if err != nil {
			return err
		}
		f.b = b
	}
	return nil
}

// mark names the file that bbolt is about to open.
func (q *Queue) mark(name string) {
	if !q.writes() {
		return
	}
	q.opener.kills[name]++
	_ = os.WriteFile(filepath.Join(q.dir, markerName), []byte(name+" "+strconv.Itoa(q.opener.kills[name])+"\n"), 0o600)
}

func (q *Queue) unmark() {
	if q.writes() {
		_ = os.Remove(filepath.Join(q.dir, markerName))
	}
}

// openSegment opens a segment's file after it was looked through. The caller
// holds opener.mu and the segment's use lock.
func (q *Queue) openSegment(s *segment, size int64) error {
	name := filepath.Base(s.path)
	if q.opener.kills[name] >= maxKills {
		return damaged("opening it ended the process")
	}
	if !s.checked {
		if _, _, err := inspect(s.path, nil); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				err = damaged("the file is missing")
			}
			return err
		}
	}
	q.mark(name)
	b, err := openBolt(s.path, size, pageSize, q.log)
	q.unmark()
	if err != nil {
		return err
	}
	q.opener.kills[name] = 0
	if size > 0 {
		b.appended(size)
	}
	s.file, s.checked = b, true
	return nil
}

// openForReading opens a segment that is not open, and closes the one that
// was opened longest ago.
func (q *Queue) openForReading(s *segment) error {
	q.opener.mu.Lock()
	defer q.opener.mu.Unlock()
	s.use.Lock()
	if s.gone || s.file != nil {
		s.use.Unlock()
		return nil
	}
	err := q.openSegment(s, 0)
	s.use.Unlock()
	if err != nil {
		return err
	}
	q.opener.hot = append(q.opener.hot, s)
	if len(q.opener.hot) > maxHot {
		_ = q.opener.hot[0].close(false)
		q.opener.hot = slices.Delete(q.opener.hot, 0, 1)
	}
	return nil
}

// openForWriting opens the last segment of the run before, to go on in it.
func (q *Queue) openForWriting(s *segment) error {
	q.cool(s)
	q.opener.mu.Lock()
	defer q.opener.mu.Unlock()
	_ = s.close(false)
	s.use.Lock()
	defer s.use.Unlock()
	return q.openSegment(s, s.size)
}

// cool closes a segment if it is open for reading.
func (q *Queue) cool(s *segment) {
	q.opener.mu.Lock()
	defer q.opener.mu.Unlock()
	if i := slices.Index(q.opener.hot, s); i >= 0 {
		q.opener.hot = slices.Delete(q.opener.hot, i, i+1)
		_ = s.close(false)
	}
}
