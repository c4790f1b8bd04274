#!/bin/sh
# Installs what `make test` needs beside Go, on Debian 12 or newer: as root directly, else by sudo, else it prints the
# one line to type. Installs only what is missing.
set -eu
missing=
want() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
want gcc gcc # for -race
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
want openssl openssl
want curl curl
want strace strace
want /usr/sbin/nginx nginx-light # which nginx_test.go of storage/policy/export runs
want keytool openjdk-17-jdk-headless
want javac openjdk-17-jdk-headless
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
[ -n "${missing% }" ] || exit 0
line="apt-get update && apt-get install -y --no-install-recommends $missing"
if [ "$(id -u)" = 0 ]; then
	export DEBIAN_FRONTEND=noninteractive
	sh -c "$line" >&2
elif sudo -n true 2>/dev/null; then
	sudo sh -c "DEBIAN_FRONTEND=noninteractive $line" >&2
else
	echo "The tests need: $missing" >&2
	echo "Install them with:" >&2
	echo "  sudo sh -c '$line'" >&2
	exit 1
fi
