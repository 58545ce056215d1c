package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

// row is a Source of one lane that finds a number at once, as the buffer does.
type row struct {
	*store
	items [][]byte // by number from 1; nil: acknowledged
	low   uint64   // the lowest that is held, or the next
}

func (r *row) put(b []byte) {
	r.mu.Lock()
	r.items = append(r.items, b)
	r.mu.Unlock()
	r.signal()
}

func (r *row) at(n uint64) (Item, bool, error) {
	return Item{Lane: laneData, Seq: n, Bytes: r.items[n-1], Count: 1, From: 1, To: 1}, true, nil
}

func (r *row) Next(lane string, from uint64) (Item, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := max(from, r.low); lane == laneData && n <= uint64(len(r.items)); n++ {
		if r.items[n-1] != nil {
			return r.at(n)
		}
	}
	return Item{}, false, nil
}

func (r *row) Prev(lane string, upto uint64) (Item, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := min(upto, uint64(len(r.items))); lane == laneData && n >= r.low; n-- {
		if r.items[n-1] != nil {
			return r.at(n)
		}
	}
	return Item{}, false, nil
}

func (r *row) Ack(_ string, seqs ...uint64) {
	for _, n := range seqs {
		r.onAck(laneData, n)
		r.mu.Lock()
		r.items[n-1] = nil
		for r.low <= uint64(len(r.items)) && r.items[r.low-1] == nil {
			r.low++
		}
		r.mu.Unlock()
	}
}

func (r *row) Given(lane string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if lane != laneData {
		return 0
	}
	return uint64(len(r.items))
}

func (r *row) Lowest(lane string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if lane != laneData {
		return 1
	}
	return r.low
}

// drain is an uplink with a backlog, and with live data while it drains.
type drain struct {
	src   *row
	site  *site
	first uint64 // the first number that is live

	mu    sync.Mutex
	given map[uint64]time.Time // of live numbers that are not acknowledged
	took  []time.Duration      // from being there to the PUBACK
}

func newDrain(b testing.TB, batches, rows int) *drain {
	d := &drain{src: &row{store: newStore(b), low: 1}, site: newSite(7), given: map[uint64]time.Time{}, first: uint64(batches) + 1}
	d.src.cat = fifty()
	wall := time.Now().Add(-time.Hour).UnixMilli()
	for range batches {
		d.src.put(d.batch(wall, rows))
		wall += int64(rows) * 10
	}
	d.src.onAck = func(_ string, seq uint64) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if at, ok := d.given[seq]; ok {
			d.took = append(d.took, time.Since(at))
			delete(d.given, seq)
		}
	}
	return d
}

// batch holds rows of the fifty points.
func (d *drain) batch(wall int64, rows int) []byte {
	var groups []telemetry.Group
	for i := range rows {
		for m := range 5 {
			groups = append(groups, d.site.meter(m, wall+int64(i)*10))
		}
	}
	body, err := telemetry.AppendBatch(nil, &telemetry.Batch{Catalog: d.src.cat.Hash(), Boot: 1, Synced: true, Groups: groups})
	if err != nil {
		d.src.t.Fatal(err)
	}
	return body
}

// live gives a batch of rows every so often until the backlog is gone, and
// then waits for the last of them. It returns how long the backlog took.
func (d *drain) live(every time.Duration, rows int) time.Duration {
	start := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for range tick.C {
		body := d.batch(time.Now().UnixMilli(), rows)
		d.mu.Lock()
		d.given[d.src.Given(laneData)+1] = time.Now()
		d.mu.Unlock()
		d.src.put(body)
		if item, ok, _ := d.src.Next(laneData, 0); !ok || item.Seq >= d.first {
			break
		}
	}
	took := time.Since(start)
	eventually(d.src.t, time.Minute, "the last live batch", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.given) == 0 })
	return took
}

// connect starts an uplink with the times of the program and waits until it is
// connected.
func (d *drain) connect(url, identity, shape string) *running {
	t := d.src.t
	t.Helper()
	u := newUplink(t, url, func(o *Options) { o.Identity, o.Shape = identity, shape })
	u.env.Catalog, u.tune = d.src.cat, defaultTuning()
	run := start(t, u, d.src)
	eventually(t, 30*time.Second, "connected", func() bool { return run.Stats().State == StateOnline })
	return run
}

// BenchmarkLive: how old live data is when the broker has it, while a backlog
// drains over TLS to mosquitto: five million readings on a fast link, a million
// at 64 kbit/s with 50 points every 10 s, and ten minutes of 5,000 readings/s at
// 16 kB/s and 300 ms, with 5,000 readings/s going on. make proof-drain runs it.
func BenchmarkLive(b *testing.B) {
	m, _, identity := mutual(b)
	for _, x := range []struct {
		name          string
		shape         string
		bytes         int // a second; 0: no limit
		delay         time.Duration
		batches, rows int
		every         time.Duration
		liveRows      int
		most          time.Duration // p99 of live data
	}{
		{"fast", "records", 0, 0, 5000, 20, 20 * time.Millisecond, 2, 2 * time.Second},
		{"64kbit", "packed", 8000, 50 * time.Millisecond, 1000, 20, 10 * time.Second, 1, 10 * time.Second},
		{"16kB-300ms", "packed", 16_000, 150 * time.Millisecond, 3000, 20, 200 * time.Millisecond, 20, 10 * time.Second},
	} {
		b.Run(x.name, func(b *testing.B) {
			for range b.N {
				link, err := sim.NewLink(fmt.Sprint("127.0.0.1:", m.port))
				if err != nil {
					b.Fatal(err)
				}
				defer link.Close()
				link.SetRate(x.bytes)
				link.SetDelay(x.delay)
				d := newDrain(b, x.batches, x.rows)
				run := d.connect("mqtts://"+link.Addr(), identity, x.shape)
				took := d.live(x.every, x.liveRows)
				s := run.Stats()
				run.stop()
				slices.Sort(d.took)
				p99 := d.took[(len(d.took)*99-1)/100]
				b.ReportMetric(took.Seconds(), "s-drain")
				b.ReportMetric(float64(x.batches*x.rows*50)/took.Seconds(), "readings/s")
				b.ReportMetric(d.took[len(d.took)/2].Seconds(), "s-live-p50")
				b.ReportMetric(p99.Seconds(), "s-live-p99")
				b.ReportMetric(float64(len(d.took)), "live-batches")
				b.ReportMetric(float64(s.Repeats), "repeats")
				b.ReportMetric(0, "ns/op")
				if p99 > x.most || s.Sessions != 1 {
					b.Errorf("live data is %v old, at most %v may be; %d sessions", p99, x.most, s.Sessions)
				}
			}
		})
	}
}

// BenchmarkBesidePaho drains a backlog over TLS to mosquitto as the uplink, and
// as the MQTT library alone, which sends as many messages of the same size with
// as many in flight, and fails when the uplink moves less than 80 % of the bytes
// a second. With one thread of Go code, as the agent runs where it has no serial
// port, and with two.
//
// What else the machine does changes within seconds and by more than the
// difference that is looked for, so no run is compared with one that was not
// beside it. A turn is four runs, uplink, library, library, uplink, or the other
// way round: what rises or falls meanwhile weighs as much on both. Its ratio is
// that of the times both needed for the same bytes, and the median of the turns'
// ratios counts, not that of the better ones. Both clocks run from the first
// message that may go to the last PUBACK, the connection being open, and a run
// takes long enough that a pause of the scheduler or of the collector is no
// matter.
//
// CPU beside it tells whose the time is: of this process, and of the broker, which
// has a thread of its own. It is not judged: the promise is bytes a second.
func BenchmarkBesidePaho(b *testing.B) {
	m, ca, identity := mutual(b)
	const turns = 9
	stock := newDrain(b, 5000, 20).src.items
	inflight := Defaults().Inflight
	inflight -= inflight / 5 // what a backlog may have
	for _, threads := range []int{1, 2} {
		for _, x := range []struct {
			shape   string
			batches int
		}{{"records", 10_000}, {"columns", 10_000}, {"packed", 20_000}} {
			b.Run(fmt.Sprintf("%s/threads=%d", x.shape, threads), func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads))
				var items [][]byte
				for len(items) < x.batches {
					items = append(items, stock...)
				}
				items = items[:x.batches]
				_, size := uplinkAlone(b, m, identity, x.shape, items) // the first run is slower
				for range b.N {
					var owns, bares []effort
					var ratios, cpus []float64
					for turn := range turns {
						var both [2]effort
						for _, who := range [][]int{{0, 1, 1, 0}, {1, 0, 0, 1}}[turn%2] {
							var e effort
							if who == 0 {
								e, _ = uplinkAlone(b, m, identity, x.shape, items)
							} else {
								e = pahoAlone(b, m, ca, identity, size, x.batches, inflight)
							}
							both[who] = both[who].plus(e)
						}
						owns, bares = append(owns, both[0]), append(bares, both[1])
						ratios = append(ratios, both[1].took.Seconds()/both[0].took.Seconds())
						cpus = append(cpus, both[0].cpu.Seconds()/both[1].cpu.Seconds())
					}
					slices.Sort(ratios)
					slices.Sort(cpus)
					ratio := ratios[turns/2]
					median := func(of []effort, what func(effort) time.Duration) time.Duration {
						slices.SortFunc(of, func(a, b effort) int { return int(what(a) - what(b)) })
						return what(of[turns/2]) / time.Duration(2*x.batches)
					}
					took := func(e effort) time.Duration { return e.took }
					rate := func(of []effort) float64 { return float64(size) / median(of, took).Seconds() / 1e6 }
					b.ReportMetric(float64(size), "B/message")
					b.ReportMetric(rate(owns), "MB/s")
					b.ReportMetric(rate(bares), "paho-MB/s")
					b.ReportMetric(ratio, "x-paho")
					b.ReportMetric(cpus[turns/2], "x-paho-CPU")
					b.ReportMetric(0, "ns/op")
					b.Logf("%s, %d threads: %d bytes a message, %.1f MB/s, the library alone %.1f MB/s: %.2f of it (%.2f to %.2f)",
						x.shape, threads, size, rate(owns), rate(bares), ratio, ratios[0], ratios[turns-1])
					for _, of := range []struct {
						name string
						all  []effort
					}{{"uplink", owns}, {"library", bares}} {
						b.Logf("a message of the %s: %v, CPU %v, of the broker %v", of.name, median(of.all, took),
							median(of.all, func(e effort) time.Duration { return e.cpu }),
							median(of.all, func(e effort) time.Duration { return e.broker }))
					}
					b.Logf("CPU a message %.2f of the library's (%.2f to %.2f)", cpus[turns/2], cpus[0], cpus[turns-1])
					if ratio < 0.8 {
						b.Errorf("%.2f of what the library alone moves", ratio)
					}
				}
			})
		}
	}
}

// effort is what a drain cost: time, CPU of this process, and of the broker.
type effort struct{ took, cpu, broker time.Duration }

func (e effort) plus(f effort) effort {
	return effort{e.took + f.took, e.cpu + f.cpu, e.broker + f.broker}
}

// effort begins one; what it returns ends it.
func (m *mosquitto) effort() func() effort {
	used := func() (own, broker time.Duration) {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			m.t.Fatal(err)
		}
		s, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", m.cmd.Process.Pid))
		if err == nil {
			_, err = fmt.Sscan(string(s), &broker)
		}
		if err != nil {
			m.t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()), broker
	}
	own, broker := used()
	began := time.Now()
	return func() effort {
		e := effort{took: time.Since(began)}
		e.cpu, e.broker = used()
		e.cpu, e.broker = e.cpu-own, e.broker-broker
		return e
	}
}

// uplinkAlone drains items as the uplink does, and returns the bytes a message.
func uplinkAlone(b *testing.B, m *mosquitto, identity, shape string, items [][]byte) (e effort, size int) {
	d := newDrain(b, 0, 0)
	done := make(chan effort, 1)
	run := d.connect(m.url(), identity, shape)
	debug.FreeOSMemory() // a run does not clean up after the one before
	sent := run.Stats().BytesOut
	end, left := m.effort(), len(items)
	d.src.onAck = func(string, uint64) {
		if left--; left == 0 {
			done <- end()
		}
	}
	d.src.mu.Lock()
	d.src.items = slices.Clone(items)
	d.src.mu.Unlock()
	d.src.signal()
	select {
	case e = <-done:
	case <-time.After(time.Minute):
		b.Fatal("not drained within a minute")
	}
	sent = run.Stats().BytesOut - sent
	run.stop()
	return e, int(sent) / len(items)
}

// pahoAlone sends n messages of a size with the MQTT library alone.
func pahoAlone(b *testing.B, m *mosquitto, ca *authority, identity string, size, n, inflight int) effort {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.pem)
	pair, err := tls.LoadX509KeyPair(filepath.Join(identity, "client.crt"), filepath.Join(identity, "client.key"))
	if err != nil {
		b.Fatal(err)
	}
	o := mqtt.NewClientOptions().AddBroker(fmt.Sprintf("ssl://127.0.0.1:%d", m.port)).SetClientID("bare").
		SetTLSConfig(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}).SetAutoReconnect(false).SetCleanSession(true)
	c := mqtt.NewClient(o)
	if t := c.Connect(); !t.WaitTimeout(10*time.Second) || t.Error() != nil {
		b.Fatal(t.Error())
	}
	defer c.Disconnect(100)
	body := make([]byte, size-60)               // the topic, the heads of MQTT and TLS
	tokens := make(chan mqtt.Token, inflight-2) // one more is waited for, one is being handed over
	done := make(chan struct{})
	debug.FreeOSMemory()
	end := m.effort()
	go func() {
		defer close(done)
		for t := range tokens {
			if t.Wait(); t.Error() != nil {
				b.Error(t.Error())
			}
		}
	}()
	for range n {
		tokens <- c.Publish("tg/v1/here/bare/up", 1, false, body)
	}
	close(tokens)
	<-done
	return end()
}
