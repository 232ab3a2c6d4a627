# A thin list of commands; each can be typed by hand.
GO ?= go

.PHONY: test unit kernel whole-way page race check fuzz bench generate

## test: everything that shows that the library works: unit tests, then the
## kernel suite and the whole way, both in user-mode Linux
test: unit kernel whole-way

unit:
	$(GO) test ./...

## kernel: the tests that need a real IPVS kernel, inside user-mode Linux; those
## of iptables' nft variant in a namespace of this host, if its kernel has nft nat
kernel:
	internal/uml/suite kernel
	internal/uml/suite nft

## whole-way: from one HTTP request to packets through IPVS, inside it too
whole-way:
	internal/uml/suite whole-way

## page: the web page, in Debian's Chromium
page:
	cd internal/page && $(GO) test -count=1 ./...

race:
	$(GO) test -race ./...

## check: what a change must pass before it is tested
check:
	internal/check.sh

## fuzz: each fuzzer for FUZZTIME (default 20s)
fuzz:
	internal/fuzz.sh $(or $(FUZZTIME),20s)

## soak: simulate clusters of the store for SOAK (default 10m), and kill a
## process 200 times; prints runs, faults injected and operations checked. Then a
## reader and a slow snapshot that stay a minute under load; three and five real
## processes, killed and paused, elections under load, and servers
## with 50 agents under faults and changes of members, for SOAK each
soak:
	RAFTSTORE_SOAK=$(or $(SOAK),10m) RAFTSTORE_KILLS=200 $(GO) test ./raftstore -run 'TestSimulationSoak|TestKilled|UnderLoad' -count=1 -v -timeout 0
	RAFTSTORE_SOAK=$(or $(SOAK),10m) $(GO) test ./internal/processes -count=1 -v -timeout 0
	CHAOS=$(or $(SOAK),10m) $(GO) test ./transport/agent -run TestChaos -count=1 -v -timeout 0

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

generate:
	internal/generate.sh
