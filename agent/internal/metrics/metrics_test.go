package metrics

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

// full is a status with something in every part, names that others chose included.
func full() control.Status {
	return control.Status{
		Version: "v1", Node: "mx1\xff", Started: time.Unix(1000, 5e8), Warnings: []string{"w"},
		Off:        &control.Off{},
		Interfaces: []control.Interface{{Name: "eth0", Mode: "native"}},
		Packets:    map[string]uint64{"drop_exact": 7, "pass_not_blocked": 9},
		Kernel:     []control.KernelTable{{Table: "exact_v4", Entries: 3, Capacity: 60}},
		Blocks: block.Counts{
			Entries: 6, Blocks: 3, Manual: 1, Allows: 1, Clears: 1, Unenforced: 1,
			Causes:  map[block.Cause]block.Families{block.Dictionary: {IPv4: 2}, block.Manual: {IPv6: 1}},
			Origins: []block.OriginCount{{Origin: "mx1\xff", Families: block.Families{IPv4: 3}}, {Origin: "a\"\n{}", Families: block.Families{IPv6: 1}}, {Origin: "", Families: block.Families{IPv6: 2}}},
		},
		Made:        map[string]uint64{"dictionary": 2},
		EventsByMTA: map[string]map[string]uint64{"postfix": {"connect": 5}, "exim": {"connect": 1}},
		Inputs: []control.Input{
			{ID: "/a*", Lines: 5, Lag: 10}, {ID: "/a1", Of: "/a*", Lines: 3, Truncated: 1, LagSeconds: 2}, {ID: "/a2", Of: "/a*", Lines: 2, Truncated: 2, LagSeconds: 1},
			{ID: "journal", Lines: 4, LastError: "x"},
		},
		Senders: []control.Sender{{Rule: "spf:example.org"}, {Rule: "spf:example.net", Error: "x"}},
		DNS: &control.DNS{
			Queries: 1, Resolvers: []control.DNSServer{{Server: "127.0.0.1:53", Down: true, Millis: 250}},
			Lists: []control.DNSList{{Zone: "bl.example", IPv4: "ok", IPv6: "suspended", Left: 5}},
		},
		Own: &control.OwnCount{Watched: 2, Listed: 1, Lists: map[string]int{"bl.example": 1}}, Publish: &control.Publish{Queries: 4},
		Hold: &control.Hold{IPv4: true, Held: 8, Listed: 1, Millis: 500}, Limits: &control.Limits{SYNPerSource: 20},
		Cluster: &control.ClusterStatus{States: map[string]int{"alive": 2}, Counters: map[string]uint64{"refused": 3}, Lag: 4},
	}
}

func TestFigures(t *testing.T) {
	reg := prometheus.NewPedanticRegistry() // which compares what is collected with what was described
	if err := Register(reg, full); err != nil {
		t.Fatal(err)
	}
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]float64{}
	for _, f := range got {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			have[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		`mxshield_start_time_seconds{}`:                                                 1000.5,
		`mxshield_shield_mode{mode=off}`:                                                1,
		`mxshield_shield_mode{mode=on}`:                                                 0,
		`mxshield_packets_total{reason=drop_exact,verdict=drop}`:                        7,
		`mxshield_packets_total{reason=pass_not_blocked,verdict=pass}`:                  9,
		`mxshield_blocks{cause=dictionary,family=ipv4}`:                                 2,
		`mxshield_blocks{cause=trap,family=ipv4}`:                                       0,
		`mxshield_blocks{cause=manual,family=ipv6}`:                                     1,
		`mxshield_blocks_made_total{cause=dictionary}`:                                  2,
		"mxshield_entries{family=ipv4,origin=mx1?}":                                     3,
		"mxshield_entries{family=ipv6,origin=a\"\n{}}":                                  1,
		`mxshield_entries{family=ipv6,origin=}`:                                         2,
		`mxshield_events_total{event=connect,mta=exim}`:                                 1,
		`mxshield_input_lines_total{input=/a*}`:                                         5,
		`mxshield_input_truncated_lines_total{input=/a*}`:                               3,
		`mxshield_input_lag_seconds{input=/a*}`:                                         2,
		`mxshield_input_failing{input=journal}`:                                         1,
		`mxshield_dns_resolver_answer_seconds{resolver=127.0.0.1:53}`:                   0.25,
		`mxshield_dns_list_suspended{family=ipv6,zone=bl.example}`:                      1,
		`mxshield_dns_list_queries_left{zone=bl.example}`:                               5,
		`mxshield_hold_results_total{result=listed}`:                                    1,
		`mxshield_cluster_refused_total{}`:                                              3,
		`mxshield_kernel_table_capacity_entries{table=exact_v4}`:                        60,
		`mxshield_limit_connections_per_second{limit=source}`:                           20,
		`mxshield_own_listings{zone=bl.example}`:                                        1,
		`mxshield_senders_failing{}`:                                                    1,
		`mxshield_cluster_members{state=alive}`:                                         2,
		`mxshield_build_info{goversion=` + runtime.Version() + `,node=mx1?,version=v1}`: 1,
	} {
		if v, ok := have[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	for name := range have {
		if strings.Contains(name, "/a1") || strings.Contains(name, "/a2") {
			t.Errorf("%s: files of a glob come and go", name)
		}
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// What is in no part of the status must not be there by mistake, and an empty one must do.
	empty := prometheus.NewPedanticRegistry()
	if err := Register(empty, func() control.Status { return control.Status{} }); err != nil {
		t.Fatal(err)
	}
	if _, err := empty.Gather(); err != nil {
		t.Error(err)
	}
}

// scrapes serves a registry of one collector, and returns the address.
func scrapes(t *testing.T, status func() control.Status) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := Register(reg, status); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, reg, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestServe(t *testing.T) {
	at := scrapes(t, full)
	get := func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+at+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	code, page := get("GET", "/metrics")
	if code != 200 || !strings.Contains(page, "\nmxshield_packets_total{reason=\"drop_exact\",verdict=\"drop\"} 7\n") {
		t.Errorf("%d\n%.500s", code, page)
	}
	if problems, err := promlint.New(strings.NewReader(page)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if code, page := get("GET", "/"); code != 200 || !strings.Contains(page, "/metrics") {
		t.Errorf("/: %d %s", code, page)
	}
	for _, bad := range [][2]string{{"POST", "/metrics"}, {"GET", "/debug/pprof/"}, {"GET", "/v1/status"}} {
		if code, _ := get(bad[0], bad[1]); code < 400 {
			t.Errorf("%s: %d", bad, code)
		}
	}
}

// TestScrapersAreBounded: more than two scrapes at once are refused, not queued, and large headers are too.
func TestScrapersAreBounded(t *testing.T) {
	entered, leave := make(chan struct{}, maxConns), make(chan struct{})
	at := scrapes(t, func() control.Status {
		entered <- struct{}{}
		<-leave
		return control.Status{}
	})
	ask := func(header string) (*bufio.Reader, net.Conn) {
		t.Helper()
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n", header); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(c), c
	}
	answer := func(r *bufio.Reader, what string, want int) {
		t.Helper()
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", what, res.StatusCode, want)
		}
	}
	var under [maxScrapes]*bufio.Reader
	for i := range under {
		under[i], _ = ask("")
		<-entered
	}
	for range 5 {
		r, _ := ask("")
		answer(r, "one more", http.StatusServiceUnavailable)
	}
	r, _ := ask("X: " + strings.Repeat("x", 3*maxHeader) + "\r\n")
	answer(r, "a large header", http.StatusRequestHeaderFieldsTooLarge)
	close(leave)
	for _, r := range under {
		answer(r, "one of the first", http.StatusOK)
	}
}

func TestWarning(t *testing.T) {
	for at, warned := range map[string]bool{"127.0.0.1:9": false, "[::1]:9": false, "0.0.0.0:9": true, "[::]:9": true, "192.0.2.1:9": true, "10.0.0.1:9": true} {
		a, err := net.ResolveTCPAddr("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		if w := Warning(a); (w != "") != warned {
			t.Errorf("%s: %q", at, w)
		}
	}
}

// BenchmarkScrape is the time and garbage of one scrape, without the network.
func BenchmarkScrape(b *testing.B) {
	reg := prometheus.NewRegistry()
	if err := Register(reg, full); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := reg.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
