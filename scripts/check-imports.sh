#!/usr/bin/env bash
# Data flows one way, and imports follow it: every room may import only the rooms named here. A room that is not
# named may import none of the others; give a new one its line.
set -euo pipefail
cd "$(dirname "$0")/.."
module=$(go list -m)

allowed() { # room -> rooms it may import
	case $1 in
	agent) echo 'agent/block agent/control agent/internal/* bpf gossip gossip/replica scripts/loggen/traffic' ;; # the last one in a test only
	bpf) echo 'scripts/lab' ;; # in a benchmark only
	agent/control) echo 'agent/block' ;;
	agent/internal/config) echo 'agent/block agent/internal/dnslist agent/internal/maillog agent/internal/reputation agent/internal/senders agent/internal/verdict agent/internal/zone gossip' ;;
	agent/internal/dnslist) echo 'agent/internal/resolve scripts/lab' ;; # the last one in a test only
	agent/internal/metrics) echo 'agent/block agent/control' ;;
	agent/internal/reputation) echo 'agent/internal/dnslist' ;;
	agent/internal/senders) echo 'agent/internal/resolve' ;;
	agent/internal/store | agent/internal/zone) echo 'agent/block' ;;
	agent/internal/verdict) echo 'agent/block agent/internal/maillog' ;;
	scripts/loggen) echo 'scripts/loggen/traffic' ;;
	scripts/fail2ban) echo 'scripts/lab scripts/loggen/traffic agent/control' ;;
	ctl) echo 'agent/block agent/control bpf' ;;
	gossip | gossip/replica) echo 'agent/block' ;;
	scripts/kernels) echo 'scripts/lab' ;;
	scripts/demo) echo 'scripts/lab agent/block agent/control bpf' ;;
	scripts/e2e) echo 'scripts/lab agent/block agent/control bpf gossip gossip/replica' ;; # the last two for a node that lies
	*) echo '' ;; # agent/block, agent/internal/maillog, agent/internal/tail, scripts/lab: nobody
	esac
}

bad=0
while read -r pkg imports; do
	room=${pkg#"$module"/}
	for i in $imports; do
		case $i in "$module"/*) ;; *) continue ;; esac
		i=${i#"$module"/}
		[ "$i" = scripts/seeds ] && continue # in tests only, see below
		ok=0
		for a in $(allowed "$room"); do
			# shellcheck disable=SC2254 # a pattern such as agent/internal/*
			case $i in $a) ok=1 ;; esac
		done
		[ "$ok" = 1 ] || { echo "imports: $room must not import $i (DESIGN: data flows one way)"; bad=1; }
	done
done < <(go list -f '{{.ImportPath}} {{join .Imports " "}} {{join .TestImports " "}}' ./... | tr -s ' ')
# shellcheck disable=SC2016 # the $p is the template's
while read -r room; do
	echo "imports: ${room#"$module"/} must not import scripts/seeds but in its tests"
	bad=1
done < <(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{if eq . "'"$module"'/scripts/seeds"}}{{$p}}{{"\n"}}{{end}}{{end}}' ./...)
exit "$bad"
