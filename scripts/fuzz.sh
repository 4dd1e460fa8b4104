#!/usr/bin/env bash
# Run every fuzzer of the project for the given time each (default 5m). A crasher is kept by the go command under
# testdata/fuzz of its package: commit it with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-5m}
for dir in $(go list -f '{{.Dir}}' ./...); do
	{ grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null || true; } | sed 's/^func //' | sort -u | while read -r target; do
		echo "== ${dir#"$PWD"/} $target"
		# Minimizing is bounded by runs, not by time: where a live node's own goroutines count as coverage, it would
		# spend the minute that is its default on every find.
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1000x "$dir"
	done
done
