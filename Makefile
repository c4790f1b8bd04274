# Countersign. `make help` lists what there is.
SHELL := /bin/sh
export CGO_ENABLED ?= 0
# Else each process with -race sleeps for a second at its end, in which it waits for races of what still runs.
export GORACE ?= atexit_sleep_ms=10
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 30s
PKGS ?= ./...

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: go
go:
	@sh scripts/need-go.sh

.PHONY: build
build: go ## bin/countersign, static, pure Go
	@go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/countersign ./cmd/countersign

.PHONY: build-hsm
build-hsm: go ## bin/countersign-hsm, with cgo: it can also have its keys in a token behind a PKCS#11 module
	@CGO_ENABLED=1 go build -tags hsm -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/countersign-hsm ./cmd/countersign

.PHONY: run
run: build ## build, then run the main job on loopback: a whole chain, in under 30 s
	@bin/countersign demo
	@printf '\nTo start the daemon for yourself:\n\n  bin/countersign dev\n\n'

.PHONY: demo-chain
demo-chain: build ## a user's request through Java, Go and Node.js, with what happens to it in earnest; needs java, node
	@go run ./examples/chain -countersign bin/countersign -source examples/chain

.PHONY: test
test: go ## everything that decides green: lint, all tests under -race, each fuzz target for 10 s
	@sh scripts/test-deps.sh
	@$(MAKE) --no-print-directory lint
	CGO_ENABLED=1 go test -race -shuffle=on -p 3 -timeout 20m $(PKGS) # three at a time: two of the packages mostly wait
	@sh scripts/fuzz.sh 10s

.PHONY: lint
lint: go tools ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-clean:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	bin/staticcheck ./...
	CGO_ENABLED=1 go vet -tags hsm ./storage/keyring # the one package that the tag changes
	CGO_ENABLED=1 bin/staticcheck -tags hsm ./storage/keyring

.PHONY: tools
tools: go
	@GOBIN="$(CURDIR)/bin" go -C scripts/tools install tool

.PHONY: vuln
vuln: go tools ## govulncheck, where its database can be reached
	@sh scripts/vuln.sh

.PHONY: fuzz
fuzz: go ## each fuzz target for FUZZTIME (30s); then keep what was found in testdata/fuzz
	@sh scripts/fuzz.sh $(FUZZTIME)
	@sh scripts/corpus.sh

.PHONY: bench
bench: go ## Go benchmarks
	go test -run '^$$' -bench . -benchmem $(PKGS)

.PHONY: check
check: build test vuln ## build, test, vuln
