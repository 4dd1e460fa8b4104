# mxshield: `make help` lists the targets. Nothing here changes running services of the host.

# sudo's path often lacks Go: look where it is usually put, the calling user's home included.
GO := $(or $(shell command -v go 2>/dev/null),$(firstword $(wildcard /usr/local/go/bin/go /usr/lib/go/bin/go /snap/bin/go $(if $(SUDO_USER),$(shell getent passwd '$(SUDO_USER)' | cut -d: -f6)/go/bin/go $(shell getent passwd '$(SUDO_USER)' | cut -d: -f6)/sdk/go*/bin/go))))
export PATH := $(if $(GO),$(dir $(GO)):)$(PATH)
export GOFLAGS := -buildvcs=false $(GOFLAGS)

PREFIX ?= /usr/local
DESTDIR ?=
# Tests that need the lab take turns: the machine may have two cores, and the rigs are timed.
TESTFLAGS ?= -p 1 -timeout 540s
FUZZTIME ?= 5m
SIM ?= 10000
BENCHTIME ?= 1s

# go test says nothing of what it skips, unless it says everything; this one names what was skipped, and why.
gotest = "$(GO)" run gotest.tools/gotestsum@v1.13.0 --format standard-quiet

.DEFAULT_GOAL := help
.PHONY: help build demo test soak race lint generate check-generated kernels bench fuzz sim install clean go

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

go:
	@test -n "$(GO)" || { echo 'error: Go is not in the path'; echo 'hint: install it from https://go.dev/dl/ (1.21 or newer fetches the right version itself), or say make GO=/path/to/go'; exit 1; }
	@"$(GO)" version >/dev/null 2>&1 || { echo 'error: $(GO) cannot fetch the Go version that go.mod asks for'; echo 'hint: Go before 1.21 cannot do that: install a newer one from https://go.dev/dl/'; exit 1; }

# Files that root makes in the checkout go back to the user who called sudo.
give_back = @if [ -n "$$SUDO_UID" ]; then chown -R "$$SUDO_UID:$$SUDO_GID" $(1); fi

# What status and peers show; without git it is (devel).
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
ldflags = -ldflags '-X github.com/mxshield/mxshield/agent/control.built=$(VERSION)'

build: go ## build bin/mxshield-agent and bin/mxshieldctl
	CGO_ENABLED=0 "$(GO)" build -trimpath $(ldflags) -o bin/mxshield-agent ./agent
	CGO_ENABLED=0 "$(GO)" build -trimpath $(ldflags) -o bin/mxshieldctl ./ctl
	$(call give_back,bin)

demo: build ## show it: 200 attackers, one honest sender, a cluster of three real mail hosts, all in private namespaces (root)
	"$(GO)" build -trimpath -o bin/demo ./scripts/demo
	$(call give_back,bin)
	bin/demo

test: build ## run every test (root; as a user those that need it say so and are skipped)
	@test "$$(id -u)" = 0 || echo 'note: not root: tests that need the kernel are skipped; run sudo make test'
	$(gotest) --packages ./... -- $(TESTFLAGS)

# Packages whose tests have long variants, which MXSHIELD_TEST_LONG=1 switches on.
SOAK ?= ./agent/... ./bpf ./gossip/... ./scripts/e2e

soak: build ## the long variants of tests: a hundred kills under load, a 10 GB replay, ... (root)
	MXSHIELD_TEST_LONG=1 $(gotest) --packages "$(SOAK)" -- -p 1 -count 1 -timeout 3h

race: build ## the same under the race detector (needs a C compiler)
	$(gotest) --packages ./... -- -race -p 1 -timeout 1200s

lint: go ## formatting, vet, staticcheck, shell scripts, import directions
	scripts/lint.sh

generate: go ## make the BPF objects and their Go anew (needs clang-19 and llvm-19)
	cd bpf && "$(GO)" generate .
	$(call give_back,bpf)

check-generated: go ## fail if generate would change what is committed
	bpf/check-generated.sh

# Which kernels; all if empty: 5.10,6.1,6.12,7
KERNELS ?=

kernels: go ## the kernel tests on emulated machines with kernels 5.10 to 7 (root, qemu; 15 minutes; logs in bin/kernels)
	@mkdir -p bin
	"$(GO)" run ./scripts/kernels -kernels "$(KERNELS)"
	$(call give_back,bin)

bench: go ## benchmarks, and their ratios as Markdown tables (root; also in bin/bench.md)
	@mkdir -p bin
	"$(GO)" test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 1200s -p 1 ./agent/... ./bpf/... ./gossip/... | "$(GO)" run ./scripts/bench >bin/bench.md
	@cat bin/bench.md
	$(call give_back,bin)
	"$(GO)" run ./scripts/fail2ban

sim: go ## run SIM (10000) random histories of a cluster through the replication
	MXSHIELD_SIM=$(SIM) "$(GO)" test -count 1 -timeout 7200s -run 'TestHistories|TestSimulatorFinds' -v ./gossip/replica

fuzz: go ## run every fuzzer for FUZZTIME (5m) each
	scripts/fuzz.sh $(FUZZTIME)

install: build ## install into PREFIX (/usr/local); starts nothing
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)/etc/mxshield $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 0755 bin/mxshield-agent $(DESTDIR)$(PREFIX)/sbin/mxshield-agent
	install -m 0755 bin/mxshieldctl $(DESTDIR)$(PREFIX)/bin/mxshieldctl
	bin/mxshieldctl completion >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/mxshieldctl
	sed 's|@PREFIX@|$(PREFIX)|g' scripts/mxshield-agent.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/mxshield-agent.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/mxshield-agent.service
	test -e $(DESTDIR)/etc/mxshield/mxshield.yaml || install -m 0644 scripts/mxshield.yaml $(DESTDIR)/etc/mxshield/mxshield.yaml
	@test -n "$(DESTDIR)" || getent group mxshield >/dev/null || groupadd --system mxshield || true
	@echo 'installed; next: systemctl daemon-reload && systemctl enable --now mxshield-agent && mxshieldctl status'

clean: ## remove what build made
	rm -rf bin
