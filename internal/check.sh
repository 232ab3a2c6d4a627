#!/bin/sh
# Formatting, vet, lint, tidy modules, generated code, other systems: what a
# change must pass before it is tested.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bin
mkdir -p "$bin"

echo "== gofumpt"
(cd internal/tools && GOBIN=$bin go install mvdan.cc/gofumpt)
# shellcheck disable=SC2046 # one argument a file
bad=$("$bin/gofumpt" -l $(git ls-files '*.go' ':!*.pb.go'))
[ -z "$bad" ] || { printf 'gofumpt would change:\n%s\n' "$bad" >&2; exit 1; }

echo "== go vet, also for the tests that need a kernel"
go vet ./...
GOOS=linux go vet -tags kernel ./...

echo "== golangci-lint"
(cd internal/tools/lint && GOBIN=$bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
"$bin/golangci-lint" run --build-tags kernel ./...

echo "== other systems"
for os in darwin windows; do GOOS=$os go build ./...; done

echo "== modules are tidy, nested ones build"
go mod tidy -diff
for mod in $(git ls-files '*/go.mod' ':!internal/tools/*'); do
	(cd "$(dirname "$mod")" && echo "$mod" && go mod tidy -diff && go vet ./...)
done

echo "== generated code"
internal/generate.sh --check
