//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

var metricsAt = netip.MustParseAddrPort("127.0.0.1:9725")

// scrape reads the figures as Prometheus would, from the mail host itself, and looks whether they follow its rules.
func (r *rig) scrape() (map[string]float64, error) {
	r.t.Helper()
	from := http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return r.host.Dial(ctx, netip.Addr{}, metricsAt)
	}}
	client := http.Client{Transport: &from, Timeout: patience}
	res, err := client.Get("http://" + metricsAt.String() + "/metrics")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	page, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s, %v", res.Status, err)
	}
	problems, err := promlint.New(bytes.NewReader(page)).Lint()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range problems {
		r.t.Errorf("%s: %s", p.Metric, p.Text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		r.t.Fatal(err)
	}
	have := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			have[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
			name = f.GetName()
		}
	}
	return have, nil
}

// TestMetrics: what Prometheus scrapes is what status says, of a host that is attacked, asks a DNS list, and has peers.
func TestMetrics(t *testing.T) {
	r := newRig(t, lab.Options{}, "metrics: \""+metricsAt.String()+"\"\nbig_senders: false\n"+
		"cluster: {name: mx1, bind: \"127.0.0.1:7946\", peers: [\"127.0.0.2:7946\"]}\n"+listConfig)
	r.lists(func(string, netip.Addr) string { return "" })
	r.start()
	src := lab.Sources(lab.Attack4, 3)
	lab.Dictionary(t.Context(), r.top.Net, src[0], mx, lab.DictionaryOptions{Talk: brief, Recipients: 30, PerSession: 15})
	r.awaitBlock(src[0])
	r.must("block", "2001:db8:66::/64")
	r.must("block", "198.18.200.0/24")
	r.must("allow", "add", src[2].String())
	if !r.timesOut(src[0], mx) {
		t.Error("the attacker gets in")
	}
	r.awaitLines()

	var s control.Status
	var have map[string]float64
	// Packets go on coming, ARP among them: what is compared must be of one moment.
	r.eventually("the figures and the status are of one moment", func() bool {
		before := r.status()
		got, err := r.scrape()
		if err != nil {
			return false
		}
		s, have = r.status(), got
		return fmt.Sprint(before.Packets, before.DNS, before.Events) == fmt.Sprint(s.Packets, s.DNS, s.Events)
	})
	want := map[string]float64{
		"mxshield_shield_mode on":                      1,
		"mxshield_warnings":                            float64(len(s.Warnings)),
		"mxshield_blocks dictionary ipv4":              1,
		"mxshield_blocks manual ipv4":                  1,
		"mxshield_blocks manual ipv6":                  1,
		"mxshield_blocks trap ipv6":                    0,
		"mxshield_blocks_made_total dictionary":        1,
		"mxshield_entries ipv4 mx1":                    float64(s.Blocks.Entries - 1),
		"mxshield_entries ipv6 mx1":                    1,
		"mxshield_allows":                              1,
		"mxshield_unenforced_prefixes":                 0,
		"mxshield_sources":                             float64(s.Sources),
		"mxshield_input_lines_total " + s.Inputs[0].ID: float64(s.Inputs[0].Lines),
		"mxshield_input_lag_bytes " + s.Inputs[0].ID:   0,
		"mxshield_input_failing " + s.Inputs[0].ID:     0,
		"mxshield_state_write_failed":                  0,
		"mxshield_dns_queries_total":                   float64(s.DNS.Queries),
		"mxshield_dns_sources_asked_total":             float64(s.DNS.Asked),
		"mxshield_cluster_members unreached":           1,
		"mxshield_cluster_members alive":               0,
		"mxshield_kernel_table_entries exact_v4":       1,
		"mxshield_kernel_table_entries exact_v6":       1,
		"mxshield_interface_info " + s.Interfaces[0].Name + " " + s.Interfaces[0].Mode: 1,
		"mxshield_sessions_ended_total": float64(s.Ended),
		"mxshield_start_time_seconds":   float64(s.Started.UnixNano()) / 1e9,
	}
	for reason, n := range s.Packets {
		verdict, _, _ := strings.Cut(reason, "_")
		want["mxshield_packets_total "+reason+" "+verdict] = float64(n)
	}
	for kind, n := range s.Events {
		want["mxshield_events_total "+kind+" postfix"] = float64(n)
	}
	for _, l := range s.DNS.Lists {
		want["mxshield_dns_list_asked_total "+l.Zone] = float64(l.Asked)
		want["mxshield_dns_list_queries_left "+l.Zone] = float64(l.Left)
		want["mxshield_dns_list_suspended ipv4 "+l.Zone] = 0
	}
	for name, n := range s.Cluster.Counters {
		if name != "evidence" { // a number of registers, no count
			if _, ok := have["mxshield_cluster_"+strings.Replace(name, "stranger", "strangers", 1)+"_total"]; !ok {
				t.Errorf("the counter %s (%d) of the cluster is not there", name, n)
			}
		}
	}
	for name, v := range want {
		if got, ok := have[name]; !ok || got != v {
			t.Errorf("%s is %v (%v), status says %v", name, got, ok, v)
		}
	}
	if s.Packets["drop_exact"] == 0 || s.Events["unknown_recipient"] == 0 || s.DNS.Asked == 0 {
		t.Errorf("the test shows nothing: %v %v %+v", s.Packets, s.Events, s.DNS)
	}
	for name := range have {
		for _, a := range src {
			if strings.Contains(name, a.String()) {
				t.Errorf("%s: a series of a source", name)
			}
		}
		if name == "go_goroutines" && have[name] == 0 || name == "process_resident_memory_bytes" && have[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	if s.Metrics != metricsAt.String() {
		t.Errorf("status says %q", s.Metrics)
	}
	if _, err := r.top.Net.Dial(t.Context(), src[1], netip.AddrPortFrom(lab.MX4, metricsAt.Port())); err == nil {
		t.Error("the endpoint is open to the world")
	}
}

// check runs mxshield-agent check and returns what it printed and its exit code.
func (r *rig) check() (string, int) {
	cmd := r.host.Command(filepath.Join(binaries, "mxshield-agent"), "--config", filepath.Join(r.dir, "conf.yaml"), "check")
	cmd.Env = r.env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestMetricsInTheWay: an endpoint that cannot be opened is a warning with a hint, and the shield goes on; it is opened once it can
// be. One that strangers reach is warned about.
func TestMetricsInTheWay(t *testing.T) {
	r := bareRig(t, "metrics: \"0.0.0.0:9725\"\n"+noLog)
	var held net.Listener
	if err := r.host.Do(func() (err error) { held, err = net.Listen("tcp", "0.0.0.0:9725"); return err }); err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	out, code := r.check()
	if code == 0 || !strings.Contains(out, "metrics: ") || !strings.Contains(out, "hint: another program has that port") {
		t.Errorf("check: exit %d\n%s", code, out)
	}
	r.start()
	r.eventually("status warns of it", func() bool {
		return strings.Contains(strings.Join(r.status().Warnings, "\n"), "there are no metrics; it is tried again: listen tcp 0.0.0.0:9725: bind: address already in use (another program has that port")
	})
	if s := r.status(); s.Metrics != "" || len(s.Interfaces) != 1 {
		t.Errorf("%+v", s)
	}
	r.stop()
	held.Close()
	r.start()
	r.eventually("it is scraped", func() bool { _, err := r.scrape(); return err == nil })
	r.eventually("status warns of strangers", func() bool {
		w := strings.Join(r.status().Warnings, "\n")
		return strings.Contains(w, "everybody who reaches") && !strings.Contains(w, "there are no metrics")
	})
	out, code = r.check()
	if code != 0 || !strings.Contains(out, "http://0.0.0.0:9725/metrics") {
		t.Errorf("check beside the agent: exit %d\n%s", code, out)
	}
}
