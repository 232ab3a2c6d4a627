# A thin list of commands; each can be typed by hand.
GO     ?= go

.PHONY: test unit kernel race check fuzz bench generate

## test: everything that shows the library works: unit tests, then the kernel
## suite in user-mode Linux
test: unit kernel

unit:
	$(GO) test ./...

## kernel: the tests that need a real IPVS kernel, inside user-mode Linux
kernel:
	internal/uml/suite kernel

race:
	$(GO) test -race ./...

## check: what a change must pass before it is tested
check:
	internal/check.sh

## fuzz: each fuzzer for FUZZTIME (default 20s)
fuzz:
	internal/fuzz.sh $(or $(FUZZTIME),20s)

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

generate:
	internal/generate.sh
