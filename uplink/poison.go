package uplink

// poisonStrikes is how often in a row the broker must close the connection
// on a batch before it is set aside.
const poisonStrikes = 10

// suspicion is held against the batch on which the broker closed the
// connection. From the second time on everything goes one by one, so that
// the blame is certain, and the suspect goes only after another batch got
// through: a broker that closes on every batch (an access rule, a full
// disk) condemns none.
type suspicion struct {
	batch   key
	strikes int  // closed connections in a row, with this batch the oldest one
	proven  bool // another batch got through since the first strike
	passed  bool // another batch got through on this connection
}

// careful tells whether everything goes one by one.
func (p *suspicion) careful() bool { return p.strikes >= 2 }

// avoid tells whether a batch must wait until another one got through.
func (p *suspicion) avoid(k key) bool { return p.careful() && k == p.batch && !p.passed }

// cleared takes note of an acknowledged batch. true: the suspect, which had
// to wait for that, may go now.
func (p *suspicion) cleared(k key) bool {
	if p.strikes == 0 {
		return false
	}
	if k == p.batch {
		*p = suspicion{}
		return false
	}
	freed := p.careful() && !p.passed
	p.proven, p.passed = true, true
	return freed
}

// strike counts a connection that the broker closed. true: the batch is
// poison.
func (p *suspicion) strike(k key, alone bool) bool {
	p.passed = false
	if k != p.batch {
		*p = suspicion{batch: k, strikes: 1}
		return false
	}
	if p.careful() && !alone {
		return false
	}
	p.strikes++
	return p.strikes >= poisonStrikes && p.proven
}
