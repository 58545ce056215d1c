package status

import (
	"bufio"
	"context"
	"net/http"
	"net/url"
)

// serveCapture streams the lines of a capture as they come, until the client
// has enough. The stream outlives any timeout of the server.
func serveCapture(w http.ResponseWriter, r *http.Request, api API) {
	begun := false
	rc := http.NewResponseController(w)
	err := api.Capture(r.Context(), r.URL.Query().Get("bus"), func(line []byte) error {
		begun = true
		if _, err := w.Write(line); err != nil {
			return err
		}
		return rc.Flush()
	})
	if err != nil && !begun {
		reply(w, nil, err)
	}
}

// Capture calls line with each line of a capture of a bus until ctx ends,
// line fails, or the agent stops; line's error is returned.
func (c *Client) Capture(ctx context.Context, bus string, line func([]byte) error) error {
	resp, err := c.ask(ctx, "GET", "/capture?"+url.Values{"bus": {bus}}.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	br := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		b, err := br.ReadBytes('\n')
		if len(b) > 0 && err == nil {
			err = line(b)
			if err != nil {
				return err
			}
		}
		if err != nil {
			return nil // ctx has ended, or the agent has
		}
	}
}
