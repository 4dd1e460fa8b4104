package main

import (
	"io"
	"strings"
	"testing"
)

const output = `goos: linux
cpu: something
BenchmarkVerdict/table=parse/size=1k/case=miss-2    1    4.0 ns/pkt   30.0 ns/run
BenchmarkVerdict/table=cacheline/size=1k/case=hit-2    1    20.00 ns/pkt   50 ns/run
BenchmarkVerdict/table=cacheline/size=1k/case=miss-2   1    8.000 ns/pkt   36 ns/run
BenchmarkVerdict/table=cacheline/size=1k/case=other_port-2   1    5.0 ns/pkt   33 ns/run
BenchmarkVerdict/table=hash/size=1k/case=hit-2         1    50.0 ns/pkt   80 ns/run
BenchmarkVerdict/table=hash/size=1k/case=hit-2         1    60.0 ns/pkt   80 ns/run
BenchmarkVerdict/table=hash/size=1k/case=hit-2         1    9999 ns/pkt   80 ns/run
BenchmarkTable/table=cacheline/size=1k/op=insert-2     1    0.25 ns/entry 19.2 bytes/entry
BenchmarkSpread/nodes=5-2 	 1	 16.5 B/block/node	 25.34 p50-ms	 0 ns/op
BenchmarkOther-2	100	12 ns/op
PASS
`

func TestTables(t *testing.T) {
	var out strings.Builder
	if err := run(strings.NewReader(output), &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Measured on ", " cores, Linux ",
		"| size | table | miss | ratio | hit | ratio | other port | ratio |\n|---|---|---|---|---|---|---|---|\n",
		"| 1k | parse | 4.0 | 0.50 |  |  |  |  |\n",
		"| 1k | cacheline | 8.0 | 1.0 | 20 | 1.0 | 5.0 | 1.0 |\n",
		"| 1k | hash |  |  | 60 | 3.0 |  |  |\n", // the median of three
		"| 1k | cacheline | 36 | 1.2 | 33 | 1.1 |\n",
		"| 1k | cacheline | 0.25 | 1.0 |\n",
		"| size | table | insert |\n|---|---|---|\n| 1k | cacheline | 19 |\n",
		"A block on its way to the other nodes\n\n| nodes | p50-ms | p99-ms | ",
		"\n| 5 | 25 |  |  |  |  |  |  | 16 |  |  |  |\n", // only what was measured
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestFailures(t *testing.T) {
	for name, in := range map[string]string{
		"a benchmark failed": output + "--- FAIL: BenchmarkVerdict\n",
		"a package failed":   output + "FAIL\tgithub.com/mxshield/mxshield/bpf\n",
		"nothing known":      "BenchmarkOther-2	100	12 ns/op\n",
		"nothing at all":     "",
	} {
		if err := run(strings.NewReader(in), io.Discard, io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseLine(t *testing.T) {
	for _, line := range []string{"", "BenchmarkX", "BenchmarkX-2 1 x ns/op", "BenchmarkX-2 1 5", "ok pkg 1s x y"} {
		if c, ok := parseLine(line); ok {
			t.Errorf("%q is read as %v", line, c)
		}
	}
	c, ok := parseLine("BenchmarkParse/mta=exim-4.9-16 	 100	 5 ns/op	 7e3 lines/s")
	if !ok || c.name != "Parse" || c.keys["mta"] != "exim-4.9" || c.metrics["lines/s"] != 7000 {
		t.Errorf("read as %v, %v", c, ok)
	}
}
