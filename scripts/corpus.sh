#!/bin/sh
# Copies into testdata/fuzz what earlier runs of the fuzz targets found worth keeping: of each target at most the 40
# smallest inputs of up to 8 KiB, which every `go test` then runs as seeds.
set -eu
cache=$(go env GOCACHE)/fuzz/$(go list -m)
find . -path ./scripts -prune -o -name '*_test.go' -print | xargs grep -l '^func Fuzz' | while read -r file; do
	dir=$(dirname "$file")
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while read -r target; do
		[ -d "$cache/$dir/$target" ] || continue
		mkdir -p "$dir/testdata/fuzz/$target"
		find "$cache/$dir/$target" -type f -size -17 -printf '%s %p\n' | sort -n | head -40 | while read -r _ input; do
			cp "$input" "$dir/testdata/fuzz/$target/"
		done
	done
done
