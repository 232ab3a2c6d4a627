#!/bin/sh
# Formatting, vet and other systems: what a change must pass before it is tested.
set -eu
cd "$(dirname "$0")/.."
echo "== gofmt"
bad=$(gofmt -l $(git ls-files '*.go'))
[ -z "$bad" ] || { echo "gofmt would change: $bad" >&2; exit 1; }
echo "== go vet"
go vet ./...
GOOS=linux go vet -tags kernel ./...
echo "== other systems"
for os in darwin windows; do GOOS=$os go build ./...; done
