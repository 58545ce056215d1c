package main

// mutant is a deliberate breakage, and the test that must see it.
type mutant struct {
	name string
	why  string // what a user would have suffered
	file string
	old  string // stands exactly once in the file
	new  string
	test test
	root bool // the test needs root
}

// test is a command, run in a directory of the tree.
type test struct {
	dir string
	cmd []string
}

func unit(pkg, run string) test {
	return test{".", []string{"go", "test", "-count=1", "-timeout=5m", "-v", "-run", "^(" + run + ")$", pkg}}
}

func rig(args ...string) test {
	return test{"bench", append([]string{"go", "run"}, args...)}
}

// list are the breakages. One whose code has changed has to be written anew:
// the run says so and fails.
func list() []mutant {
	return []mutant{{
		name: "skip the sync",
		why:  "a power cut takes batches that were promised",
		file: "buffer/bolt.go",
		old:  "PageSize: pageSize, FreelistType:",
		new:  "NoSync: true, PageSize: pageSize, FreelistType:",
		test: rig("./powercut", "-cuts", "60", "-seed", "1"),
		root: true,
	}, {
		name: "skip the sync, without root",
		why:  "the same, found by those who cannot cut the power",
		file: "buffer/bolt.go",
		old:  "PageSize: pageSize, FreelistType:",
		new:  "NoSync: true, PageSize: pageSize, FreelistType:",
		test: unit("./buffer", "TestEverySyncIsOn"),
	}, {
		name: "max_loss 0s returns before the commit",
		why:  "0s promises that what was accepted is on disk",
		file: "buffer/queue.go",
		old:  "	if q.maxLoss > 0 {\n		q.signal()\n",
		new:  "	if q.maxLoss >= 0 {\n		q.signal()\n",
		test: unit("./buffer", "TestKill"),
	}, {
		name: "reuse a number",
		why:  "the cloud drops the second batch as a repeat of the first",
		file: "buffer/account.go",
		old:  "		ln.given = max(ln.given, ln.reserved)\n",
		new:  "		_ = ln.reserved\n",
		test: unit("./buffer", "TestKill|TestRestartTombstone"),
	}, {
		name: "no CRC check",
		why:  "a flipped bit on the card becomes a measured value",
		file: "buffer/record.go",
		old:  " || recordSum(rec) != binary.BigEndian.Uint32(rec[44:])",
		new:  "",
		test: unit("./buffer", "TestDamage"),
	}, {
		name: "delete a segment before its tombstone is durable",
		why:  "a crash in between loses a segment without a word",
		file: "buffer/quota.go",
		old:  "	if err := q.saveState(false); err != nil {\n		return false, err\n	}\n	return true, q.remove(seg)\n",
		new:  "	if err := q.remove(seg); err != nil {\n		return false, err\n	}\n	return true, q.saveState(false)\n",
		test: unit("./buffer", "TestCrashAtEveryStep"),
	}, {
		name: "the same, found by a kill at every call",
		why:  "the rig of the faults must see it, too",
		file: "buffer/quota.go",
		old:  "	if err := q.saveState(false); err != nil {\n		return false, err\n	}\n	return true, q.remove(seg)\n",
		new:  "	if err := q.remove(seg); err != nil {\n		return false, err\n	}\n	return true, q.saveState(false)\n",
		test: rig("./faults", "-only", "kill@pwrite64", "-step", "2"),
	}, {
		name: "an unlinked segment was delivered, but nobody wrote it down",
		why:  "after a crash its numbers are told as lost though the cloud has them",
		file: "buffer/sync.go",
		old:  "	if err := q.saveState(false); err != nil {\n		return err\n	}\n	for _, s := range gone {\n",
		new:  "	for _, s := range gone {\n",
		test: unit("./buffer", "TestCrashAtEveryStep"),
	}, {
		name: "numbers count as done before their loss is in the ledger",
		why:  "a crash in between loses them without a word",
		file: "buffer/sync.go",
		old:  "	if q.lossWaits() {",
		new:  "	if q.lossWaits() && closing {",
		test: unit("./buffer", "TestCrashAtEveryStep"),
	}, {
		name: "a reservation counts at once",
		why:  "on a card that lies about flushes, numbers that have left are given again",
		file: "buffer/numbers.go",
		old:  "+ q.tune.block\n			n.left = settleFlushes + 1\n",
		new:  "+ q.tune.block\n			n.left = 1\n",
		test: unit("./buffer", "TestNumbersForgotten"),
	}, {
		name: "a state that the disk forgot is believed",
		why:  "a tombstone vanishes with it, and its numbers without a word",
		file: "buffer/numbers.go",
		old:  "		if r.gen <= s.gen {\n",
		new:  "		if r.gen <= s.gen || s.gen > 0 {\n",
		test: unit("./buffer", "TestStateForgotten"),
	}, {
		name: "a clean stop is believed though a run came after it",
		why:  "the numbers of that run are given again",
		file: "buffer/numbers.go",
		old:  "		if given.gen > s.gen {\n",
		new:  "		if given.gen > s.gen && s.gen == 0 {\n",
		test: unit("./buffer", "TestCleanStopForgotten"),
	}, {
		name: "write over the pages of the last commits",
		why:  "a card that lies about flushes takes older batches along",
		file: "buffer/bolt.go",
		old:  "	b.keep()\n",
		new:  "",
		test: unit("./buffer", "TestSnapshots"),
	}, {
		name: "zeros over the last page of the commit before",
		why:  "a commit destroys batches that were durable",
		file: "buffer/bolt.go",
		old:  "	from := max(high, b.zeroed)\n",
		new:  "	from := max(high-pageSize, b.zeroed)\n",
		test: unit("./buffer", "TestZerosAhead"),
	}, {
		name: "zeros behind the blocks of a segment",
		why:  "the buffer outgrows its size",
		file: "buffer/bolt.go",
		old:  "min(zeroStep, b.blocks-from)",
		new:  "zeroStep",
		test: unit("./buffer", "TestZerosEnd"),
	}, {
		name: "repair counts what it could not read as saved",
		why:  "what is gone is named by no tombstone",
		file: "buffer/salvage.go",
		old:  "			q.lose(Loss{Lane: seg.lane, From: lost.a, To: lost.b, Batches: int64(lost.b - lost.a + 1), Readings: -1,\n				T0: seg.sum.t0, T1: seg.sum.t1, Why: WhyCorrupt})\n",
		new:  "",
		test: unit("./buffer", "TestDamage"),
	}, {
		name: "a batch leaves before it is durable",
		why:  "0s promises that it is on disk before it is sent",
		file: "buffer/queue.go",
		old:  "	return min(ln.reserved, ln.stored)\n",
		new:  "	return ln.reserved\n",
		test: unit("./buffer", "TestDurableBeforeItLeaves"),
	}, {
		name: "a batch leaves before its number is reserved",
		why:  "after a crash the cloud gets another batch of that number",
		file: "buffer/queue.go",
		old:  "	case q.maxLoss > 0:\n		return ln.reserved\n",
		new:  "	case q.maxLoss > 0:\n		return ln.given\n",
		test: unit("./buffer", "TestNumberDurableBeforeItLeaves"),
	}, {
		name: "a start on a read-only disk goes on in the old epoch",
		why:  "the next start gives the same numbers again",
		file: "buffer/open.go",
		old:  "		if s.epoch, err = newEpoch(); err != nil {\n",
		new:  "		if _, err = newEpoch(); err != nil {\n",
		test: unit("./buffer", "TestStartOnReadOnlyDisk"),
	}, {
		name: "bring nothing back on a read-only disk",
		why:  "a batch that is whole on disk is told as lost, and written over",
		file: "buffer/account.go",
		old:  "	if !anew || q.adrift != nil {\n",
		new:  "	if !anew {\n",
		test: unit("./buffer", "TestBroughtBackAdrift"),
		root: true,
	}, {
		name: "bring back only what memory has room for",
		why:  "batches that are whole on disk are told as lost",
		file: "buffer/account.go",
		old:  "		here = *known.without(&was)\n	}\n	here.union",
		new:  "		for _, h := range ln.mem {\n			here.add(h.seq, h.seq)\n		}\n	}\n	here.union",
		test: unit("./buffer", "TestBroughtBackByRepair"),
	}, {
		name: "store what was brought back where it stands",
		why:  "a disk that loses this commit takes batches along that were durable long before",
		file: "buffer/account.go",
		old:  "			q.begun[l] = true\n",
		new:  "",
		test: unit("./buffer", "TestBroughtBack"),
	}, {
		name: "blocks beside those of an old segment",
		why:  "batches that wait since before an update are not found any more",
		file: "buffer/segment.go",
		old:  "	if b := tx.Bucket([]byte(bucketBatch)); b != nil {\n",
		new:  "	if b := tx.Bucket([]byte(bucketBatch)); b != nil && tx.Writable() {\n",
		test: unit("./buffer", "TestGolden"),
	}, {
		name: "a float as the decimal number that is only near",
		why:  "the cloud gets another value than the device sent",
		file: "internal/telemetry/pack.go",
		old:  "if abs(m[0]) < 1<<53 && decimalFloat(m[0], dec, kind) == nums[i] {",
		new:  "if abs(m[0]) < 1<<53 && dec > 1 {",
		test: unit("./internal/telemetry", "TestPackedColumns"),
	}, {
		name: "take over another store when the disk comes back",
		why:  "what waits in it is told as lost",
		file: "buffer/adrift.go",
		old:  "	if s.epoch != q.foundEpoch || s.gen != q.foundGen || !slices.Equal(names, q.foundNames) {\n",
		new:  "	if len(names) > 1 && !slices.Equal(names, q.foundNames) {\n",
		test: unit("./buffer", "TestAdriftMeetsAnother"),
	}, {
		name: "segments without their blocks",
		why:  "a foreign file that fills the disk takes the room of the buffer",
		file: "buffer/file.go",
		old:  "		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)\n",
		new:  "		err := f.Truncate(size)\n",
		test: unit("./buffer", "TestForeignFile"),
		root: true,
	}, {
		name: "go on in a segment after its commit failed",
		why:  "the kernel believes pages clean that never reached the disk",
		file: "buffer/sync.go",
		old:  "		undo()\n		q.tail[l] = nil\n		if rollOver {\n",
		new:  "		undo()\n		if !rollOver {\n			err = failure\n		} else if q.tail[l] = nil; rollOver {\n",
		test: unit("./buffer", "TestCommitFails"),
	}, {
		name: "a lower number behind a higher one in a segment",
		why:  "a batch that is stored again hides those that share its block",
		file: "buffer/segment.go",
		old:  "	if s.sum.count > 0 && group[0].seq <= s.sum.last {\n",
		new:  "	if s.sum.count < 0 {\n",
		test: unit("./buffer", "TestStoredAgain"),
	}, {
		name: "the age of a batch begins when it is full",
		why:  "a power cut costs more than max_loss",
		file: "buffer/queue.go",
		old:  "time.Now().Add(-b.Age)",
		new:  "time.Now()",
		test: unit("./buffer", "TestAge"),
	}, {
		name: "acknowledge when sent, not when the PUBACK came",
		why:  "what the broker never took is deleted",
		file: "uplink/batch.go",
		old:  "	return s.post(flight{item: item, counts: true})\n",
		new:  "	s.src.Ack(item.Lane, item.Seq)\n	return s.post(flight{item: item, counts: true})\n",
		test: unit("./uplink", "TestSweep"),
	}, {
		name: "trust the token of the MQTT library",
		why:  "a token is done without a PUBACK, too",
		file: "uplink/link.go",
		old:  "		return acked, errProof\n",
		new:  "		acked = time.Now()\n",
		test: unit("./uplink", "TestSweep|TestTokenTrap"),
	}, {
		name: "no drain after a timeout on the wire",
		why:  "a late answer is taken for that of another register, for ever",
		file: "driver/quarantine.go",
		old:  "	q.grace = now.Add(timeout)\n",
		new:  "	if timeout > 0 {\n		return\n	}\n",
		test: unit("./driver", "TestLateSweep"),
	}, {
		name: "take the first TCP answer, whatever its number",
		why:  "a late answer on TCP is taken for that of another request",
		file: "driver/wire.go",
		old:  "w.kind != kindTCP || b[skip] == a.adu[0] && b[skip+1] == a.adu[1]",
		new:  "w.kind <= kindTCP || len(b) > 0",
		test: unit("./driver", "TestLateSweep"),
	}, {
		name: "a success that names nothing acknowledges",
		why:  "the portal of a network answers 200 to everything, and every reading is gone",
		file: "uplink/https.go",
		old:  "json.Unmarshal(body, &said) != nil || said.Ack != name",
		new:  "json.Unmarshal(body, &said) != nil && said.Ack == name && name == \"\"",
		test: unit("./uplink", "TestHTTPSSweep"),
	}, {
		name: "no list of revoked certificates",
		why:  "whoever has the stolen key of the broker gets the readings",
		file: "uplink/identity.go",
		old:  "	if l.must {\n",
		new:  "	if l.must && false {\n",
		test: unit("./uplink", "TestRevoked"),
	}, {
		name: "a new certificate is not tried before the session is left",
		why:  "a bad renewal throws the gateway out",
		file: "uplink/scout.go",
		old:  "	if !b.secure || b.websocket() {\n",
		new:  "	if b.secure || b.websocket() {\n",
		test: unit("./uplink", "TestRenewal"),
	}, {
		name: "refused files are used again and again",
		why:  "a renewal that the broker does not know locks the gateway out for good",
		file: "uplink/identity.go",
		old:  "(err != nil || l.sum == id.refused):",
		new:  "(err != nil):",
		test: unit("./uplink", "TestRollback"),
	}, {
		name: "a stand-in is never left",
		why:  "the uplink stays with the expensive way for ever",
		file: "uplink/scout.go",
		old:  "		u.at.Store(0)\n",
		new:  "",
		test: unit("./uplink", "TestFailover"),
	}, {
		name: "all gateways return at once",
		why:  "the broker that has just come back goes down again",
		file: "uplink/uplink.go",
		old:  "delay, attempt = rand.N(max(u.tune.spread, 1)), 3",
		new:  "attempt = 3",
		test: unit("./uplink", "TestSpread"),
	}, {
		name: "never miss an answer to a ping",
		why:  "a connection that the network has forgotten is taken for a good one",
		file: "uplink/link.go",
		old:  "	return limit\n}\n\n// readSecret",
		new:  "	return limit + 24*time.Hour\n}\n\n// readSecret",
		test: rig("./network", "-only", "forgotten by a NAT"),
		root: true,
	}, {
		name: "absent units take a fifth of the line",
		why:  "one dead meter slows thirty good ones",
		file: "driver/quarantine.go",
		old:  "absentShare = 40",
		new:  "absentShare = 5",
		test: unit("./driver", "TestDeadShare"),
	}, {
		name: "forget what a device cannot be read across",
		why:  "the block is refused again at every slot",
		file: "driver/holes.go",
		old:  "		k.barriers = append(k.barriers, profile.Barrier{Table: f.table, Lo: f.lo, Hi: f.hi})",
		new:  "",
		test: unit("./driver", "TestHolesAtRandom"),
	}, {
		name: "half the silence between two frames",
		why:  "devices take two frames for one and answer neither",
		file: "driver/line.go",
		old:  "max(o.Gap, l.mode.silence())",
		new:  "max(o.Gap, l.mode.silence()/2)",
		test: unit("./driver", "TestPacedLine"),
	}, {
		name: "believe a write without reading back",
		why:  "a setpoint that the device did not take is reported as set",
		file: "driver/write.go",
		old:  "		case same(back.Data):",
		new:  "		case same(back.Data) || true:",
		test: unit("./driver", "TestWriteOutcome"),
	}, {
		name: "do not prove a device's certificate",
		why:  "anybody on the network can be the meter",
		file: "driver/tls.go",
		old:  "MinVersion: tls.VersionTLS12,",
		new:  "MinVersion: tls.VersionTLS12, Insecure" + "SkipVerify: true,",
		test: unit("./driver", "TestTLSRefusals"),
	}}
}
