#!/bin/sh
# Says what is missing to build Countersign, and how to get it.
set -eu
need="Go 1.26 or newer is needed. Get it from https://go.dev/dl/ (unpack to /usr/local/go, put /usr/local/go/bin on the PATH)"
command -v go >/dev/null 2>&1 || { echo "$need." >&2; exit 1; }
have=$(go env GOVERSION)
minor=$(printf '%s\n' "$have" | sed -n 's/^go1\.\([0-9][0-9]*\).*/\1/p')
[ "${minor:-0}" -ge 26 ] || { echo "$need; this is $have." >&2; exit 1; }
