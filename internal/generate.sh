#!/bin/sh
# Regenerates the Go code of every .proto file, with the plugins that
# internal/tools pins and the protoc that Debian ships. With --check it changes
# nothing, and fails where what is committed differs from what would be made.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
want=3.21.12
check=
case "${1:-}" in
"") ;;
--check) check=yes ;;
*)
	echo "usage: $0 [--check]" >&2
	exit 2
	;;
esac

found=$(protoc --version 2>/dev/null | cut -d' ' -f2) || found=
if [ "$found" != "$want" ]; then
	echo "protoc $want is needed to reproduce the generated code, found: ${found:-none}" >&2
	echo "on Debian: apt-get install protobuf-compiler" >&2
	exit 1
fi
bin=$root/.cache/bin
mkdir -p "$bin"
(cd internal/tools && GOFLAGS=-mod=readonly GOBIN=$bin go install \
	google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc)

out=$root
if [ -n "$check" ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi
protos=$(find . -name '*.proto' -not -path './.*' -not -path '*/testdata/*' | sed 's|^\./||' | LC_ALL=C sort)
# shellcheck disable=SC2086 # one argument a file
PATH=$bin:$PATH protoc -I. --go_out="$out" --go_opt=paths=source_relative \
	--go-grpc_out="$out" --go-grpc_opt=paths=source_relative $protos

if [ -n "$check" ]; then
	bad=
	# What protoc makes is committed, and what is committed protoc makes.
	for f in $( (cd "$out" && find . -name '*.pb.go'; cd "$root" && find . -name '*.pb.go' -not -path './.*') | LC_ALL=C sort -u); do
		cmp -s "$out/$f" "$root/$f" || { echo "$f is not what its .proto gives" >&2; bad=yes; }
	done
	[ -z "$bad" ] || { echo "run internal/generate.sh and commit the result" >&2; exit 1; }
fi
