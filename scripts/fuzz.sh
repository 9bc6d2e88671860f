#!/usr/bin/env bash
# Runs every fuzz target for a while. Usage: fuzz.sh [TIME [PACKAGE...]]
set -u
cd "$(dirname "$0")/.." || exit 1
time=${1:-10s}
shift $(($# > 0 ? 1 : 0))
passed=0 failed=0
for pkg in $(go list "${@:-./...}"); do
    for target in $(go test -list '^Fuzz' "$pkg" 2>/dev/null | grep '^Fuzz'); do
        name="${pkg#*/chasquid/} $target"
        if out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg" 2>&1); then
            passed=$((passed + 1))
            echo "ok    $name: $(grep -o 'execs: [0-9]*' <<<"$out" | tail -n 1)"
        else
            failed=$((failed + 1))
            echo "FAIL  $name"
            tail -n 40 <<<"$out"
        fi
    done
done
echo "fuzz targets: $passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
