// Command storm shows how a thousand gateways come back after their broker
// was away: the attempts per second that the broker sees, and how long it
// takes until all are back. Each is a real uplink with its usual waits; they
// differ in nothing but their dice.
//
//	go run ./storm -gateways 1000 -outage 5s
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// The pass lines: the share of all gateways that may knock within one second,
// and over how long their return is spread at least.
const (
	mostShare = 0.05
	minSpread = 45 * time.Second // from the 1st to the 99th hundredth, of 60 s
)

func main() {
	n := flag.Int("gateways", 1000, "how many")
	outage := flag.Duration("outage", 5*time.Second, "how long the broker is away")
	settle := flag.Duration("settle", 65*time.Second, "how long they are connected before")
	flag.Parse()
	if err := run(*n, *outage, *settle); err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
		os.Exit(1)
	}
}

// door is the broker's listener. While it is shut, who knocks is counted and
// turned away, as by a balancer without a broker behind it.
type door struct {
	net.Listener
	shut   atomic.Bool
	mu     sync.Mutex
	knocks []time.Time
	conns  []net.Conn
}

func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		d.mu.Lock()
		d.knocks = append(d.knocks, time.Now())
		d.conns = append(d.conns, c)
		d.mu.Unlock()
		if !d.shut.Load() {
			return c, nil
		}
		c.Close()
	}
}

// close ends every connection, as a broker that goes down does.
func (d *door) close() {
	d.shut.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		c.Close()
	}
	d.conns, d.knocks = nil, nil
}

func run(n int, outage, settle time.Duration) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d := &door{Listener: ln}
	broker := sim.NewScript(d, sim.ScriptOptions{})
	defer broker.Close()
	c, err := clock.Open("")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	all := make([]*uplink.Uplink, n)
	for i := range all {
		o := uplink.Defaults()
		o.URL = "mqtt://" + ln.Addr().String()
		if all[i], err = uplink.New(o, uplink.Env{Gateway: fmt.Sprint("gw-", i), Site: "storm", Epoch: "00000000", Clock: c}); err != nil {
			return err
		}
		wg.Go(func() { all[i].Run(ctx, quiet{}) })
	}
	online := func() (k int) {
		for _, u := range all {
			if u.Stats().State == uplink.StateOnline {
				k++
			}
		}
		return k
	}
	for online() < n {
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Printf("%d gateways are connected; the broker goes in %s, for %s\n", n, settle, outage)
	time.Sleep(settle)
	before := len(broker.Hellos())
	gone := time.Now()
	d.close()
	time.Sleep(outage)
	d.shut.Store(false)
	back := time.Now()
	var at []time.Duration // when each was back
	for len(at) < n && time.Since(back) < 10*time.Minute {
		for k := len(broker.Hellos()) - before; len(at) < k; {
			at = append(at, time.Since(gone))
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.mu.Lock()
	perSecond := map[int]int{}
	for _, k := range d.knocks {
		perSecond[int(k.Sub(gone)/time.Second)]++
	}
	attempts := len(d.knocks)
	d.mu.Unlock()
	most := 0
	for _, k := range perSecond {
		most = max(most, k)
	}
	slices.Sort(at)
	if len(at) < n {
		return fmt.Errorf("%d of %d came back within ten minutes", len(at), n)
	}
	part := func(p float64) time.Duration { return at[min(n-1, int(p*float64(n)))].Round(100 * time.Millisecond) }
	share := float64(most) / float64(n)
	fmt.Printf("attempts          %d, %.1f a gateway\n", attempts, float64(attempts)/float64(n))
	fmt.Printf("in one second     at most %d (%.1f %% of the gateways; limit %.0f %%)\n", most, 100*share, 100*mostShare)
	fmt.Printf("back after        1 %%: %s, half: %s, 99 %%: %s, all: %s\n", part(0.01), part(0.5), part(0.99), at[n-1].Round(100*time.Millisecond))
	fmt.Printf("spread            %s from the 1st to the 99th hundredth (at least %s)\n", part(0.99)-part(0.01), minSpread)
	if share > mostShare || part(0.99)-part(0.01) < minSpread {
		return fmt.Errorf("too many at once")
	}
	return nil
}

// quiet is a gateway with nothing to send.
type quiet struct{}

func (quiet) Next(string, uint64) (uplink.Item, bool, error) { return uplink.Item{}, false, nil }
func (quiet) Prev(string, uint64) (uplink.Item, bool, error) { return uplink.Item{}, false, nil }
func (quiet) Ack(string, ...uint64)                          {}
func (quiet) Given(string) uint64                            { return 0 }
func (quiet) Lowest(string) uint64                           { return 1 }
func (quiet) Losses() []uplink.Loss                          { return nil }
func (quiet) AckLoss(uplink.Loss) error                      { return nil }
func (quiet) SetAside(string, uint64, string) error          { return nil }
func (quiet) Catalog(string) (*telemetry.Catalog, error)     { return nil, fmt.Errorf("none") }
func (quiet) Changed() <-chan struct{}                       { return nil }
