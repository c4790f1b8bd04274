#!/bin/sh
# Runs each fuzz target of the module for the given time, one worker each, two for each processor beside each other. What a run
# finds is kept by Go's cache; what breaks a target is written to its testdata/fuzz and belongs into the repository.
# Each package is built once, where `go test -fuzz` links it again for each target; the targets begin when all are built, so
# that no build takes their time.
# An interesting input is shortened in at most 10 steps: Go's default is a minute for each, in which nothing else runs;
# targets with large inputs (pages, identities) got through 20 inputs in 20 s.
set -eu
time=${1:-30s}
export CGO_ENABLED=0
bins=$(mktemp -d)
trap 'rm -rf "$bins"' EXIT
cache=$(go env GOCACHE)/fuzz/$(go list -m)
processors=$(getconf _NPROCESSORS_ONLN)
targets=$(grep -r --include='*_test.go' '^func Fuzz' . | sed 's#^\(.*\)/[^/]*_test\.go:func \(Fuzz[A-Za-z0-9_]*\)(.*#\1 \2#' | sort)
echo "$targets" | cut -d ' ' -f 1 | sort -u |
	xargs -P "$processors" -I '{}' go test -c -fuzz . -ldflags '-s -w' -o "$bins/{}/fuzz.test" '{}'
echo "$targets" | xargs -P $((2 * processors)) -L 1 sh -c '
		bin="$0/$3/fuzz.test" cache="$1/$3" log="$0/$3/$4.log"
		cd "$3" || exit 1
		time="$2"
		for try in 1 2 3; do
			"$bin" -test.run "^\$" -test.fuzz "^$4\$" -test.fuzztime "$time" -test.fuzzminimizetime 10x -test.parallel 1 \
				-test.fuzzcachedir "$cache" -test.paniconexit0 </dev/null >"$log" 2>&1
			status=$?
			# At the end of its time Go sometimes takes its own deadline for a failure (golang/go#75804, mended in Go 1.27). No input is
			# written then; a target that fails has one, and is not tried again.
			[ $status -ne 0 ] && grep -q "context deadline exceeded" "$log" && ! grep -q "Failing input written" "$log" && continue
			# What earlier runs kept is run first; a target that needed all its time for that gets 1000 inputs in all, however long they take.
			[ $status -eq 0 ] && ! grep -q execs: "$log" || break
			time=1000x
		done
		[ $status -eq 0 ] && echo "$3 $4: $(grep execs: "$log" | tail -n 1)" || cat "$log"
		exit $status' "$bins" "$cache" "$time"
