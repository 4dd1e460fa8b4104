package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// cell is one line of a benchmark.
type cell struct {
	name    string            // without Benchmark
	keys    map[string]string // of key=value in the name
	metrics map[string]float64
}

// parseLine takes a line as `go test -bench` prints it: name, count, and pairs of a value and its unit.
func parseLine(line string) (cell, bool) {
	f := strings.Fields(line)
	if len(f) < 4 || len(f)%2 != 0 || !strings.HasPrefix(f[0], "Benchmark") {
		return cell{}, false
	}
	parts := strings.Split(strings.TrimPrefix(f[0], "Benchmark"), "/")
	last := &parts[len(parts)-1]
	if i := strings.LastIndexByte(*last, '-'); i > 0 {
		if _, err := strconv.Atoi((*last)[i+1:]); err == nil { // GOMAXPROCS
			*last = (*last)[:i]
		}
	}
	c := cell{name: parts[0], keys: map[string]string{}, metrics: map[string]float64{}}
	for _, p := range parts[1:] {
		if k, v, ok := strings.Cut(p, "="); ok {
			c.keys[k] = v
		}
	}
	for i := 2; i < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return cell{}, false
		}
		c.metrics[f[i+1]] = v
	}
	return c, true
}

// table is how a benchmark is shown: a row for each combination of the values of rows, a column for each value of the key
// column, and for each of those a second one with the ratio to the row that differs only in having base. Rows and columns
// come in the order in which the benchmark ran. If a cell was run several times, its median counts.
type table struct {
	title     string
	benchmark string
	metric    string // "": column is "metric", and only names those that are shown
	rows      []string
	column    string
	only      []string          // values of column, in this order; nil: all
	where     map[string]string // rows of which alone are shown: key -> values, separated by blanks
	base      map[string]string // one of rows -> its value in the row that is compared with; nil: no ratios
	note      string
}

var tables = []table{
	{
		title: "Verdict per packet, by blocked sources", benchmark: "Verdict", metric: "ns/pkt", rows: []string{"size", "table"},
		column: "case", where: map[string]string{"table": "parse cacheline hash lpm"}, base: map[string]string{"table": "cacheline"},
		note: "Net of the generator of packets; the ratio is to cacheline, which is what is shipped.",
	},
	{
		title: "What innocents pay, by blocked sources", benchmark: "Verdict", metric: "ns/run", rows: []string{"size", "table"},
		column: "case", only: []string{"miss", "other_port"}, where: map[string]string{"table": "drop parse load cacheline"},
		base: map[string]string{"table": "parse", "case": "miss"},
		note: "With the generator; load is parse and one cache miss. The ratio is to parse.",
	},
	{
		title: "On the wire, by blocked sources", benchmark: "Wire", metric: "cpu-ns/pkt", rows: []string{"size", "filter"}, column: "case",
		base: map[string]string{"filter": "cacheline"},
		note: "CPU time of the thread that receives, per packet, on a veth with native XDP; pass is up to the routing decision. The ratio is to cacheline.",
	},
	{
		title: "The SYN of an innocent, asked before accepted or not", benchmark: "Hold", metric: "ns/pkt", rows: []string{"source"}, column: "hold",
		base: map[string]string{"hold": "off"},
		note: "A million blocked; net of the generator. new is a source above the budget, as in a flood, held one within it.",
	},
	{
		title: "Writing the tables", benchmark: "Table", metric: "ns/entry", rows: []string{"size", "table"}, column: "op",
		base: map[string]string{"table": "cacheline"},
		note: "The ratio is to cacheline. insert is in bulk, set one by one; of hash only the latter exists here, and is called insert.",
	},
	{
		title: "A block on its way to the other nodes", benchmark: "Spread", rows: []string{"nodes"}, column: "metric",
		only: []string{"p50-ms", "p99-ms", "p50-ratio", "p99-ratio", "queue-delivered", "burst-s", "queue-burst-delivered", "B/block/node", "queue-B/block/node", "join-s", "pushpull-joined"},
		note: "All nodes in one process. Beside memberlist's broadcast queue and push/pull, with the same entries in the same run: ratios are theirs to ours, delivered and joined are parts of 1.",
	},
	{
		title: "From a line of a log to the score", benchmark: "ParseScore", rows: []string{"mta"}, column: "metric",
		only: []string{"lines/s", "of-scanner", "of-scanner-64k", "allocs/op"},
		note: "One core. of-scanner is how many times as fast a bare bufio.Scanner reads the same file in the same run, of-scanner-64k one with a buffer of 64 kB.",
	},
	{
		title: "Replay of a day's log", benchmark: "Replay", column: "metric",
		only: []string{"lines/CPU-s", "lines/s", "of-scanner"},
		note: "of-scanner is how many times as much CPU time, of all threads, it takes as a bare bufio.Scanner over the same file in the same run.",
	},
	{
		title: "What DNS lists cost the log path", benchmark: "Take", rows: []string{"lines", "sources"}, column: "metric",
		only: []string{"ns/line-without", "ns/line-with", "ratio"},
		note: "CPU time of the thread that reads, without lists and with three that never answer.",
	},
	{
		title: "Memory of the tables", benchmark: "Table", metric: "bytes/entry", rows: []string{"size", "table"}, column: "op", only: []string{"insert"},
	},
}

// byMetric makes a cell of each metric.
func byMetric(cells []cell) (list []cell) {
	for _, c := range cells {
		for name, v := range c.metrics {
			keys := maps.Clone(c.keys)
			keys["metric"] = name
			list = append(list, cell{c.name, keys, map[string]float64{"": v}})
		}
	}
	return list
}

func (t table) markdown(cells []cell) string {
	if t.metric == "" {
		cells = byMetric(cells)
	}
	type at struct{ row, column string }
	values := map[at][]float64{}
	var rows, columns []string
	rowKeys := map[string]map[string]string{}
	for _, c := range cells {
		v, ok := c.metrics[t.metric]
		column := c.keys[t.column]
		if c.name != t.benchmark || !ok || !t.shows(c, column) {
			continue
		}
		row := t.row(c.keys, "")
		if !slices.Contains(rows, row) {
			rows, rowKeys[row] = append(rows, row), c.keys
		}
		if !slices.Contains(columns, column) {
			columns = append(columns, column)
		}
		values[at{row, column}] = append(values[at{row, column}], v)
	}
	if len(rows) == 0 {
		return ""
	}
	if t.only != nil {
		columns = t.only
	}
	var b strings.Builder
	title := t.title
	if t.metric != "" {
		title += " (" + t.metric + ")"
	}
	fmt.Fprintf(&b, "\n%s\n\n| %s |", title, strings.Join(t.rows, " | "))
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", strings.ReplaceAll(c, "_", " "))
		if t.base != nil {
			b.WriteString(" ratio |")
		}
	}
	b.WriteString("\n|" + strings.Repeat("---|", strings.Count(b.String()[strings.LastIndexByte(b.String(), '\n'):], "|")-1) + "\n")
	for _, row := range rows {
		b.WriteString("| " + row + " |")
		for _, c := range columns {
			v, ok := median(values[at{row, c}])
			b.WriteString(" " + number(v, ok) + " |")
			if t.base == nil {
				continue
			}
			of := c
			if v := t.base[t.column]; v != "" {
				of = v
			}
			base, hasBase := median(values[at{t.row(rowKeys[row], "base"), of}])
			b.WriteString(" " + number(v/base, ok && hasBase && base > 0) + " |")
		}
		b.WriteString("\n")
	}
	if t.note != "" {
		b.WriteString("\n" + t.note + "\n")
	}
	return b.String()
}

func (t table) shows(c cell, column string) bool {
	for key, values := range t.where {
		if !slices.Contains(strings.Fields(values), c.keys[key]) {
			return false
		}
	}
	return t.only == nil || slices.Contains(t.only, column)
}

// row is the head of a row; with base, of the one that it is compared with.
func (t table) row(keys map[string]string, base string) string {
	var head []string
	for _, k := range t.rows {
		v := keys[k]
		if other := t.base[k]; base != "" && other != "" {
			v = other
		}
		head = append(head, strings.ReplaceAll(v, "_", " "))
	}
	return strings.Join(head, " | ")
}

func median(x []float64) (float64, bool) {
	if len(x) == 0 {
		return 0, false
	}
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2], true
}

// number has two significant digits, and all before the point.
func number(v float64, ok bool) string {
	switch {
	case !ok:
		return ""
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 1:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
