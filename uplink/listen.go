package uplink

import (
	"context"
	"fmt"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"tidegate/internal/clock"
)

// maxListened is the largest message that Listen takes, in bytes: the other
// side of what a gateway sends.
const maxListened = 32 << 20

// Listen subscribes to the topic filters with quality 1 and hands every
// message to got, one after the other, until ctx ends; then it returns nil.
// It is the receiving side, for verification: it does not connect again. The
// broker's refusal of a filter and the loss of the connection are errors.
func Listen(ctx context.Context, o Options, filters []string, got func(topic string, payload []byte)) error {
	c, err := clock.Open("")
	if err != nil {
		return err
	}
	u, err := New(o, Env{Gateway: o.ClientID, Site: "verify", Clock: c})
	if err != nil {
		return err
	}
	w, problem := u.reach(ctx, u.broker())
	if problem != nil {
		return quietly(ctx, problem)
	}
	w.most = maxListened
	l, problem := u.connect(ctx, w, false)
	if problem != nil {
		return quietly(ctx, problem)
	}
	defer l.end(true)
	for _, f := range filters {
		t := l.client.Subscribe(f, 1, func(_ mqtt.Client, m mqtt.Message) { got(m.Topic(), m.Payload()) }).(*mqtt.SubscribeToken)
		select {
		case <-ctx.Done():
			return nil
		case <-l.wire.dead:
			return explain(atConnect, l.wire.cause(), u.situation(u.broker()))
		case <-t.Done():
		}
		if t.Error() != nil || t.Result()[f] > 2 {
			return &Error{Code: "subscribe-refused", Msg: fmt.Sprintf("the broker does not let %s read %s", o.ClientID, f),
				Try: "ask the cloud team for read access, or narrow the topic filter", Err: t.Error()}
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case <-l.wire.dead:
		return explain(atConnect, l.wire.cause(), u.situation(u.broker()))
	}
}

// quietly turns a failure that ctx caused into none.
func quietly(ctx context.Context, err *Error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
