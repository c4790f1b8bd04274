#!/bin/sh
# Installs what `make test` needs beside Go, on Debian 12 or newer: as root directly, else by sudo, else it prints the
# one line to type. Installs only what is missing. Then the libraries for JavaScript that scripts/verifiers pins, by npm.
set -eu
missing=
want() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
want gcc gcc # for -race
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
want openssl openssl
want curl curl
want strace strace
want softhsm2-util softhsm2 # a token behind a PKCS#11 module, for hsm_test.go of cmd/countersign
want /usr/sbin/nginx nginx-light # which nginx_test.go of storage/policy/export runs
want keytool openjdk-17-jdk-headless
want javac openjdk-17-jdk-headless
want node nodejs
want npm npm
[ -e /usr/sbin/apache2 ] || missing="$missing apache2-bin"
[ -e /usr/lib/apache2/modules/mod_oauth2.so ] || missing="$missing libapache2-mod-oauth2"
/usr/bin/python3 -c 'import authlib' 2>/dev/null || missing="$missing python3-authlib"
/usr/bin/python3 -c 'import requests' 2>/dev/null || missing="$missing python3-requests"
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
verifiers() { # again only when the pinned versions changed
	cd "$(dirname "$0")/verifiers"
	cmp -s package-lock.json node_modules/.installed && exit 0
	npm ci --silent >&2
	cp package-lock.json node_modules/.installed
	exit 0
}
[ -n "${missing% }" ] || verifiers
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
verifiers
