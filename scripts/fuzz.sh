#!/bin/sh
# Runs each fuzz target of the module for the given time, two at a time, one worker each. What a run finds is kept by
# Go's cache; what breaks a target is written to its testdata/fuzz and belongs into the repository.
# An interesting input is shortened in at most 10 steps: Go's default is a minute for each, in which nothing else runs;
# targets with large inputs (pages, identities) got through 20 inputs in 20 s.
set -eu
time=${1:-30s}
export CGO_ENABLED=0
grep -r --include='*_test.go' '^func Fuzz' . |
	sed 's#^\(.*\)/[^/]*_test\.go:func \(Fuzz[A-Za-z0-9_]*\)(.*#\1 \2#' | sort |
	xargs -P 2 -L 1 sh -c 'log="${TMPDIR:-/tmp}/fuzz.$$"
		for try in 1 2 3; do
			go test "$1" -run "^\$" -fuzz "^$2\$" -fuzztime "$0" -fuzzminimizetime 10x -parallel 1 </dev/null >"$log" 2>&1
			status=$?
			# At the end of its time the go command sometimes takes its own deadline for a failure (golang/go#75804, mended in Go 1.27). No input
			# is written then; a target that fails has one, and is not tried again.
			[ $status -ne 0 ] && grep -q "context deadline exceeded" "$log" && ! grep -q "Failing input written" "$log" || break
		done
		[ $status -eq 0 ] && echo "$1 $2: $(grep execs: "$log" | tail -n 1)" || cat "$log"
		rm -f "$log"
		exit $status' "$time"
