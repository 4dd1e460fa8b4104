#!/usr/bin/env bash
# Formatting, vet, staticcheck, shellcheck, and the directions of imports. Fails on the first kind of fault, after
# naming all of that kind.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '== %s\n' "$*"; }

step gofmt
bad=$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l)
[ -z "$bad" ] || { printf 'not formatted:\n%s\n' "$bad"; exit 1; }

step go vet
go vet ./...

step staticcheck
go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

step imports
scripts/check-imports.sh

step shellcheck
if command -v shellcheck >/dev/null; then
	git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run | xargs -0 shellcheck
else
	echo 'SKIP: shellcheck is not installed (apt-get install shellcheck)'
fi

step systemd unit
if command -v systemd-analyze >/dev/null; then
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	sed 's|@PREFIX@/sbin/mxshield-agent|/bin/true|' scripts/mxshield-agent.service >"$tmp/mxshield-agent.service"
	out=$(systemd-analyze verify --man=no "$tmp/mxshield-agent.service" 2>&1 | grep -F mxshield-agent.service || true)
	[ -z "$out" ] || { echo "$out"; exit 1; }
else
	echo 'SKIP: systemd-analyze is not here'
fi
