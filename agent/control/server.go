package control

import (
	"cmp"
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
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
)

// Bounds on requests.
const (
	maxBody     = 64 << 10
	maxPrefixes = 1000
	maxConns    = 64
	maxRows     = 100_000 // of list
	maxTop      = 1000    // of top
	maxEvents   = 20_000  // of reputation
	maxLookups  = 4       // at once
	lookupTime  = 15 * time.Second
)

// An Agent does what the requests ask. who is the peer, for the audit trail. Changes are on disk and in the kernel
// when the call returns.
type Agent interface {
	Status() Status
	List(block.Query) List
	Why(netip.Prefix) (Why, error)
	Top(limit int) (Top, error)
	Lookup(ctx context.Context, a netip.Addr) (Lookup, error)
	Reputation(a netip.Addr, limit int) (Reputation, error) // a not valid: all
	Block(who string, p netip.Prefix, d time.Duration, forever bool, reason string) (block.Result, error)
	Unblock(who string, p []netip.Prefix, hold time.Duration, reason string) ([]block.Result, error)
	Allow(who string, p netip.Prefix, d time.Duration, forever bool, reason string) (block.Result, error)
	Disallow(who string, p netip.Prefix) (block.Result, error)
	Off(who, reason string) (string, error)
	On(who string) (string, error)
	ClusterAgent
}

// ErrRunning says that another agent answers on the socket.
var ErrRunning = errors.New("another agent is running")

// Listen makes the socket: mode 0660, group mxshield where that group exists. A socket that nobody answers on is
// the leftover of a killed agent and is replaced.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the control socket: %w", err)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: something that is no socket is there", path)
		}
		if Answers(path) {
			return nil, fmt.Errorf("listen on %s: %w", path, ErrRunning)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale control socket: %w", err)
		}
	}
	old := syscall.Umask(0o117) // the socket must at no time be open to all
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	if g, err := user.LookupGroup("mxshield"); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			_ = os.Chown(path, -1, gid) // without it the socket is root's alone, which is safe
		}
	}
	return l, nil
}

// Answers says whether an agent listens on the socket, as far as the caller may know.
func Answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Server answers requests on a listener.
type Server struct {
	agent   Agent
	log     *slog.Logger
	heavy   sync.Mutex
	lookups chan struct{}
}

// NewServer returns a server; Run serves.
func NewServer(a Agent, log *slog.Logger) *Server {
	return &Server{agent: a, log: log, lookups: make(chan struct{}, maxLookups)}
}

type peerKey struct{}

// Run serves until ctx ends, and closes l.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerOf(c))
		},
	}
	// A connection serves one request: idle ones would keep others, `off` among them, waiting for a place.
	srv.SetKeepAlivesEnabled(false)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(&boundedListener{l, make(chan struct{}, maxConns)}) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := srv.Shutdown(end)
	if err != nil {
		srv.Close()
	}
	<-done
	return nil
}

// boundedListener lets at most cap(slots) connections be open; more wait in the backlog.
type boundedListener struct {
	net.Listener
	slots chan struct{}
}

func (b *boundedListener) Accept() (net.Conn, error) {
	b.slots <- struct{}{}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &boundedConn{Conn: c, slots: b.slots}, nil
}

type boundedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once // net/http closes some connections twice
}

func (c *boundedConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}

// peerOf names the process at the other end, from the kernel (SO_PEERCRED, unix(7)).
func peerOf(c net.Conn) string {
	if b, ok := c.(*boundedConn); ok {
		c = b.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return "unknown"
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return "unknown"
	}
	who := "unknown"
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		uid := strconv.FormatUint(uint64(cred.Uid), 10)
		who = "uid " + uid
		if u, err := user.LookupId(uid); err == nil {
			who = u.Username + " (uid " + uid + ")"
		}
	})
	return who
}

// Handler is the API without the socket.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, f func(q url.Values) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r.URL.Query())
			s.reply(w, v, err)
		})
	}
	get("/v1/status", func(url.Values) (any, error) { return s.agent.Status(), nil })
	get("/v1/list", s.list)
	get("/v1/why", func(q url.Values) (any, error) {
		p, err := parsePrefix(q.Get("prefix"))
		if err != nil {
			return nil, err
		}
		return s.agent.Why(p)
	})
	get("/v1/top", func(q url.Values) (any, error) {
		limit, err := strconv.Atoi(cmp.Or(q.Get("limit"), "20"))
		if err != nil || limit < 1 || limit > maxTop {
			return nil, bad(fmt.Sprintf("limit %.20q is out of range", q.Get("limit")), fmt.Sprintf("1 to %d", maxTop))
		}
		return s.agent.Top(limit)
	})
	get("/v1/reputation", func(q url.Values) (any, error) {
		limit, err := strconv.Atoi(cmp.Or(q.Get("limit"), "100"))
		if err != nil || limit < 0 || limit > maxEvents {
			return nil, bad(fmt.Sprintf("limit %.20q is out of range", q.Get("limit")), fmt.Sprintf("0 to %d", maxEvents))
		}
		var a netip.Addr
		if t := q.Get("address"); t != "" {
			p, err := parsePrefix(t)
			if err != nil {
				return nil, err
			}
			if !p.IsSingleIP() {
				return nil, bad(p.String()+" is no single address", "an address, or nothing for all")
			}
			a = p.Addr()
		}
		return s.agent.Reputation(a, limit)
	})
	mux.HandleFunc("GET /v1/lookup", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.lookup(r)
		s.reply(w, v, err)
	})
	post(mux, s, "/v1/block", func(who string, r BlockRequest) (any, error) {
		p, d, forever, err := r.parse()
		if err != nil {
			return nil, err
		}
		return one(s.agent.Block(who, p, d, forever, r.Reason))
	})
	post(mux, s, "/v1/allow", func(who string, r BlockRequest) (any, error) {
		p, d, forever, err := r.parse()
		if err != nil {
			return nil, err
		}
		return one(s.agent.Allow(who, p, d, forever || r.For == "", r.Reason))
	})
	post(mux, s, "/v1/disallow", func(who string, r BlockRequest) (any, error) {
		p, err := parsePrefix(r.Prefix)
		if err != nil {
			return nil, err
		}
		return one(s.agent.Disallow(who, p))
	})
	post(mux, s, "/v1/unblock", func(who string, r UnblockRequest) (any, error) {
		if len(r.Prefixes) == 0 || len(r.Prefixes) > maxPrefixes {
			return nil, bad(fmt.Sprintf("give 1 to %d prefixes", maxPrefixes), "")
		}
		hold := time.Hour
		if r.Hold != "" {
			var err error
			if hold, err = block.ParseDuration(r.Hold); err != nil {
				return nil, bad(err.Error(), "for example 1h, 3d or 0s")
			}
			if hold > block.MaxHold {
				return nil, bad(fmt.Sprintf("a hold of %s is too long", r.Hold), "at most 30d; `allow add` has no end")
			}
		}
		if len(r.Reason) > maxReason {
			return nil, bad(reasonTooLong, "")
		}
		list := make([]netip.Prefix, len(r.Prefixes))
		for i, t := range r.Prefixes {
			p, err := parsePrefix(t)
			if err != nil {
				return nil, err // before anything is done: all or nothing
			}
			if min := minBits(p); p.Bits() < min {
				return nil, bad(fmt.Sprintf("%s is wider than /%d", p, min), "nothing wider is blocked, so nothing wider need be unblocked")
			}
			list[i] = p
		}
		res, err := s.agent.Unblock(who, list, hold, r.Reason)
		return Done{Results: res}, err
	})
	post(mux, s, "/v1/off", func(who string, r OffRequest) (any, error) {
		words, err := s.agent.Off(who, r.Reason)
		return Done{Words: words}, err
	})
	post(mux, s, "/v1/on", func(who string, _ struct{}) (any, error) {
		words, err := s.agent.On(who)
		return Done{Words: words}, err
	})
	s.cluster(mux, get)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.reply(w, nil, &Error{Status: http.StatusNotFound, Text: fmt.Sprintf("no such request: %.20s %.100q", r.Method, r.URL.Path), Hint: "mxshieldctl and the agent may be of different versions"})
	})
	return mux
}

// lookup asks others, which takes time: few at once.
func (s *Server) lookup(r *http.Request) (any, error) {
	p, err := block.ParsePrefix(r.URL.Query().Get("address"))
	if err != nil {
		return nil, bad(err.Error(), "lookup takes one address; those of a name are what `dig +short NAME` says")
	}
	if !p.IsSingleIP() {
		return nil, bad(p.String()+" is no single address", "look up one address of it")
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookupTime)
	defer cancel()
	select {
	case s.lookups <- struct{}{}:
		defer func() { <-s.lookups }()
	case <-ctx.Done():
		return nil, &Error{Status: http.StatusServiceUnavailable, Text: "too many lookups at once", Hint: "try again in a moment"}
	}
	return s.agent.Lookup(ctx, p.Addr())
}

func one(r block.Result, err error) (any, error) { return Done{Results: []block.Result{r}}, err }

func (s *Server) list(q url.Values) (any, error) {
	var bq block.Query
	if t := q.Get("within"); t != "" {
		p, err := parsePrefix(t)
		if err != nil {
			return nil, err
		}
		bq.Within = p
	}
	if t := q.Get("cause"); t != "" {
		if err := bq.Cause.UnmarshalText([]byte(t)); err != nil {
			return nil, bad(err.Error(), "")
		}
	}
	if t := q.Get("kind"); t != "" {
		var k block.Kind
		if err := k.UnmarshalText([]byte(t)); err != nil {
			return nil, bad(err.Error(), "")
		}
		bq.Kinds = []block.Kind{k}
	}
	bq.All, bq.Origin = q.Get("all") == "1", q.Get("origin")
	if t := q.Get("limit"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 0 {
			return nil, bad(fmt.Sprintf("limit %.20q is out of range", t), "0 lists all")
		}
		bq.Limit = n
	}
	if bq.Limit == 0 || bq.Limit > maxRows {
		bq.Limit = maxRows
	}
	s.heavy.Lock() // rows are made in memory: one long list at a time
	defer s.heavy.Unlock()
	return s.agent.List(bq), nil
}

func post[R any](mux *http.ServeMux, s *Server, path string, f func(who string, r R) (any, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var req R
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			s.reply(w, nil, bad("read the request: "+quoteErr(err), "the package documentation of agent/control shows the shapes"))
			return
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			s.reply(w, nil, bad("read the request: there is more than one JSON value", ""))
			return
		}
		who, _ := r.Context().Value(peerKey{}).(string)
		if who == "" {
			who = "unknown"
		}
		v, err := f(who, req)
		s.reply(w, v, err)
	})
}

// quoteErr caps errors of the JSON decoder, which repeat what the client sent.
func quoteErr(err error) string {
	t := err.Error()
	if len(t) > 200 {
		t = t[:200] + "..."
	}
	return strings.ToValidUTF8(t, "?")
}

func (s *Server) reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := asError(err)
		w.WriteHeader(e.Status)
		v = e
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("answer a control request", "error", err)
	}
}

func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if e.Status == 0 {
			e.Status = http.StatusInternalServerError
		}
		return e
	}
	e = &Error{Status: http.StatusInternalServerError, Text: err.Error(), Hint: Hint(err)}
	var never *block.NeverError
	var held *block.HeldError
	switch {
	case errors.As(err, &never), errors.As(err, &held):
		e.Status = http.StatusConflict
	case errors.Is(err, block.ErrPrefix):
		e.Status = http.StatusBadRequest
		if e.Hint == "" {
			e.Hint = fmt.Sprintf("at most /%d in IPv4 and /%d in IPv6, so that a typing error does not cut off half the world", block.MinBits4, block.MinBits6)
		}
	}
	return e
}

func bad(text, hint string) error {
	return &Error{Status: http.StatusBadRequest, Text: text, Hint: hint}
}

const (
	maxReason     = 500 // bytes
	reasonTooLong = "the reason is longer than 500 bytes"
)

func minBits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return block.MinBits4
	}
	return block.MinBits6
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := block.ParsePrefix(s)
	if err != nil {
		return p, bad(err.Error(), "an address or CIDR such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/64")
	}
	return p, nil
}

// parse reads the request; without For, d is 0 and the agent's default holds.
func (r *BlockRequest) parse() (p netip.Prefix, d time.Duration, forever bool, err error) {
	if p, err = parsePrefix(r.Prefix); err != nil {
		return
	}
	if len(r.Reason) > maxReason {
		return p, 0, false, bad(reasonTooLong, "")
	}
	switch r.For {
	case "":
	case "forever":
		forever = true
	default:
		if d, err = block.ParseDuration(r.For); err != nil || d == 0 {
			return p, 0, false, bad(fmt.Sprintf("%.40q is no duration", r.For), "for example 90m, 72h, 3d or forever")
		}
		if d > 10*365*24*time.Hour {
			return p, 0, false, bad(fmt.Sprintf("%.40q is longer than ten years", r.For), "forever has no end")
		}
	}
	return
}
