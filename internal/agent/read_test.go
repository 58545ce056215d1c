package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"tidegate/config"
	"tidegate/driver/profile"
	"tidegate/internal/sim"
	"tidegate/internal/status"
)

// TestRead reads a device of which one register is not there, and registers
// under the name of the device.
func TestRead(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	slave := sim.NewSlave()
	slave.Unit(7).Set(profile.Holding, 8, 108, 109)
	slave.Unit(7).Set(profile.Holding, 11, 111)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { slave.ServeTCP(ctx, ln) })
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Parse("t.yaml", fmt.Appendf(nil, `gateway: {id: g}
buses:
  plant:
    connect: tcp://%s
    devices:
      one: {unit: 7, points: {a: {holding: 8}, b: {holding: 9}, bad: {holding: 10}, c: {holding: 11}}}
uplink: {url: "mqtt://127.0.0.1:1"}
`, ln.Addr()), lib)
	if cfg == nil {
		t.Fatalf("%+v", problems)
	}
	r, err := OpenReader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	for _, c := range []struct {
		q    status.ReadRequest
		want string
	}{
		{status.ReadRequest{Point: "one"}, "a=108 good, b=109 good, bad=null comm illegal-address, c=111 good"},
		{status.ReadRequest{Point: "one/b"}, "b=109 good"},
		{status.ReadRequest{Bus: "one", Unit: -1, Table: int(profile.Holding), Addr: 8, Count: 2}, "unit 7 006c006d"},
		{status.ReadRequest{Bus: "plant", Unit: 7, Table: int(profile.Holding), Addr: 11, Count: 1}, "unit 7 006f"},
		{status.ReadRequest{Bus: "plant", Unit: -1, Table: int(profile.Holding), Addr: 11, Count: 1}, "usage: which unit?"},
		{status.ReadRequest{Point: "one/bda"}, `no-such-name: there is no "one/bda"; did you mean "one/bad"?`},
		{status.ReadRequest{Point: "oen"}, `no-such-name: there is no "oen"; did you mean "one"?`},
	} {
		reply, err := r.Read(ctx, c.q)
		var got []string
		for _, v := range reply.Values {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s=%s %s %s", v.Point, v.Value, v.Quality, v.Cause)))
		}
		if c.q.Bus != "" {
			got = append(got, fmt.Sprintf("unit %d %s", reply.Unit, reply.Hex))
		}
		if f := new(status.Failure); errors.As(err, &f) {
			got = []string{f.Code + ": " + f.What}
		} else if err != nil {
			t.Errorf("%+v: %v", c.q, err)
		}
		if text := strings.Join(got, ", "); !strings.HasPrefix(text, c.want) {
			t.Errorf("%+v:\n got %s\nwant %s", c.q, text, c.want)
		}
	}
}
