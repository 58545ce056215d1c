package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// socket is MQTT in the binary messages of a WebSocket (MQTT 3.1.1, 6). What
// the broker sends may be cut into messages anywhere; each write is one.
type socket struct {
	*websocket.Conn
	rest io.Reader // of the message under way
}

// upgrade turns an open connection, TCP or TLS, into a WebSocket. The
// connection is closed when it fails.
func upgrade(ctx context.Context, c net.Conn, b broker, limit time.Duration) (*socket, error) {
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, HandshakeTimeout: limit, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10}
	given := func(context.Context, string, string) (net.Conn, error) { return c, nil }
	d.NetDialContext, d.NetDialTLSContext = given, given
	ws, resp, err := d.DialContext(ctx, b.String(), http.Header{"User-Agent": {"tidegate"}})
	if err != nil {
		c.Close()
		if errors.Is(err, websocket.ErrBadHandshake) && resp != nil {
			return nil, &refusedUpgrade{resp.Status}
		}
		return nil, err
	}
	if ws.Subprotocol() != "mqtt" {
		c.Close()
		return nil, &refusedUpgrade{resp.Status + ", but not for MQTT"}
	}
	// The guard of the packets comes behind this; a message may hold several.
	ws.SetReadLimit(0)
	return &socket{Conn: ws}, nil
}

// refusedUpgrade is a web server that has no MQTT at this path.
type refusedUpgrade struct{ status string }

func (e *refusedUpgrade) Error() string { return "the web server answered " + e.status }

func (s *socket) Read(p []byte) (int, error) {
	for {
		if s.rest == nil {
			kind, r, err := s.NextReader()
			if err != nil {
				return 0, ended(err)
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("%w: a text message in the WebSocket", errMalformed)
			}
			s.rest = r
		}
		n, err := s.rest.Read(p)
		if err == io.EOF {
			s.rest, err = nil, nil
			if n == 0 {
				continue
			}
		}
		if err != nil {
			err = ended(err)
		}
		return n, err
	}
}

// ended makes a close message what it means: the other side is gone.
func ended(err error) error {
	if _, ok := errors.AsType[*websocket.CloseError](err); ok {
		return fmt.Errorf("%w (%w)", io.EOF, err)
	}
	return err
}

func (s *socket) Write(p []byte) (int, error) {
	if err := s.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close says goodbye if that is quick, and closes.
func (s *socket) Close() error {
	s.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(lastWord))
	return s.Conn.Close()
}

func (s *socket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

var (
	_ net.Conn = (*socket)(nil)
	_ net.Conn = (*tls.Conn)(nil)
)
