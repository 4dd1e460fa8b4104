//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	const good = `PACKAGE bpf.test
=== RUN   TestA
=== RUN   TestA/sub
    a_test.go:1: --- FAIL: not a result
--- PASS: TestA (0.00s)
    --- PASS: TestA/sub (0.00s)
=== RUN   TestB
    b_test.go:1: skipped: no tcx
--- SKIP: TestB (0.00s)
PASS
EXIT 0
`
	all := []result{{"TestA", passed}, {"TestB", skipped}}
	for _, c := range []struct {
		name, text  string
		want        []result
		began, done bool
	}{
		{"good", good + doneMark + "\n", all, true, true},
		{"with the returns of a serial line", strings.ReplaceAll(good+doneMark+"\n", "\n", "\r\n"), all, true, true},
		{"died in between", good, all, true, false},
		{"died before", "[    0.1] panic\n", nil, false, false},
		{"a failed one counts once", "PACKAGE bpf.test\n--- FAIL: TestC (0.00s)\nFAIL\nEXIT 1\n" + doneMark,
			[]result{{"TestC", failed}}, true, true},
		{"a crash is a failure", "PACKAGE bpf.test\n=== RUN   TestD\n=== RUN   TestD/x\npanic: oops\nEXIT 2\n" + doneMark,
			[]result{{"bpf.test, exit code 2, TestD", failed}}, true, true},
		{"the failures of one package do not hide the crash of the next",
			"PACKAGE a\n--- FAIL: TestC (0.00s)\nEXIT 1\nPACKAGE b\n=== RUN   TestD\nEXIT 2\n" + doneMark,
			[]result{{"TestC", failed}, {"b, exit code 2, TestD", failed}}, true, true},
	} {
		got, began, done := read(strings.NewReader(c.text))
		if !slices.Equal(got, c.want) || began != c.began || done != c.done {
			t.Errorf("%s: %v, began %v, done %v; want %v, %v, %v", c.name, got, began, done, c.want, c.began, c.done)
		}
	}
}

func TestTable(t *testing.T) {
	got := table([]row{
		{kernel: "5.10.0", results: []result{{"A", passed}, {"B", passed}, {"C", failed}, {"D", skipped}}},
		{kernel: "6.1.0", err: errors.New("boom\nand more")},
	})
	for _, line := range []string{"| 5.10.0 | 2 | 1 | 1 |", "| 6.1.0 | 0 | 0 | 0 | 0.0 | did not come to the end: boom |"} {
		if !strings.Contains(got, line) {
			t.Errorf("%q is not in\n%s", line, got)
		}
	}
}

// A module comes after those it needs, once.
func TestModulesOf(t *testing.T) {
	dir := t.TempDir()
	dep := "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n" +
		"kernel/net/802/stp.ko: kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\n" +
		"kernel/net/8021q/8021q.ko.xz: kernel/net/802/stp.ko\nkernel/other.ko:\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := modulesOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"kernel/net/llc/llc.ko", "kernel/net/802/stp.ko", "kernel/net/bridge/bridge.ko", "kernel/net/8021q/8021q.ko.xz"}
	for i := range want {
		want[i] = filepath.Join(dir, want[i])
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
