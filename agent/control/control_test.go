package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// fake is an agent that remembers what it was asked.
type fake struct {
	asked []string
	who   string
	err   error
}

func (f *fake) Status() Status             { return Status{Node: "mx1"} }
func (f *fake) List(q block.Query) List    { return List{Total: q.Limit} }
func (f *fake) Top(limit int) (Top, error) { return Top{SampleEvery: limit}, f.err }
func (f *fake) Off(w, r string) (string, error) {
	f.who = w
	f.asked = append(f.asked, "off "+r)
	return "off", f.err
}
func (f *fake) On(w string) (string, error) {
	f.who = w
	f.asked = append(f.asked, "on")
	return "on", f.err
}
func (f *fake) Why(p netip.Prefix) (Why, error) {
	return Why{Prefix: p}, f.err
}
func (f *fake) Block(w string, p netip.Prefix, d time.Duration, forever bool, r string) (block.Result, error) {
	f.who = w
	f.asked = append(f.asked, "block "+p.String()+" "+d.String()+" "+r)
	return block.Result{Entry: block.Entry{Prefix: p, Kind: block.Block}}, f.err
}
func (f *fake) Unblock(w string, p []netip.Prefix, h time.Duration, r string) ([]block.Result, error) {
	for _, x := range p {
		f.asked = append(f.asked, "unblock "+x.String()+" "+h.String())
	}
	return nil, f.err
}
func (f *fake) Allow(w string, p netip.Prefix, d time.Duration, forever bool, r string) (block.Result, error) {
	f.asked = append(f.asked, "allow "+p.String())
	return block.Result{}, f.err
}
func (f *fake) Disallow(w string, p netip.Prefix) (block.Result, error) {
	f.asked = append(f.asked, "disallow "+p.String())
	return block.Result{}, f.err
}

func (f *fake) Lookup(_ context.Context, a netip.Addr) (Lookup, error) {
	f.asked = append(f.asked, "lookup "+a.String())
	return Lookup{Address: a}, f.err
}
func (f *fake) Reputation(a netip.Addr, limit int) (Reputation, error) {
	f.asked = append(f.asked, fmt.Sprintf("reputation %s %d", a, limit))
	return Reputation{}, f.err
}
func (f *fake) Peers() Peers         { return Peers{Node: "mx1"} }
func (f *fake) Keys() ([]Key, error) { return []Key{{ID: "01020304"}}, f.err }
func (f *fake) ChangeKey(_ string, r KeyRequest) (string, error) {
	f.asked = append(f.asked, "key "+r.Do+" "+r.Key+r.ID)
	return r.Do, f.err
}
func (f *fake) ChangeOrigin(_ string, r OriginRequest) (string, error) {
	f.asked = append(f.asked, "origin "+r.Do+" "+r.Node)
	return r.Do, f.err
}

// TestClusterRequests: what makes no sense does not reach the agent.
func TestClusterRequests(t *testing.T) {
	f := &fake{}
	c := NewClient(serve(t, f), 5*time.Second)
	var p Peers
	if err := c.Get(t.Context(), "/v1/peers", nil, &p); err != nil || p.Node != "mx1" {
		t.Errorf("%+v, %v", p, err)
	}
	var k Keys
	if err := c.Get(t.Context(), "/v1/cluster/keys", nil, &k); err != nil || len(k.Keys) != 1 {
		t.Errorf("%+v, %v", k, err)
	}
	for _, r := range []struct {
		path string
		req  any
		want string // empty: refused
	}{
		{"/v1/cluster/key", KeyRequest{Do: "add", Key: "k"}, "key add k"},
		{"/v1/cluster/key", KeyRequest{Do: "use", ID: "i"}, "key use i"},
		{"/v1/cluster/key", KeyRequest{Do: "remove", ID: "i", Force: true}, "key remove i"},
		{"/v1/cluster/key", KeyRequest{Do: "add", ID: "i"}, ""},
		{"/v1/cluster/key", KeyRequest{Do: "add", Key: "k", ID: "i"}, ""},
		{"/v1/cluster/key", KeyRequest{Do: "use", Key: "k"}, ""},
		{"/v1/cluster/key", KeyRequest{Do: "new"}, ""},
		{"/v1/origin", OriginRequest{Do: "suspend", Node: "mx2"}, "origin suspend mx2"},
		{"/v1/origin", OriginRequest{Do: "resume", Node: "mx2"}, "origin resume mx2"},
		{"/v1/origin", OriginRequest{Do: "clear", Node: "mx2"}, "origin clear mx2"},
		{"/v1/origin", OriginRequest{Do: "clear"}, ""},
		{"/v1/origin", OriginRequest{Do: "clear", Node: strings.Repeat("x", 256)}, ""},
		{"/v1/origin", OriginRequest{Do: "forget", Node: "mx2"}, ""},
	} {
		f.asked = nil
		var d Done
		err := c.Post(t.Context(), r.path, r.req, &d)
		var e *Error
		switch {
		case r.want != "" && (err != nil || len(f.asked) != 1 || f.asked[0] != r.want):
			t.Errorf("%+v: %q, %v", r.req, f.asked, err)
		case r.want == "" && (!errors.As(err, &e) || e.Status != http.StatusBadRequest || len(f.asked) > 0):
			t.Errorf("%+v: %q, %v", r.req, f.asked, err)
		}
	}
}

// TestQuestions: what makes no sense does not reach the agent.
func TestQuestions(t *testing.T) {
	f := &fake{}
	c := NewClient(serve(t, f), 5*time.Second)
	for query, want := range map[string]string{
		"lookup?address=192.0.2.7": "lookup 192.0.2.7", "lookup?address=::ffff:192.0.2.7": "lookup 192.0.2.7", "lookup?address=192.0.2.0/24": "", "lookup": "", "lookup?address=x": "",
		"reputation": "reputation invalid IP 100", "reputation?address=2001:db8::7&limit=5": "reputation 2001:db8::7 5", "reputation?limit=-1": "", "reputation?limit=1000000": "",
		"reputation?address=192.0.2.0/24": "", "reputation?address=x": "",
	} {
		path, q, _ := strings.Cut(query, "?")
		values, err := url.ParseQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		f.asked = nil
		var v any
		err = c.Get(t.Context(), "/v1/"+path, values, &v)
		var e *Error
		switch {
		case want != "" && (err != nil || len(f.asked) != 1 || f.asked[0] != want):
			t.Errorf("%s: %q, %v", query, f.asked, err)
		case want == "" && (!errors.As(err, &e) || e.Status != http.StatusBadRequest || len(f.asked) > 0):
			t.Errorf("%s: %q, %v", query, f.asked, err)
		}
	}
}

// serve starts a server on a socket of its own.
func serve(t *testing.T, a Agent) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(a, slog.New(slog.DiscardHandler)).Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestClientAndServer(t *testing.T) {
	f := &fake{}
	path := serve(t, f)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	c := NewClient(path, 5*time.Second)
	ctx := t.Context()
	var d Done
	if err := c.Post(ctx, "/v1/block", BlockRequest{Prefix: "::ffff:192.0.2.7", For: "3d", Reason: "x"}, &d); err != nil {
		t.Fatal(err)
	}
	if f.asked[0] != "block 192.0.2.7/32 72h0m0s x" || !strings.Contains(f.who, "uid ") {
		t.Errorf("asked %q by %q", f.asked, f.who)
	}
	var l List
	if err := c.Get(ctx, "/v1/list", url.Values{"limit": {"7"}}, &l); err != nil || l.Total != 7 {
		t.Errorf("%+v, %v", l, err)
	}
	f.err = &block.NeverError{Prefix: netip.MustParsePrefix("127.0.0.1/32"), By: block.Never{Rule: "loopback"}}
	var e *Error
	if err := c.Post(ctx, "/v1/block", BlockRequest{Prefix: "127.0.0.1"}, &d); !errors.As(err, &e) || e.Status != http.StatusConflict || e.Hint == "" {
		t.Errorf("%v", err)
	}
	f.err = errors.New("the disk is full")
	if err := c.Post(ctx, "/v1/on", struct{}{}, &d); !errors.As(err, &e) || e.Status != 500 || e.Text != "the disk is full" {
		t.Errorf("%v", err)
	}
	if err := NewClient(path+"x", time.Second).Get(ctx, "/v1/status", nil, &d); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no socket: %v", err)
	}
}

// TestGarbage: whatever comes in, the answer is an error with words, nothing is done, and the server goes on.
func TestGarbage(t *testing.T) {
	f := &fake{}
	h := NewServer(f, slog.New(slog.DiscardHandler)).Handler()
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/v1/block", ""}, {"POST", "/v1/block", "{"}, {"POST", "/v1/block", "null"}, {"POST", "/v1/block", "[]"}, {"POST", "/v1/block", "{}"},
		{"POST", "/v1/block", `{"prefix":"x"}`}, {"POST", "/v1/block", `{"prefix":5}`}, {"POST", "/v1/block", `{"prefix":"192.0.2.7","for":"never"}`},
		{"POST", "/v1/block", `{"prefix":"192.0.2.7","for":"0s"}`}, {"POST", "/v1/block", `{"prefix":"192.0.2.7","for":"99999d"}`},
		{"POST", "/v1/block", `{"prefix":"192.0.2.7","more":1}`}, {"POST", "/v1/block", `{"prefix":"192.0.2.7"}{"prefix":"192.0.2.8"}`},
		{"POST", "/v1/block", `{"prefix":"` + long + `"}`}, {"POST", "/v1/block", `{"prefix":"192.0.2.7","reason":"` + long[:501] + `"}`},
		{"POST", "/v1/block", "\x00\xff\xfe"}, {"POST", "/v1/unblock", `{"prefixes":[]}`}, {"POST", "/v1/unblock", `{"prefixes":["192.0.2.7","x"]}`},
		{"POST", "/v1/unblock", `{"prefixes":["192.0.2.7"],"hold":"31d"}`}, {"POST", "/v1/unblock", `{"prefixes":["192.0.2.7"],"hold":"x"}`},
		{"POST", "/v1/unblock", `{"prefixes":[` + strings.Repeat(`"192.0.2.7",`, 1000) + `"192.0.2.7"]}`},
		{"POST", "/v1/disallow", `{"prefix":"::1%eth0"}`}, {"GET", "/v1/why", ""}, {"GET", "/v1/why?prefix=%00", ""}, {"GET", "/v1/list?limit=-1", ""},
		{"GET", "/v1/top?limit=0", ""}, {"GET", "/v1/top?limit=1001", ""}, {"GET", "/v1/top?limit=x", ""},
		{"GET", "/v1/list?cause=x", ""}, {"GET", "/v1/list?kind=x", ""}, {"GET", "/v1/list?within=" + long, ""}, {"GET", "/v1/nothing", ""}, {"DELETE", "/v1/block", ""}, {"GET", "/", ""},
	} {
		r, err := http.NewRequest(c.method, c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		w := &recorder{header: http.Header{}}
		h.ServeHTTP(w, r)
		var e Error
		if w.status < 400 || w.status >= 500 || json.Unmarshal(w.body.Bytes(), &e) != nil || e.Text == "" || w.body.Len() > 1000 {
			t.Errorf("%s %.60s %.60q: %d %.300q", c.method, c.path, c.body, w.status, w.body.String())
		}
	}
	if len(f.asked) != 0 {
		t.Errorf("garbage led to %q", f.asked)
	}
}

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(s int)   { r.status = s }
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = 200
	}
	return r.body.Write(b)
}

// TestNoise: bytes that are no HTTP, and connections that are opened and left, do not stop the server.
func TestNoise(t *testing.T) {
	path := serve(t, &fake{})
	var idle []net.Conn
	for i := range 40 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		if i%2 == 0 {
			if _, err := c.Write([]byte(strings.Repeat("\x00\xff garbage\r\n", 50))); err != nil {
				t.Log(err) // the server may have hung up already
			}
		}
	}
	var s Status
	if err := NewClient(path, 5*time.Second).Get(t.Context(), "/v1/status", nil, &s); err != nil || s.Node != "mx1" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, c := range idle {
		c.Close()
	}
}

func TestListen(t *testing.T) {
	path := serve(t, &fake{})
	if _, err := Listen(path); !errors.Is(err, ErrRunning) {
		t.Errorf("second agent: %v", err)
	}
	stale := filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	l2, err := Listen(stale)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l2.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("listening replaced a file that is no socket")
	}
	if b, _ := os.ReadFile(file); string(b) != "keep" {
		t.Error("the file is gone")
	}
}

func TestMarker(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if m, err := ReadMarker(dir); m != nil || err != nil {
		t.Errorf("%v, %v", m, err)
	}
	want := &Marker{Off: Off{Since: time.Unix(1e9, 5), By: "root", Reason: "x"}, Interfaces: []Interface{{"eth0", "native"}}}
	if err := WriteMarker(dir, want); err != nil {
		t.Fatal(err)
	}
	m, err := ReadMarker(dir)
	if err != nil || m.By != "root" || len(m.Interfaces) != 1 || !m.Since.Equal(time.Unix(1e9, 0)) {
		t.Errorf("%+v, %v", m, err)
	}
	if err := os.WriteFile(filepath.Join(dir, MarkerName), []byte("\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if m, err := ReadMarker(dir); err != nil || m == nil {
		t.Errorf("a damaged marker does not mean off: %v, %v", m, err)
	}
	if err := RemoveMarker(dir); err != nil {
		t.Error(err)
	}
	if err := RemoveMarker(dir); err != nil {
		t.Error(err)
	}
}

func TestPrintError(t *testing.T) {
	var b bytes.Buffer
	PrintError(&b, errors.Join(&Error{Text: "one", Hint: "h1"}, &Error{Text: "two", Hint: "h2"}))
	if want := "error: one\nhint: h1\nerror: two\nhint: h2\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	b.Reset()
	err := NewClient("/nowhere/sock", time.Second).Get(t.Context(), "/", nil, io.Discard)
	if PrintError(&b, err); strings.Count(b.String(), "error:") != 1 || !strings.Contains(b.String(), "hint: is mxshield-agent running") {
		t.Errorf("%q", b.String())
	}
}
