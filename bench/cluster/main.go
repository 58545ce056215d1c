// Command cluster sends to a cluster of three NATS JetStream servers as MQTT
// brokers, each a process of its own. While gateways send, one server is
// killed and comes back, then another. A subscriber with a durable session
// keeps the account: at the end every number of every gateway is there.
//
//	go run ./cluster -gateways 6 -batches 2000
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/nats-io/nats-server/v2/server"

	"tidegate/bench/source"
	"tidegate/internal/clock"
	"tidegate/uplink"
)

const nodes = 3

func main() {
	node := flag.Int("node", -1, "used by the program itself")
	dir := flag.String("dir", "", "used by the program itself")
	base := flag.Int("port", 0, "first of nine ports; 0: any")
	gateways := flag.Int("gateways", 6, "how many")
	batches := flag.Int("batches", 2000, "of each gateway")
	flag.Parse()
	var err error
	if *node >= 0 {
		err = serve(*node, *base, *dir)
	} else {
		err = prove(*gateways, *batches, *base)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// The ports of a node: clients, cluster, MQTT.
func ports(base, node int) (client, route, broker int) {
	return base + node, base + 3 + node, base + 6 + node
}

// serve is one node, until it is killed.
func serve(node, base int, dir string) error {
	client, route, broker := ports(base, node)
	o := &server.Options{ServerName: fmt.Sprint("n", node), Host: "127.0.0.1", Port: client, JetStream: true, StoreDir: dir,
		SyncAlways: true, NoSigs: true, Cluster: server.ClusterOpts{Name: "tidegate", Host: "127.0.0.1", Port: route},
		MQTT: server.MQTTOpts{Host: "127.0.0.1", Port: broker, StreamReplicas: nodes}}
	for i := range nodes {
		if _, r, _ := ports(base, i); i != node {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprint("127.0.0.1:", r)})
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	go s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		return fmt.Errorf("node %d does not start", node)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // ends with the parent
	s.Shutdown()
	return nil
}

// cluster is the processes of the nodes.
type cluster struct {
	dir  string
	base int
	cmd  [nodes]*exec.Cmd
}

func (c *cluster) start(i int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-node", fmt.Sprint(i), "-port", fmt.Sprint(c.base), "-dir", filepath.Join(c.dir, fmt.Sprint(i)))
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.cmd[i] = cmd
	if _, err := out.Read(make([]byte, 6)); err != nil {
		return fmt.Errorf("node %d: %w", i, err)
	}
	return nil
}

func (c *cluster) kill(i int) {
	if c.cmd[i] != nil {
		c.cmd[i].Process.Kill()
		c.cmd[i].Wait() // killed: an error is no news
		c.cmd[i] = nil
	}
}

// account is what the subscriber has.
type account struct {
	mu  sync.Mutex
	got map[string]map[uint64]int
}

func (a *account) take(_ mqtt.Client, m mqtt.Message) {
	var b struct {
		GW, Lane string
		Seq      uint64
	}
	if json.Unmarshal(m.Payload(), &b) != nil || b.Lane != "data" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.got[b.GW] == nil {
		a.got[b.GW] = map[uint64]int{}
	}
	a.got[b.GW][b.Seq]++
}

func (a *account) count() (different, repeats int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.got {
		for _, n := range g {
			different++
			repeats += n - 1
		}
	}
	return different, repeats
}

// free tells whether nobody uses the nine ports from base on.
func free(base int) bool {
	for i := range 3 * nodes {
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", base+i))
		if err != nil {
			return false
		}
		defer ln.Close()
	}
	return true
}

func prove(gateways, batches, base int) error {
	for range 100 {
		if base != 0 {
			break
		}
		// Below those that the kernel gives to whoever connects: a node is
		// started again on its ports long after they were found free.
		if base = 20000 + rand.IntN(10000); !free(base) {
			base = 0
		}
	}
	if base == 0 {
		return errors.New("no nine ports in a row are free from 20000 to 30008")
	}
	dir, err := os.MkdirTemp("", "tidegate-cluster-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := &cluster{dir: dir, base: base}
	for i := range nodes {
		defer c.kill(i)
		if err := c.start(i); err != nil {
			return err
		}
	}
	urls := make([]string, nodes)
	for i := range urls {
		_, _, p := ports(base, i)
		urls[i] = fmt.Sprint("mqtt://127.0.0.1:", p)
	}
	a := &account{got: map[string]map[uint64]int{}}
	o := mqtt.NewClientOptions().SetClientID("account").SetCleanSession(false).SetAutoReconnect(true).SetConnectRetry(true).
		SetConnectRetryInterval(time.Second).SetMaxReconnectInterval(2 * time.Second).SetOrderMatters(true).
		SetOnConnectHandler(func(c mqtt.Client) { c.Subscribe("tg/v1/+/+/up", 1, a.take) })
	for _, u := range urls {
		o.AddBroker("tcp" + u[len("mqtt"):])
	}
	sub := mqtt.NewClient(o)
	if t := sub.Connect(); !t.WaitTimeout(time.Minute) || t.Error() != nil {
		return fmt.Errorf("the subscriber cannot connect: %v", t.Error())
	}
	defer sub.Disconnect(250)
	time.Sleep(2 * time.Second) // the streams have their leaders

	clk, err := clock.Open("")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	all := make([]*uplink.Uplink, gateways)
	queues := make([]*source.Queue, gateways)
	for i := range all {
		queues[i] = source.New(clk)
		o := uplink.Defaults()
		o.URL, o.Fallback, o.Keepalive = urls[i%nodes], []string{urls[(i+1)%nodes], urls[(i+2)%nodes]}, 5*time.Second
		if all[i], err = uplink.New(o, uplink.Env{Gateway: fmt.Sprint("gw-", i), Site: "cluster", Epoch: "00000000", Clock: clk, Catalog: queues[i].Points()}); err != nil {
			return err
		}
		wg.Go(func() { all[i].Run(ctx, queues[i]) })
		wg.Go(func() {
			for k := 0; k < batches && ctx.Err() == nil; k++ {
				queues[i].Add()
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	began := time.Now()
	for _, node := range []int{0, 1} {
		time.Sleep(4 * time.Second)
		fmt.Printf("%5.1f s  node %d is killed\n", time.Since(began).Seconds(), node)
		c.kill(node)
		time.Sleep(4 * time.Second)
		if err := c.start(node); err != nil {
			return err
		}
		fmt.Printf("%5.1f s  node %d is back\n", time.Since(began).Seconds(), node)
		time.Sleep(3 * time.Second) // it has caught up before the next one goes
	}
	want := gateways * batches
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		n, _ := a.count()
		waiting := 0
		for _, q := range queues {
			waiting += q.Waiting()
		}
		if n >= want && waiting == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d batches arrived, %d wait", n, want, waiting)
		}
	}
	n, repeats := a.count()
	var sessions, sent uint64
	for _, u := range all {
		sessions += u.Stats().Sessions
		sent += u.Stats().Repeats
	}
	fmt.Printf("%5.1f s  %d gateways, %d sessions: %d of %d batches arrived, 0 lost; %d sent again, %d arrived again\n",
		time.Since(began).Seconds(), gateways, sessions, n, want, sent, repeats)
	if int(sessions) == gateways {
		return fmt.Errorf("no session was lost: the fault did not fire")
	}
	return nil
}
