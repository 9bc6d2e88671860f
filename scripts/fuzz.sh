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
        out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg" 2>&1)
        rc=$?
        # The Go tool reports its own deadline as a failure when a worker is busy at that moment: no input is at fault, so it runs again.
        if [ $rc != 0 ] && grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input' <<<"$out"; then
            out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg" 2>&1)
            rc=$?
        fi
        if [ $rc = 0 ]; then
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
