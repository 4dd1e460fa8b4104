package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// ErrUnreachable is wrapped when no agent answers on the socket.
var ErrUnreachable = errors.New("no agent answers")

// Client talks to the agent on a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket; it connects when used. timeout bounds each request.
func NewClient(path string, timeout time.Duration) *Client {
	return &Client{path: path, http: http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			DisableKeepAlives: true,
		},
	}}
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 30

// Get asks for path ("/v1/status") and decodes the answer into v.
func (c *Client) Get(ctx context.Context, path string, q url.Values, v any) error {
	return c.do(ctx, http.MethodGet, path+"?"+q.Encode(), nil, v)
}

// Post sends req to path and decodes the answer into v.
func (c *Client) Post(ctx context.Context, path string, req, v any) error {
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, path, b, v)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, v any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://mxshield"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL is of no use to anyone
		}
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "dial" {
			return &Error{Text: fmt.Sprintf("the agent took the request on %s and did not answer: %v", c.path, err), Hint: "it may be busy: `--timeout 2m` waits longer; what was asked may have been done"}
		}
		var no syscall.Errno
		if errors.As(err, &no) {
			err = no // all the rest is said
		}
		e := &Error{Text: fmt.Sprintf("%v on %s: %v", ErrUnreachable, c.path, err), Hint: "is mxshield-agent running (systemctl status mxshield-agent)? --socket names another socket; `off` and `on` work without an agent"}
		if errors.Is(err, fs.ErrPermission) {
			e.Text = fmt.Sprintf("you may not talk to the agent on %s", c.path)
			e.Hint = "be root or in the group mxshield: sudo adduser $USER mxshield, and log in again"
		}
		return fmt.Errorf("%w%w", unreachable{}, e)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode >= 300 {
		e := &Error{Status: resp.StatusCode}
		if err := d.Decode(e); err != nil || e.Text == "" {
			e.Text = fmt.Sprintf("the agent answered %s", resp.Status)
		}
		return e
	}
	if err := d.Decode(v); err != nil {
		return &Error{Text: fmt.Sprintf("read the agent's answer: %v", err), Hint: "mxshieldctl and the agent may be of different versions"}
	}
	return nil
}

// unreachable marks an error without adding to its text.
type unreachable struct{}

func (unreachable) Error() string        { return "" }
func (unreachable) Is(target error) bool { return target == ErrUnreachable }

// PrintError prints an error as both programs do: every part of a joined one on its own, each with its hint.
func PrintError(w io.Writer, err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var texts []string
		for _, e := range many.Unwrap() {
			texts = append(texts, e.Error())
		}
		if strings.Join(texts, "\n") == err.Error() { // errors.Join; an error with two %w stays whole
			for _, e := range many.Unwrap() {
				PrintError(w, e)
			}
			return
		}
	}
	fmt.Fprintf(w, "error: %v\n", err)
	if h := Hint(err); h != "" {
		fmt.Fprintf(w, "hint: %s\n", h)
	}
}

// Hint returns the hint of an error: what HintText of the first error in its tree that has one says.
func Hint(err error) string {
	var h interface{ HintText() string }
	if errors.As(err, &h) {
		return h.HintText()
	}
	return ""
}
