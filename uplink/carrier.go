package uplink

import "time"

// carrier is one connection that messages travel on: MQTT (link) or HTTPS
// (posts). Its methods are called by the goroutine of the session.
type carrier interface {
	// post hands a message over, which is then written by itself; its bytes
	// must stay as they are until the ticket is done. The name is the number
	// of a batch in words, "" for what has none. An error: the connection is
	// lost.
	post(m message, name string) (ticket, error)
	// quick is post for a message that nobody acknowledges.
	quick(m message) error
	// subscribe asks for what comes to a topic filter, and waits for the
	// answer. A refusal is an *Error, and the connection stays good.
	subscribe(filter, who string, limit time.Duration) error
	incoming() <-chan incoming
	// busy tells that no more can be handed over just now.
	busy() bool
	// held is until when the other side wants nothing: no stall until then.
	held() time.Time
	// changed is signalled when something was written or acknowledged.
	changed() <-chan struct{}
	// gone is closed when the connection is lost. why says what is known of
	// the reason; err is what a ticket said, nil for nothing.
	gone() <-chan struct{}
	why(err error) error
	// end closes the connection, with a word of goodbye if politely.
	end(politely bool)
	// peer is the broker, and the certificate files the connection was made with.
	peer() (broker, loaded)
}

// ticket is a message on its way.
type ticket interface {
	// done is closed when nothing more will happen to the message.
	done() <-chan struct{}
	// written is when all of it was written, zero before.
	written() time.Time
	// outcome of what is done: when the broker acknowledged this very message
	// on this very connection, or why not.
	outcome() (acked time.Time, err error)
	// drop forgets what is known of the message.
	drop()
}

// proven tells whether the broker has the message, done or not.
func proven(t ticket) bool {
	select {
	case <-t.done():
		acked, err := t.outcome()
		return err == nil && !acked.IsZero()
	default:
		return false
	}
}
