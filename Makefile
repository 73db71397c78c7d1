# `make` lists what it can do. `make test` is what a change must pass.

GO      ?= go
PYTHON  ?= python3
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.linkedVersion=$(VERSION) -X example.com/hangup/internal/reap.Build=$(VERSION)
TOOL    := $(GO) tool -modfile=tools/go.mod

# The rooms whose tests start processes.
PROCESS_ROOMS := ./internal/reap/... ./internal/proc/... ./internal/kind/... ./internal/daemon/... ./worker/... ./e2e/...
STRESS_COUNT  ?= 20
CALLERS       ?= 100000

.DEFAULT_GOAL := help
.PHONY: help demo run build test docs stress patience lint portable bench bench-kill flood rename clean need-go need-git need-python need-race need-strace

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## the story of the product, live, in under 15 s
	bin/hangup demo

run: build ## serve a starter on http://127.0.0.1:8080 (files in build/starter)
	@test -e build/starter/hangup.yaml || bin/hangup init build/starter
	bin/hangup serve --config build/starter/hangup.yaml

build: need-go ## build bin/hangup and bin/hangup-shim
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/hangup ./cmd/hangup
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w $(LDFLAGS)' -o bin/hangup-shim ./cmd/hangup-shim

test: need-go need-git need-python need-race need-strace ## vet, the rooms, the Python SDK, then all Go tests with -race
	$(GO) vet ./...
	$(GO) test .
	cd python && $(PYTHON) -m unittest test_hangup
	$(GO) test -race -p 1 -timeout 60m ./... # one after the other: some take all of the machine

stress: need-go need-python need-race need-strace ## the tests that start processes, STRESS_COUNT=20 times; then once with all kills and faults
	@for n in $$(seq $(STRESS_COUNT)); do \
		echo "repetition $$n of $(STRESS_COUNT)"; \
		HANGUP_TEST_CANCELS=1000 $(GO) test -race -count=1 -timeout 60m $(PROCESS_ROOMS) || \
			{ echo "make: repetition $$n of $(STRESS_COUNT) has failed" >&2; exit 1; }; \
	done
	HANGUP_TEST_FAULTS=0 $(GO) test -race -count=1 -timeout 120m ./internal/proc -run 'TestFaults$$' -v
	HANGUP_TEST_KILLS=200 HANGUP_TEST_STRAYS=10000 $(GO) test -race -count=1 -timeout 60m ./e2e -run 'TestKillAnyone|TestStrays' -v

lint: need-go ## gofumpt, vet and staticcheck, at the versions of tools/go.mod
	@unformatted=$$($(TOOL) gofumpt -l .) && if [ -n "$$unformatted" ]; then \
		echo "not as gofumpt formats it (run: $(TOOL) gofumpt -w .):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(TOOL) staticcheck ./...

portable: need-go need-python need-race ## what macOS and other Unix get: it builds, passes vet, and runs here with the build tag portable
	for os in darwin freebsd; do GOOS=$$os $(GO) build ./... && GOOS=$$os $(GO) vet ./... || exit 1; done
	$(GO) vet -tags portable ./...
	$(GO) test -tags portable -race -timeout 5m ./internal/proc
	$(GO) test -tags portable -timeout 5m ./e2e -run 'TestPortable|TestCall$$|TestSecondSignal$$'

patience: build need-python ## CALLERS=100000 callers who stay, over every transport: none is cancelled
	env HANGUP_TEST_CALLERS=$(CALLERS) HANGUP_TEST_BUILT_hangup=$(CURDIR)/bin/hangup HANGUP_TEST_BUILT_hangup-shim=$(CURDIR)/bin/hangup-shim \
		$(GO) test -count=1 -timeout 90m ./e2e -run Patience -v

docs: need-go ## write what is made of the code: docs/config.md, docs/hangup.schema.json, docs/states.md
	$(GO) test -count=1 ./internal/config -run Published -update
	$(GO) test -count=1 ./internal/pool -run StatesDoc -update

bench: build ## what the hop through hangup costs beside a bare net/http echo
	$(GO) run ./bench/hop

bench-kill: build ## what a kill takes beside a bare cgroup.kill and a bare kill loop, and what a shim costs
	$(GO) run -ldflags '$(LDFLAGS)' ./bench/kill

flood: build ## what callers notice while others attack: slow headers, resets, hang-ups (11 minutes; FLOOD=-short)
	$(GO) run ./bench/flood $(FLOOD)

rename: need-go need-git ## move to another module path: make rename MODULE=github.com/you/hangup
	@test -n "$(MODULE)" || { echo "make: say where to: make rename MODULE=github.com/you/hangup" >&2; exit 2; }
	@old=$$($(GO) list -m) && git grep -lF "$$old" | xargs sed -i "s#$$old#$(MODULE)#g" && \
		echo "$$old is $(MODULE) now; look with: git diff --stat"

clean: ## remove what build and run made
	rm -rf bin build

need-go:
	@command -v $(GO) >/dev/null || { echo "make: cannot find $(GO): install Go 1.26 or later" >&2; exit 1; }

need-git:
	@command -v git >/dev/null || { echo "make: cannot find git: apt-get install git" >&2; exit 1; }

need-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
		{ echo "make: $(PYTHON) must be Python 3.9 or later: apt-get install python3" >&2; exit 1; }

need-strace:
	@command -v strace >/dev/null || { echo "make: cannot find strace: apt-get install strace" >&2; exit 1; }

need-race:
	@test "$$($(GO) env CGO_ENABLED)" = 1 && cc=$$($(GO) env CC) && command -v $${cc%% *} >/dev/null || \
		{ echo "make: the race detector needs cgo and a C compiler: apt-get install gcc libc6-dev, and leave CGO_ENABLED unset" >&2; exit 1; }
