// Package buffer is a durable queue of numbered batches on flash.
//
// The unit of numbering, storing, sending and acknowledging is the batch.
// The queue keeps opaque bytes, a count and a time span; it does not know
// what a reading is. Two lanes, data and event, have numbers of their own.
//
// A batch waits in memory until Sync finds it due. What is acknowledged
// before that never touches the disk. On disk it stands in a segment, a
// small bbolt file; a delivered segment is unlinked as a file. Every number
// given ends as delivered, as still held, or in a Loss: nothing goes missing
// silently. The files are described byte by byte in docs/buffer-format.md.
//
// The queue starts no goroutine. The caller's tick calls Sync.
package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"
)

// Lane is one of the two independent sequences of batches.
type Lane uint8

// The lanes. Events are made durable by the next Sync whatever their age,
// and they are the last to go when the buffer is full.
const (
	Data Lane = iota
	Event

	laneCount = 2
)

var laneNames = [laneCount]string{"data", "event"}

// String returns "data" or "event".
func (l Lane) String() string {
	if int(l) < len(laneNames) {
		return laneNames[l]
	}
	return "lane-" + strconv.Itoa(int(l))
}

// Options say where the buffer lies and how much it may hold and lose.
type Options struct {
	// Dir is the buffer's own directory; it is made when it is missing.
	Dir string `yaml:"dir" doc:"directory of the buffer; nothing else may lie in it"`
	// Size is the hard cap in bytes over all files in Dir, at least 8 MB.
	Size int64 `yaml:"size" unit:"bytes" doc:"hard cap of all files of the buffer"`
	// MaxLoss is how long a batch may wait in memory, and so what a power
	// cut may cost. 0 means that Append returns after the batch is durable.
	MaxLoss time.Duration `yaml:"max_loss" doc:"what a power cut may cost; 0s = durable before it is sent"`
	// WhenFull names what happens at the cap. drop-oldest: the oldest data
	// goes, events last of all, and a Loss says so. thin: of the oldest data
	// first Thin chooses what is kept; when all is thinned, the oldest goes.
	WhenFull string `yaml:"when_full" enum:"drop-oldest,thin" doc:"what happens when the buffer is full: drop-oldest, or thin, which keeps lowest, highest and last of each minute of the oldest data"`
	// Segment is the size of one segment file in bytes; 0 chooses it from
	// Size (a sixteenth, 1 to 8 MB). It bounds the largest batch: half of it.
	Segment int64 `yaml:"segment" unit:"bytes" doc:"size of one segment file; 0 = chosen from size"`
	// KeyFile names a file with the key that batches are encrypted with on
	// disk: 32 random bytes or 64 hex digits, readable by its owner only.
	// "" writes them as they are. Batches that were written without a key stay
	// readable with one.
	KeyFile string `yaml:"key_file" doc:"file with the key that batches are encrypted with on disk: 32 random bytes or 64 hex digits, mode 0600; empty: not encrypted"`
	// Thin makes one batch of the first n of a run of batches in the order of
	// their numbers, with less in it; n = 0 keeps the first as it is. It must
	// not keep what it is given. Without it, thin is drop-oldest.
	Thin func(run [][]byte) (thinned []byte, count int, from, to int64, n int) `yaml:"-"`
	// Shared tells that there are several senders, so that what one of them
	// has sent and another not is held: at start anything may have left.
	Shared bool `yaml:"-"`
	// Logger receives warnings of bbolt itself; nil keeps it silent.
	Logger *slog.Logger `yaml:"-"`
}

const (
	defaultDir = "/var/lib/tidegate/buffer"
	dropOldest = "drop-oldest"
	thinFirst  = "thin"

	minSize    = 8 << 20
	minSegment = 4 << 20
	maxSegment = 16 << 20
	maxMaxLoss = time.Hour
)

// Defaults returns the options of a gateway whose file says nothing: 512 MB
// in /var/lib/tidegate/buffer, at most two seconds at risk, oldest data first.
func Defaults() Options {
	return Options{Dir: defaultDir, Size: 512_000_000, MaxLoss: 2 * time.Second, WhenFull: dropOldest}
}

// Validate reports every value that is out of range, with the path inside
// the section, what is wrong and what to write instead.
func (o *Options) Validate(report func(path, msg, hint string)) {
	if o.Dir == "" {
		report("dir", "the buffer needs a directory", "write dir: "+defaultDir)
	}
	if o.Size < minSize {
		report("size", fmt.Sprintf("%d bytes are too few for a buffer", o.Size), "write at least 8MiB, such as size: 512MB")
	}
	if o.MaxLoss < 0 || o.MaxLoss > maxMaxLoss {
		report("max_loss", o.MaxLoss.String()+" is out of range", "write 0s to 1h, such as max_loss: 2s")
	}
	if !o.knownPolicy() {
		report("when_full", "unknown policy "+strconv.Quote(o.WhenFull), "write when_full: "+dropOldest+" or "+thinFirst)
	}
	if o.Segment != 0 && (o.Segment < minSegment || o.Segment > maxSegment) {
		report("segment", fmt.Sprintf("%d bytes are out of range", o.Segment), "write 4MiB to 16MiB, or leave it out")
	}
	if o.Segment > 0 && o.Size >= minSize && o.Size < 4*o.Segment {
		report("segment", "the buffer must have room for four segments", "write a smaller segment or a larger size")
	}
}

func (o *Options) knownPolicy() bool {
	return o.WhenFull == "" || o.WhenFull == dropOldest || o.WhenFull == thinFirst
}

// Batch is what the queue keeps.
type Batch struct {
	Bytes []byte // opaque; after Append or Next it must not be changed
	Count int    // readings in it
	From  int64  // stamp of the first reading, Unix ms as the wall clock said
	To    int64  // stamp of the last reading

	// Age is how old its first reading is when it is appended. MaxLoss and
	// Sync count from that reading on; no batch that is read back has one.
	Age time.Duration
}

// Item is a numbered batch. Seq starts at 1 in each lane.
type Item struct {
	Lane Lane
	Seq  uint64
	Batch
}

// Loss says that the numbers From..To of a lane, as far as the receiver lacks
// them, are gone, and why. It stays in the ledger until AckLoss.
type Loss struct {
	Lane     Lane
	From, To uint64
	Batches  int64 // -1: not known
	Readings int64 // -1: not known
	T0, T1   int64 // time span of what is gone, Unix ms; as far as it is known
	Why      string
}

// The reasons of a Loss.
const (
	WhyFull    = "full"    // no room: on disk, or in memory while the disk fails
	WhyCorrupt = "corrupt" // damaged on disk
	WhyRestart = "restart" // in memory, or never given, when the last run ended without Close
	WhyPoison  = "poison"  // set aside by the sender
	WhyThinned = "thinned" // what stood for them came to stand in a later batch; counted are all readings that were in them
)

// Stats is the state of the queue at one moment.
type Stats struct {
	Waiting  [laneCount]int64 // batches not delivered, by lane
	Readings [laneCount]int64 // readings in them; an estimate for a partly delivered segment
	Memory   int64            // bytes of batches that are not on disk yet
	Disk     int64            // bytes of all files, as allocated
	Limit    int64            // Options.Size
	Segments int              // segment files
	Oldest   int64            // stamp of the oldest batch held, Unix ms; 0 when none is held

	LostBatches  int64 // in the ledger since the store was made, as far as counted; what was thinned is none of it
	LostReadings int64
	Thinned      int64 // batches that thinning made in this run
	Losses       int   // entries that wait for AckLoss

	Written     int64 // bytes this run wrote to disk: pages and file heads, not the journal of the file system
	Commits     int64 // transactions of this run, those of the state files included
	Quarantined int   // files in quarantine
	Salvaged    int64 // batches saved out of damaged segments by this run

	LastError   string    // of the disk; "" while it is well
	LastErrorAt time.Time // when that was
}

// The kinds of errors. Match them with errors.Is.
var (
	// ErrLocked means that another process has the buffer open.
	ErrLocked = errors.New("the buffer is in use")
	// ErrClosed means that Close has been called.
	ErrClosed = errors.New("the buffer is closed")
	// ErrReadOnly means that the buffer was opened for looking at it only.
	ErrReadOnly = errors.New("the buffer is open for reading only")
	// ErrTooLarge means that a batch is larger than half a segment.
	ErrTooLarge = errors.New("the batch is too large")
	// ErrNotDurable means that a batch has its number and waits in memory,
	// but could not be made durable. It must not be appended again.
	ErrNotDurable = errors.New("the batch is not durable yet")
	// ErrNewer means that a file was written by a newer version.
	ErrNewer = errors.New("written by a newer version of tidegate")
)

// LockError names who has the buffer open. It matches ErrLocked.
type LockError struct {
	Dir     string
	PID     int    // 0 when it could not be read
	Command string // "" when it could not be read
}

// Error names the directory, the process and its command.
func (e *LockError) Error() string {
	who := "another process"
	if e.PID > 0 {
		who = "process " + strconv.Itoa(e.PID)
		if e.Command != "" {
			who += " (" + e.Command + ")"
		}
	}
	return "buffer " + e.Dir + ": " + ErrLocked.Error() + " by " + who
}

// Unwrap returns ErrLocked.
func (e *LockError) Unwrap() error { return ErrLocked }

// Hint says what to do about it.
func (e *LockError) Hint() string {
	return "stop the other process, or give this one a buffer directory of its own"
}
