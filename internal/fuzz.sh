#!/bin/sh
# Runs every fuzzer of the module for the time given, one after the other.
set -eu
cd "$(dirname "$0")/.."
time=${1:-20s}
grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
	for f in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | awk '{print $2}'); do
		echo "== $dir $f"
		go test "$dir" -run '^$' -fuzz "^$f\$" -fuzztime "$time"
	done
done
