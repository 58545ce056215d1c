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
		file: "buffer/open.go",
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
		name: "a batch leaves before its number is durable",
		why:  "after a crash the cloud gets another batch of that number",
		file: "buffer/queue.go",
		old:  "		return max(ln.reserved, ln.stored)\n	}\n	return ln.stored\n",
		new:  "		return max(ln.reserved, ln.stored)\n	}\n	return ln.given\n",
		test: rig("./faults", "-only", "eio-for-ever@fdatasync"),
	}, {
		name: "a batch leaves before its number is reserved",
		why:  "the same with max_loss above 0s",
		file: "buffer/queue.go",
		old:  "		return max(ln.reserved, ln.stored)\n	}\n	return ln.stored\n",
		new:  "		return ln.given\n	}\n	return ln.stored\n",
		test: unit("./buffer", "TestNumberDurableBeforeItLeaves"),
	}, {
		name: "go on in a segment after its commit failed",
		why:  "the kernel believes pages clean that never reached the disk",
		file: "buffer/sync.go",
		old:  "		undo()\n		q.tail[l] = nil\n		if rollOver {\n",
		new:  "		undo()\n		if !rollOver {\n			err = failure\n		} else if q.tail[l] = nil; rollOver {\n",
		test: unit("./buffer", "TestCommitFails"),
	}, {
		name: "acknowledge when sent, not when the PUBACK came",
		why:  "what the broker never took is deleted",
		file: "uplink/session.go",
		old:  "	return s.send(topic, false, out, flight{item: item, counts: true})\n",
		new:  "	s.src.Ack(item.Lane, item.Seq)\n	return s.send(topic, false, out, flight{item: item, counts: true})\n",
		test: unit("./uplink", "TestSweep"),
	}, {
		name: "trust the token of the MQTT library",
		why:  "a token is done without a PUBACK, too",
		file: "uplink/link.go",
		old:  "	return t.Error() == nil && !l.wire.proofOf(t.MessageID()).acked.IsZero()\n",
		new:  "	return t.Error() == nil\n",
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
	}}
}
