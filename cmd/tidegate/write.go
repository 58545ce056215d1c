package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/agent"
	"tidegate/internal/status"
)

// writeResult is what `write --json` prints.
type writeResult struct {
	Schema string `json:"schema"`
	status.WriteReply
	Via string `json:"via"` // agent or direct
}

type writeFlags struct {
	dryRun, raw, yes, noReadback bool
	unit, baud                   int
	mode, typ, order             string
	timeout                      time.Duration
	tls                          driver.TLS
}

func (a *app) writeCmd() *cobra.Command {
	var f writeFlags
	c := &cobra.Command{
		Use:   "write TARGET VALUE",
		Short: "give a point or register a value",
		Long: `Writes to a device now, reads back and compares. TARGET is a point whose profile
or configuration has write: with its limits, such as meter-1/ct_ratio. VALUE is
a number, on or off, a word of an enum, or a text. The configuration must say
  writes: allow
The old value is shown first. On a terminal you are asked whether to go on,
elsewhere --yes must stand for the answer. With --dry-run everything is done but
the write.

With --raw, TARGET is a device, a bus or an address with a register, and what a
profile says does not count:
  tidegate write boiler holding:40 55.5 --type f32 --raw --yes
  tidegate write /dev/ttyUSB0 holding:40 1 --unit 7 --raw --yes

While the agent runs, it does the writing between two polls, and notes in its
log who wrote what.`,
		Args: atLeast(2, 3, "a target and a value"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.write(cmd.Context(), args, &f) },
	}
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would be written, and do not write it")
	c.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&f.raw, "raw", false, "write registers, whatever a profile says; needs --yes")
	c.Flags().BoolVar(&f.noReadback, "no-readback", false, "do not read back: the device's acceptance is enough")
	c.Flags().IntVarP(&f.unit, "unit", "u", -1, "with --raw: unit id on the line, 1 to 247 (TCP: 0 to 255)")
	c.Flags().IntVar(&f.baud, "baud", 9600, "with --raw: speed of a serial line given as an address")
	c.Flags().StringVar(&f.mode, "mode", "8N1", "with --raw: `FORMAT` of its characters: 8N1, 8E1, 8O1, 8N2 ...")
	c.Flags().StringVar(&f.typ, "type", "u16", "with --raw: `TYPE` of the value: u16 i16 u32 i32 f32 u64 i64 f64 bcd16 bcd32")
	c.Flags().StringVar(&f.order, "order", "", "with --raw: byte `ORDER`: abcd cdab badc dcba")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "with --raw: how long the device may take (default 500ms, TCP 1s)")
	tlsFlags(c, &f.tls)
	return c
}

func (a *app) write(ctx context.Context, args []string, f *writeFlags) error {
	q := status.WriteRequest{Point: args[0], Value: args[len(args)-1], NoReadback: f.noReadback}
	_, isAddress := address(args[0])
	switch {
	case f.raw && len(args) < 3:
		return usage{errors.New("--raw needs a register: tidegate write TARGET holding:40 VALUE --raw --yes")}
	case !f.raw && len(args) > 2, !f.raw && isAddress:
		return usage{errors.New("a register is written with --raw --yes; without, the target is a point such as meter-1/ct_ratio")}
	case f.raw && !f.yes && !f.dryRun:
		return usage{errors.New("--raw writes past every profile: add --yes if you mean it, or --dry-run")}
	case f.raw:
		if err := rawWrite(&q, args, f); err != nil {
			return err
		}
	case !strings.Contains(args[0], "/"):
		return usage{fmt.Errorf("%q is no point; write DEVICE/POINT", args[0])}
	}
	ask := a.terminal() && !f.yes && !f.dryRun
	if !ask && !f.yes && !f.dryRun {
		return usage{errors.New("nobody is there to be asked: add --yes, or --dry-run")}
	}
	if ask || f.dryRun {
		q.DryRun = true
		reply, via, err := a.writeOnce(ctx, args[0], q, f)
		if err != nil {
			return err
		}
		a.printWrite(reply, via)
		if f.dryRun {
			return nil
		}
		fmt.Fprint(a.err, "write it? [y/N] ")
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
			fmt.Fprintln(a.err, "not written")
			return exit(exitFindings)
		}
		q.DryRun = false
	}
	reply, via, err := a.writeOnce(ctx, args[0], q, f)
	if err != nil {
		return err
	}
	a.printWrite(reply, via)
	return nil
}

// rawWrite makes the registers of a value.
func rawWrite(q *status.WriteRequest, args []string, f *writeFlags) error {
	reg, err := parseRegister(args[1])
	if err != nil {
		return err
	}
	at := int(reg.addr)
	p := profile.Point{Name: "value", Write: &profile.Write{}}
	switch reg.table {
	case profile.Coils:
		p.Coil = &at
	case profile.Holding:
		p.Holding, p.Order = &at, strings.ToUpper(f.order)
		if p.Type = f.typ; strings.HasPrefix(f.typ, "i") {
			p.Type = "s" + f.typ[1:]
		}
		if words(p.Type) == 0 {
			return usage{fmt.Errorf("--type %q is not known; write u16 s16 u32 s32 u64 s64 f32 f64 bcd16 or bcd32", f.typ)}
		}
	default:
		return usage{fmt.Errorf("%v is read only; coil and holding can be written", reg)}
	}
	m, issues := profile.Custom("register", []profile.Point{p}, nil)
	if len(issues) > 0 {
		return usage{fmt.Errorf("%s %s", issues[0].Msg, issues[0].Hint)}
	}
	v, err := m.ParseValue(0, q.Value)
	if err != nil {
		return usage{err}
	}
	w, err := m.Patch(0, v, nil)
	if err != nil {
		return usage{err}
	}
	q.Point, q.Bus, q.Unit = "", args[0], f.unit
	q.Table, q.Addr, q.Count, q.Hex = int(w.Table), int(w.Address), int(w.Count), hex.EncodeToString(w.Data)
	return nil
}

// writeOnce writes through the agent, or directly where none answers or the
// target is an address that no agent has.
func (a *app) writeOnce(ctx context.Context, target string, q status.WriteRequest, f *writeFlags) (status.WriteReply, string, error) {
	if connect, ok := address(target); ok {
		if f.unit < 0 {
			return status.WriteReply{}, "", usage{errors.New("which unit? Give --unit with its number on the line")}
		}
		bus, err := a.busOf(ctx, "", connect)
		switch {
		case err != nil:
			return status.WriteReply{}, "", err
		case bus != "":
			q.Bus = bus
			reply, err := a.client().Write(ctx, q)
			return reply, "agent", err
		}
		l, err := openAddress(connect, f.unit, f.baud, f.mode, f.timeout, &f.tls)
		if err != nil {
			return status.WriteReply{}, "", err
		}
		defer l.Close()
		reply, err := agent.WriteRegisters(ctx, l, q, driver.WriteOptions{DryRun: q.DryRun, NoReadback: q.NoReadback})
		a.noteWrite(q, reply, err)
		return reply, "direct", err
	}
	reply, err := a.client().Write(ctx, q)
	if !errors.Is(err, status.ErrNoAgent) {
		return reply, "agent", err
	}
	r, err := a.reader(target)
	if err != nil {
		return reply, "", err
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reply, err = r.Write(ctx, q)
	a.noteWrite(q, reply, err)
	return reply, "direct", err
}

// noteWrite writes the line that the agent would write to its log.
func (a *app) noteWrite(q status.WriteRequest, reply status.WriteReply, err error) {
	if !q.DryRun && (reply.Sent || err == nil) {
		agent.AuditWrite(slog.New(slog.NewTextHandler(a.err, nil)), status.UserName(os.Getuid()), q, reply, err)
	}
}

func (a *app) printWrite(w status.WriteReply, via string) {
	if a.json {
		printJSON(a.out, writeResult{"tidegate.write/1", w, via})
		return
	}
	value := func(json []byte, bytes string) string {
		switch {
		case len(json) > 0:
			return withUnit(status.Value{Value: json, Unit: w.Measure})
		case bytes != "":
			return fmt.Sprintf("% x", mustHex(bytes))
		}
		return "not readable"
	}
	name := w.Device + "/" + w.Point
	reg := register{profile.Table(w.Table), uint16(w.Addr), uint16(w.Count)}
	if w.Point == "" {
		name = fmt.Sprintf("unit %d", w.Unit)
	}
	line := fmt.Sprintf("%s   old %s   new %s   %v   function %d", name, value(w.Old, w.OldHex), value(w.New, w.NewHex), reg, w.Function)
	if w.Allowed != "" {
		line += "   allowed " + w.Allowed
	}
	if !w.Sent {
		io.WriteString(a.out, line+"\n")
		return
	}
	fmt.Fprintln(a.out, line)
	took := ""
	if w.RTTMS > 0 {
		took = fmt.Sprintf(" (%.0f ms)", w.RTTMS)
	}
	switch {
	case w.Verified:
		fmt.Fprintf(a.out, "written, read back %s%s\n", value(w.Back, w.BackHex), took)
	default:
		fmt.Fprintf(a.out, "written, not read back%s\n", took)
	}
}
