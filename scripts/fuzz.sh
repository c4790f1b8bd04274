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
	xargs -P 2 -L 1 sh -c 'go test "$1" -run "^\$" -fuzz "^$2\$" -fuzztime "$0" -fuzzminimizetime 10x -parallel 1 </dev/null >"${TMPDIR:-/tmp}/fuzz.$$" 2>&1
		status=$?
		[ $status -eq 0 ] && echo "$1 $2: $(grep execs: "${TMPDIR:-/tmp}/fuzz.$$" | tail -n 1)" || cat "${TMPDIR:-/tmp}/fuzz.$$"
		rm -f "${TMPDIR:-/tmp}/fuzz.$$"
		exit $status' "$time"
