package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/config"
	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/agent"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
)

// readResult is what `read --json` prints.
type readResult struct {
	Schema string `json:"schema"`
	status.ReadReply
	Register string `json:"register,omitempty"`
	Manual   int    `json:"manual_address,omitempty"`
	Via      string `json:"via"` // agent or direct
}

type readFlags struct {
	unit    int
	baud    int
	mode    string
	as      string
	typ     string
	order   string
	timeout time.Duration
	repeat  int
	hex     bool
	expect  string
	around  bool // registers before and behind, too
	tls     driver.TLS
}

func (a *app) readCmd() *cobra.Command {
	var f readFlags
	c := &cobra.Command{
		Use:   "read TARGET [REGISTER[+COUNT]]",
		Short: "read one point or register now",
		Long: `Reads from a device now. TARGET is
  a point           meter-1/voltage_l1
  a device          meter-1                  all its points
                    meter-1 input:0+4        registers of its unit
  a bus             meters --unit 1 input:0  registers of any unit on it
  an address        /dev/ttyUSB0 (Modbus RTU), ascii:/dev/ttyUSB0, 10.0.0.20 or
                    tcp:HOST:502, with --unit and a register; or tls:10.0.0.20
                    with --tls-ca, --tls-cert and --tls-key
A register is a wire address from 0 (input:0, holding:40, coil:3, discrete:3)
or the number of the manual (30001, 40041, 400041); both are printed. While the
agent runs, it does the reading between two polls. A serial device that is
polled, such as a meter on an M-Bus, is read out once; of one that the agent
has, and of one that talks by itself, the agent tells the newest.

--as all shows every type and order. --expect 230 is for a register whose
writing nobody knows: with what the display shows it tries types, orders and
factors, also one register before and behind, and prints the line to paste.`,
		Args: atLeast(1, 2, "a target and perhaps a register"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.read(cmd.Context(), args, &f)
		},
	}
	c.Flags().IntVarP(&f.unit, "unit", "u", -1, "unit id on the line, 1 to 247 (TCP: 0 to 255)")
	c.Flags().IntVar(&f.baud, "baud", 9600, "speed of a serial line given as an address")
	c.Flags().StringVar(&f.mode, "mode", "8N1", "`FORMAT` of its characters: 8N1, 8E1, 8O1, 8N2 ...")
	c.Flags().StringVar(&f.typ, "type", "", "`TYPE` of the value: u16 i16 u32 i32 f32 u64 i64 f64 bcd16 bcd32 string ...")
	c.Flags().StringVar(&f.order, "order", "", "byte `ORDER`: abcd cdab badc dcba")
	c.Flags().StringVar(&f.as, "as", "", "`all`: every type and order that fits the registers")
	c.Flags().StringVar(&f.expect, "expect", "", "`VALUE` that the register should show: how it is written")
	c.Flags().BoolVar(&f.around, "try-neighbours", false, "read the registers before and behind as well")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "how long the device may take (default 500ms, TCP 1s)")
	c.Flags().IntVar(&f.repeat, "repeat", 1, "read this many times, once a second")
	c.Flags().BoolVar(&f.hex, "hex", false, "print the bytes as well")
	tlsFlags(c, &f.tls)
	return c
}

func (a *app) read(ctx context.Context, args []string, f *readFlags) error {
	if strings.HasPrefix(f.typ, "i") {
		f.typ = "s" + f.typ[1:]
	}
	var reg register
	q := status.ReadRequest{Point: args[0]}
	if len(args) == 2 {
		var err error
		if reg, err = parseRegister(args[1]); err != nil {
			return err
		}
		if _, raw := address(args[0]); raw && f.unit < 0 {
			return usage{errors.New("which unit? Give --unit with its number on the line")}
		}
		if reg.count == 0 {
			reg.count = max(1, words(f.typ))
		}
		bus := args[0]
		if scheme, name, ok := strings.Cut(bus, ":"); ok && (scheme == "rtu" || scheme == "tcp") && !strings.ContainsAny(name, ":/") {
			bus = name // rtu:meters is the bus meters of the configuration
		}
		q = status.ReadRequest{Bus: bus, Unit: f.unit, Table: int(reg.table), Addr: int(reg.addr), Count: int(reg.count)}
	}
	if f.as != "" && (f.as != "all" || len(args) < 2) {
		return usage{errors.New("--as all needs a register, for example: tidegate read meters --unit 1 30001+2 --as all")}
	}
	if f.expect != "" || f.around {
		if len(args) < 2 {
			return usage{errors.New("--expect and --try-neighbours need a register, for example: tidegate read meters --unit 1 30001 --expect 230")}
		}
		if f.expect != "" {
			return a.readExpect(ctx, args, q, reg, f)
		}
		return a.readAround(ctx, args, q, reg, f)
	}
	for n := 0; n < f.repeat; n++ {
		if n > 0 {
			select {
			case <-ctx.Done():
				return exit(exitInterrupted)
			case <-time.After(time.Second):
			}
		}
		reply, via, err := a.readOnce(ctx, args, q, f)
		if err != nil {
			return err
		}
		if err := a.printRead(reply, via, reg, f); err != nil {
			return err
		}
	}
	return nil
}

// readOnce reads through the agent, or directly where none answers or the
// target is an address.
func (a *app) readOnce(ctx context.Context, args []string, q status.ReadRequest, f *readFlags) (status.ReadReply, string, error) {
	if connect, ok := address(args[0]); ok {
		if len(args) < 2 {
			return status.ReadReply{}, "", usage{fmt.Errorf("which register of %s? For example: tidegate read %s --unit 1 input:0", args[0], args[0])}
		}
		bus, err := a.busOf(ctx, "", connect)
		switch {
		case err != nil:
			return status.ReadReply{}, "", err
		case bus != "":
			q.Bus = bus
			reply, err := a.client().Read(ctx, q)
			return reply, "agent", err
		}
		reply, err := a.readAddress(ctx, connect, q, f)
		return reply, "direct", err
	}
	reply, err := a.client().Read(ctx, q)
	if !errors.Is(err, status.ErrNoAgent) {
		return reply, "agent", err
	}
	r, err := a.reader(args[0])
	if err != nil {
		return reply, "", err
	}
	defer r.Close()
	reply, err = r.Read(ctx, q)
	return reply, "direct", err
}

// reader opens the lines of the configuration, where no agent has them.
func (a *app) reader(target string) (*agent.Reader, error) {
	cfg, err := a.configOf(target)
	if err != nil {
		return nil, err
	}
	return agent.OpenReader(cfg)
}

// configOf reads the configuration for a target that is a name in it. Without
// one the target may have been meant as an address.
func (a *app) configOf(target string) (*config.Config, error) {
	cfg, _, err := a.load()
	if f := (*status.Failure)(nil); errors.As(err, &f) && f.Code == "config-file" {
		f.Try = strings.TrimPrefix(f.Try+"\nfor a host on the network: tcp:"+target, "\n")
	}
	return cfg, err
}

func (a *app) readAddress(ctx context.Context, connect string, q status.ReadRequest, f *readFlags) (status.ReadReply, error) {
	l, err := openAddress(connect, q.Unit, f.baud, f.mode, f.timeout, &f.tls)
	if err != nil {
		return status.ReadReply{}, err
	}
	defer l.Close()
	return agent.ReadRegisters(ctx, l, q)
}

func (a *app) printRead(reply status.ReadReply, via string, reg register, f *readFlags) error {
	if f.as != "" && reg.count > 0 {
		return a.printAll(reply, via, reg)
	}
	if reg.count > 0 {
		if err := interpret(&reply, reg, f); err != nil {
			return err
		}
	}
	place, manual := "", 0
	if reply.Table != 0 {
		r := register{profile.Table(reply.Table), uint16(reply.Addr), uint16(reply.Count)}
		place, manual = r.String(), profile.ManualNumber(r.table, r.addr)
	}
	if a.json {
		printJSON(a.out, readResult{"tidegate.read/1", reply, place, manual, via})
	} else {
		rows := [][]string{}
		for _, v := range reply.Values {
			name := v.Point
			if v.Device != "" {
				name = v.Device + "/" + v.Point
			}
			when := fmt.Sprintf("read now (%.0f ms)", reply.RTTMS)
			if reply.RTTMS == 0 || v.AgeMS >= 1000 { // nobody was asked, or the device has measured it before
				when = age(v.AgeMS) + " ago"
			}
			row := []string{name, withUnit(v), quality(v), when}
			if v.Table > 0 {
				row = append(row, register{profile.Table(v.Table), uint16(v.Addr), 1}.String())
			}
			rows = append(rows, row)
		}
		table(a.out, rows)
		if f.hex && reply.Hex != "" {
			fmt.Fprintf(a.out, "bytes  % x\n", mustHex(reply.Hex))
		}
	}
	for _, v := range reply.Values {
		if v.Quality == telemetry.Comm.String() {
			return exit(exitFindings)
		}
	}
	return nil
}

func mustHex(s string) []byte {
	b, _ := hex.DecodeString(s) // our own socket wrote it
	return b
}

// interpret gives raw registers a meaning: the type that was asked for, or
// each register as u16, each bit as true or false.
func interpret(reply *status.ReadReply, reg register, f *readFlags) error {
	data, err := hex.DecodeString(reply.Hex)
	if err != nil {
		return err
	}
	step := uint16(1)
	typ := f.typ
	if reg.table.Bits() {
		typ = "bit"
	} else if typ == "" {
		typ = "u16"
	}
	length := 0
	if typ == "string" {
		step, length = reg.count, int(reg.count)
	} else if n := words(typ); n > 0 {
		step = n
	} else if typ != "bit" {
		return usage{fmt.Errorf("--type %q is not known; write u8 s8 u16 s16 u24 s24 u32 s32 u64 s64 f32 f64 bcd16 bcd32 or string", f.typ)}
	}
	var points []profile.Point
	for i := uint16(0); i+step <= reg.count; i += step {
		addr := int(reg.addr + i)
		p := profile.Point{Name: fmt.Sprintf("at%d", addr), Type: typ, Order: strings.ToUpper(f.order), Length: length}
		if typ == "bit" {
			p.Type, p.Order = "", ""
		}
		switch reg.table {
		case profile.Coils:
			p.Coil = &addr
		case profile.Discrete:
			p.Discrete = &addr
		case profile.Holding:
			p.Holding = &addr
		default:
			p.Input = &addr
		}
		points = append(points, p)
	}
	if len(points) == 0 {
		return usage{fmt.Errorf("a %s takes %d registers, only %d were asked for", typ, step, reg.count)}
	}
	m, issues := profile.Custom("registers", points, nil)
	if len(issues) > 0 {
		return usage{fmt.Errorf("%s %s", issues[0].Msg, issues[0].Hint)}
	}
	req := profile.Request{Table: reg.table, Address: reg.addr, Count: reg.count}
	for i := range points {
		req.Points = append(req.Points, i)
	}
	now := time.Now().UnixMilli()
	for i, r := range m.Decode(req, data, 0, nil) {
		reply.Values = append(reply.Values, status.Value{Point: fmt.Sprintf("%v:%d", reg.table, int(reg.addr)+i*int(step)), Value: r.Value.AppendJSON(nil),
			Quality: r.Quality.String(), Cause: r.Cause.String(), At: now,
			Table: int(reg.table), Addr: int(reg.addr) + i*int(step), Manual: profile.ManualNumber(reg.table, reg.addr+uint16(i)*step)})
	}
	return nil
}

// printAll prints what the registers say in every type and order that fits
// their number.
func (a *app) printAll(reply status.ReadReply, via string, reg register) error {
	types := []string{"u16", "s16"}
	orders := []string{"ABCD", "BADC"}
	switch {
	case reg.table.Bits():
		types, orders = []string{"bit"}, []string{""}
	case reg.count == 2:
		types, orders = []string{"f32", "u32", "s32", "u16"}, []string{"ABCD", "CDAB", "BADC", "DCBA"}
	case reg.count == 4:
		types, orders = []string{"f64", "u64", "s64", "f32", "u32", "u16"}, []string{"ABCD", "CDAB", "BADC", "DCBA"}
	}
	rows := [][]string{}
	for _, typ := range types {
		for _, order := range orders {
			if strings.HasSuffix(typ, "16") && (order == "CDAB" || order == "DCBA") {
				continue // one register has no order of words
			}
			one := status.ReadReply{Hex: reply.Hex}
			if err := interpret(&one, reg, &readFlags{typ: typ, order: order}); err != nil {
				return err
			}
			var texts []string
			for _, v := range one.Values {
				texts = append(texts, withUnit(v))
				v.Point += " " + typ + " " + strings.ToLower(order)
				reply.Values = append(reply.Values, v)
			}
			rows = append(rows, []string{"", typ, strings.ToLower(order), strings.Join(texts, ", ")})
		}
	}
	if a.json {
		printJSON(a.out, readResult{"tidegate.read/1", reply, reg.String(), profile.ManualNumber(reg.table, reg.addr), via})
		return nil
	}
	fmt.Fprintf(a.out, "unit %d  %v   % x\n", reply.Unit, reg, mustHex(reply.Hex))
	table(a.out, rows)
	if only := looksLike(rows); only != "" {
		fmt.Fprintln(a.out, "looks like: "+only+" (the only reading between -1e6 and 1e6)")
	}
	return nil
}

// looksLike names the one type and order in which the registers are together
// a number that devices mean; "" if there is none or more than one.
func looksLike(rows [][]string) string {
	only, value := "", ""
	for _, r := range rows {
		if len(r) < 4 || strings.Contains(r[3], ", ") || strings.HasSuffix(r[1], "16") || r[1] == "bit" {
			continue
		}
		x, err := strconv.ParseFloat(r[3], 64)
		if err != nil || x == 0 || math.Abs(x) < 1e-3 || math.Abs(x) > 1e6 || r[3] == value {
			continue // the same number without sign is no second reading
		}
		if only != "" {
			return ""
		}
		only, value = r[1]+" "+r[2]+"  "+r[3], r[3]
	}
	return only
}

// configFailure is the error of a configuration file that cannot be read at all.
func configFailure(path string, err error) error {
	f := &status.Failure{Code: "config-file", What: "the configuration " + path + " cannot be read",
		Seen: err.Error(), Exit: exitNoInput}
	if path == defaultConfig {
		f.What = "there is no configuration: neither " + path + " nor ./tidegate.yaml can be read"
		f.Try = "name the file: --config FILE"
	}
	return f
}
