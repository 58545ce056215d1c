package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"tidegate/bench/source"
	"tidegate/internal/clock"
	"tidegate/internal/sim"
	"tidegate/uplink"
)

// broker says what it received, until its input ends.
func broker(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	b := sim.NewScript(ln, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
		var m struct {
			Lane string
			Seq  json.RawMessage
		}
		n := uint64(0)
		if json.Unmarshal(a.Payload, &m) == nil && m.Lane == "data" && json.Unmarshal(m.Seq, &n) == nil && n > 0 {
			fmt.Println("got", n)
		}
		return sim.Pass
	}})
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return b.Close()
}

// gateway sends a batch twice a second, until its input ends.
func gateway(url string, keepalive time.Duration) error {
	c, err := clock.Open("")
	if err != nil {
		return err
	}
	q := source.New(c)
	o := uplink.Defaults()
	o.URL, o.Insecure, o.Keepalive = url, "plain-text", keepalive
	u, err := uplink.New(o, uplink.Env{Gateway: "gw", Site: "net", Epoch: "00000000", Clock: c, Catalog: q.Points()})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { u.Run(ctx, q) })
	wg.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			q.Add()
			fmt.Println("given", q.Given("data"), "sessions", u.Stats().Sessions)
		}
	})
	io.Copy(io.Discard, os.Stdin)
	stop()
	wg.Wait()
	return nil
}
