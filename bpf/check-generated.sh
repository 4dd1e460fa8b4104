#!/bin/sh
# Shows that the committed BPF object and its Go bindings are what the source gives: builds them again, in a copy in
# another directory (the result must not depend on the place), and compares byte by byte. Needs no git.
#
# Another compiler gives another object, so the check is only made with the clang that built the committed one
# (clang-version.txt). Where that is missing the check is skipped, and says so; exit status 0.
set -eu

bpf=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$bpf")
wanted=$(cat "$bpf/clang-version.txt")

for tool in clang-19 llvm-strip-19; do
	if ! command -v "$tool" >/dev/null 2>&1; then
		found=$(clang --version 2>/dev/null | sed -n 1p) || true
		echo "SKIP: $tool is not installed; wanted: $wanted; here: ${found:-no clang}"
		exit 0
	fi
done
found=$(clang-19 --version | sed -n 1p)
if [ "$found" != "$wanted" ]; then
	echo "SKIP: the object was built by another clang; wanted: $wanted; here: $found"
	exit 0
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM HUP
mkdir "$tmp/bpf"
cp "$root/go.mod" "$root/go.sum" "$tmp/"
cp "$bpf"/*.c "$bpf"/*.h "$bpf/gen.go" "$bpf/bench_gen_test.go" "$tmp/bpf/"
(cd "$tmp/bpf" && GOFLAGS="-buildvcs=false -mod=mod" go generate . >/dev/null)

status=0
for file in clang-version.txt shield_bpfel.go shield_bpfel.o \
	bench_bpfel_test.go bench_bpfel_test.o broken_bpfel_test.go broken_bpfel_test.o hash_bpfel_test.go hash_bpfel_test.o \
	flood_bpfel_test.go flood_bpfel_test.o; do
	if ! cmp "$bpf/$file" "$tmp/bpf/$file"; then
		status=1
	fi
done
if [ $status -ne 0 ]; then
	echo "error: the committed files are not what the source gives" >&2
	echo "hint: go generate ./bpf, and commit the result" >&2
	exit $status
fi
echo "the committed BPF object is what the source gives ($found)"
