#!/usr/bin/env bash
# Installs the Debian packages that tests with real programs use (test/packages.txt), or says what is missing.
# Usage: packages.sh [--strict]: with --strict, missing packages are an error.
set -u
cd "$(dirname "$0")/.." || exit 1
strict=${1:-}

missing() {
    local p
    sed 's/#.*//' test/packages.txt | tr -s ' \n' '\n' | while read -r p; do
        [ -z "$p" ] || dpkg-query -W -f '${Status}\n' "$p" 2>/dev/null | grep -q ' installed$' || echo "$p"
    done
}

tell() {
    echo "Tests with real programs need: $*"
    [ "$strict" != --strict ] || exit 1
    echo "Those tests are skipped and say so; everything else runs."
    exit 0
}

command -v dpkg-query >/dev/null || tell "the Debian packages in test/packages.txt (this is not a Debian system)"
want=$(missing | paste -sd ' ')
[ -n "$want" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    tell "$want (as root: apt-get install $want)"
fi
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
echo "Installing for the tests: $want"
export DEBIAN_FRONTEND=noninteractive
# Services of these packages are not wanted, only their programs.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
    trap 'rm -f "$log" $policy' EXIT
fi
# shellcheck disable=SC2086
if ! { apt-get -q update && apt-get -q -y --no-install-recommends install $want; } >"$log" 2>&1 </dev/null; then
    tail -n 15 "$log"
    tell "$want (apt-get could not install them)"
fi
