# SPDX-License-Identifier: Apache-2.0
# `make` or `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
BIN      := $(CURDIR)/bin
CACHE    := $(CURDIR)/.cache
TOOLS    := $(CACHE)/tools
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/hawser-mesh/hawser/internal/version.Version=$(VERSION)
PROGRAMS := hawser hawser-agent hawser-apiserver hawser-cni
PROTOS   := $(wildcard api/*/v1/*.proto)
GATEWAY  := github.com/grpc-ecosystem/grpc-gateway/v2
GATEWAY_VERSION = $(shell $(GO) list -m -f "{{.Version}}" $(GATEWAY))
CFILES   := $(wildcard bpf/*.c bpf/*.h bpf/lib/*.h test/perf/bpf/*.c)
LAB      ?= lab

##@ First steps

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: lab
lab: deps-run build ## Start a lab of two clusters, peer them, show a service of both (root; LAB=name)
	@$(BIN)/hawser lab up --name $(LAB) --demo

.PHONY: lab-down
lab-down: build ## Remove the lab (LAB=name) and prove that nothing is left
	@$(BIN)/hawser lab down --name $(LAB)

##@ Build

.PHONY: build
build: ## Build the programs into bin/
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))

.PHONY: generate
generate: deps-generate generate-proto generate-bpf generate-docs ## Regenerate everything that is generated and committed

.PHONY: generate-proto
generate-proto:
	@mkdir -p $(TOOLS)
	@$(GO) build -o $(TOOLS)/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	@PATH=$(TOOLS):$$PATH protoc --go_out=. --go-grpc_out=. \
	  --go_opt=module=github.com/hawser-mesh/hawser --go-grpc_opt=module=github.com/hawser-mesh/hawser $(PROTOS)
	@GOBIN=$(TOOLS) $(GO) install $(GATEWAY)/protoc-gen-grpc-gateway@$(GATEWAY_VERSION) $(GATEWAY)/protoc-gen-openapiv2@$(GATEWAY_VERSION)
	@PATH=$(TOOLS):$$PATH protoc --grpc-gateway_out=. --openapiv2_out=api/openapi \
	  --grpc-gateway_opt=module=github.com/hawser-mesh/hawser,grpc_api_configuration=api/openapi/rest.yaml \
	  --openapiv2_opt=grpc_api_configuration=api/openapi/rest.yaml,openapi_configuration=api/openapi/info.yaml \
	  --openapiv2_opt=allow_merge=true,merge_file_name=hawser \
	  api/hawser/v1/mesh.proto api/hawser/v1/node.proto

.PHONY: generate-bpf
generate-bpf:
	@$(GO) generate ./datapath/objects

.PHONY: generate-docs
generate-docs:
	@$(GO) run ./internal/gendocs docs/reference

##@ Test

.PHONY: test
test: deps-run test-unit test-conformance test-bpf test-e2e ## Pass all tests: unit, eBPF, e2e (root for the last two)

# Packages whose tests need no root; the others skip themselves without it.
.PHONY: test-unit
test-unit: ## Unit and component tests (loopback only)
	@$(GO) test -timeout 30m $$($(GO) list ./... | grep --line-buffered -v -e /test/e2e -e /test/bpf -e /test/perf)

.PHONY: test-conformance
test-conformance: ## NetworkPolicy beside other readings of it, the keyspace with etcdctl (modules of their own)
	@$(GO) -C test/conformance test ./...
	@$(GO) -C test/etcdctl test ./...

# What stands on etcd, on the other ways to run one: three members, a process of its own. Tests mostly wait for
# elections: more of them at a time than there are CPUs.
.PHONY: test-etcd
test-etcd: ## Stores, identities and federation on three members and on an external etcd
	@for k in embedded-1 embedded-3 external; do echo "on $$k:"; HAWSER_TEST_ETCD=$$k $(GO) test -count=1 -p 2 -parallel 6 -timeout 10m \
	  ./kvstore/store ./kvstore/inspect ./identity/... ./clustermesh/federation ./clustermesh/election; done

.PHONY: test-bpf
test-bpf: ## eBPF programs through BPF_PROG_TEST_RUN (root)
	@$(call root_or_skip,the eBPF tests load programs into the kernel,$(GO) test -timeout 30m ./test/bpf/...)

.PHONY: test-e2e
test-e2e: build ## Scripts against a lab of real processes (root)
	@$(call root_or_skip,the e2e tests make network namespaces,HAWSER_BIN=$(BIN) $(GO) test -count=1 -timeout 90m -v ./test/e2e/... | grep --line-buffered -v -e '^=== ' -e '^ *--- PASS' -e '^PASS$$')

.PHONY: test-e2e-shared
test-e2e-shared: build ## The same scripts with the clusters of every lab on one etcd (root)
	@$(call root_or_skip,the e2e tests make network namespaces,HAWSER_E2E_SHARED_ETCD=1 HAWSER_BIN=$(BIN) $(GO) test -count=1 -timeout 90m -v ./test/e2e/... | grep --line-buffered -v -e '^=== ' -e '^ *--- PASS' -e '^PASS$$')

.PHONY: test-e2e-netdev
test-e2e-netdev: build ## The same scripts with the tunnel's headers made by the kernel's VXLAN device (root)
	@$(call root_or_skip,the e2e tests make network namespaces,HAWSER_E2E_TUNNEL=netdev HAWSER_BIN=$(BIN) $(GO) test -count=1 -timeout 90m -v ./test/e2e/... | grep --line-buffered -v -e '^=== ' -e '^ *--- PASS' -e '^PASS$$')

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (10s), and FUZZTIMES (10) times the packets of test-bpf's (root)
	@for f in $$(grep -rl '^func Fuzz' --include='*_test.go' .); do d=$$(dirname $$f); \
	  for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\).*/\1/p' $$f); do \
	    echo "$$d $$t"; $(GO) test -run='^$$' -fuzz="^$$t$$" -fuzztime=$${FUZZTIME:-10s} $$d; done; done
	@$(call root_or_skip,the fuzzing of packets loads programs into the kernel,HAWSER_FUZZ_TIMES=$${FUZZTIMES:-10} $(GO) test -count=1 -timeout 60m -run '^TestFuzz' -v ./test/bpf)

.PHONY: bench
bench: build deps-bench ## Performance, side by side, JSON kept under test/perf/results (root)
	@$(call root_or_skip,the benchmarks make network namespaces,$(GO) test -count=1 -timeout 60m -run '^TestPerf' -v ./test/perf/... -args -perf)

.PHONY: bench-mesh bench-outage bench-datapath
ROUNDS ?= 3
BENCH_RECORD = $(call root_or_skip,the benchmarks make network namespaces,nice -n -15 $(GO) test -count=1 -timeout 60m -v ./test/perf -run '$(1)' -args -perf -record -rounds $(ROUNDS))
bench-mesh: build ## Record federation and identities (root; about 12 minutes; ROUNDS=3); then the table of docs/guide/performance.md
	@$(call BENCH_RECORD,^TestPerf(FederationSync|FederationSteady|FederationAgent|FederationRestart|FederationWide|Identities)$$)
	@$(GO) test -count=1 ./test/perf -run '^TestTable$$' -args -write-table
bench-outage: build ## Record the reconnect after an outage of 330 s (root)
	@$(call BENCH_RECORD,^TestPerfFederationOutage$$)
	@$(GO) test -count=1 ./test/perf -run '^TestTable$$' -args -write-table
bench-datapath: build deps-bench ## Record the datapath, policy and starts (root; about 12 minutes; ROUNDS=3); then the tables
	@$(call BENCH_RECORD,^TestPerf(HotPath|Programs|Connect|Paths|Services|CNI|Start|PolicyEngine|PolicyKernel)$$)
	@$(GO) test -count=1 ./test/perf -run '^TestTable$$' -args -write-table

##@ Check

.PHONY: verify
verify: deps-generate ## Generated code, formatting, linters, import layers
	@echo "verify: generated code" && ./internal/tools/verify-generated
	@echo "verify: gofmt" && test -z "$$(git ls-files '*.go' | grep --line-buffered -v -e '\.pb\.go$$' -e '_bpfe[lb]\.go$$' | xargs gofmt -l | tee /dev/stderr)"
	@echo "verify: clang-format" && clang-format-19 --dry-run -Werror $(CFILES)
	@echo "verify: measured programs and their page" && clang-19 -target bpfel -mcpu=v3 -Wall -Wextra -Werror -fsyntax-only test/perf/bpf/measured.c \
	  && $(GO) test -count=1 -run '^TestTable$$' ./test/perf
	@echo "verify: go mod tidy" && $(GO) mod tidy -diff
	@echo "verify: import layers" && $(GO) test -count=1 ./internal/layers
	@echo "verify: golangci-lint" && mkdir -p $(TOOLS) \
	  && $(GO) -C internal/tools build -o $(TOOLS)/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint \
	  && $(TOOLS)/golangci-lint run ./...

.PHONY: fmt
fmt: ## Format Go and C
	@git ls-files '*.go' | grep --line-buffered -v -e '\.pb\.go$$' -e '_bpfe[lb]\.go$$' | xargs gofmt -w
	@clang-format-19 -i $(CFILES)

##@ Housekeeping

.PHONY: clean
clean: ## Remove what was built
	@rm -rf $(BIN) $(CACHE)

# What running and testing need from the system, installed when it is missing.
.PHONY: deps-run
deps-run:
	@./internal/tools/ensure curl=curl ip=iproute2 ping=iputils-ping

# What measuring needs beside it: the compiler for programs that are measured, and
# what Hawser is compared with.
.PHONY: deps-bench
deps-bench: deps-run deps-generate
	@./internal/tools/ensure nft=nftables iptables-restore=iptables

# What regenerating needs.
.PHONY: deps-generate
deps-generate:
	@./internal/tools/ensure clang-19=clang-19 llvm-strip-19=llvm-19 clang-format-19=clang-format-19 protoc=protobuf-compiler /usr/include/bpf/bpf_helpers.h=libbpf-dev

# $(call root_or_skip,why,command)
define root_or_skip
if [ "$$(id -u)" = 0 ]; then $(2); else echo "SKIPPED $@: $(1), which needs root (run: sudo make $@)"; fi
endef
