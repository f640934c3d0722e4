#!/usr/bin/env bash
# usage: tests/tools/readme_matches.sh [DIR]
#
# Checks that README.md in DIR (default: this repository) quotes what is tested. A code block after a line
# <!-- PATH --> must be the whole file PATH, after <!-- from PATH --> lines that stand in it one after the other.
# Exits 0: all do, and there is at least one, 1: one does not, 2: usage.
set -euo pipefail

cd "${1:-$(dirname "$0")/../..}"
if [ $# -gt 1 ] || [ ! -f README.md ]; then
    sed -n '2,3s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# Each marked block into a file N.block, its mark into N.mark.
awk -v tmp="$tmp" '
    /^<!-- .* -->$/ { mark = $0; sub(/^<!-- /, "", mark); sub(/ -->$/, "", mark); next }
    /^```/ && inside { inside = 0; close(block); next }
    /^```/ && mark != "" {
        n++; inside = 1; block = tmp "/" n ".block"
        printf "%s\n", mark > (tmp "/" n ".mark"); printf "" > block; mark = ""; next
    }
    inside { print > block; next }
    NF { mark = "" }
' README.md

bad=0
n=0
for block in "$tmp"/*.block; do
    [ -e "$block" ] || break
    n=$((n + 1))
    mark=$(cat "${block%.block}.mark")
    file=${mark#from }
    if [ ! -f "$file" ]; then
        echo "README.md quotes $file, which is not there"
        bad=1
    elif [ "$mark" = "$file" ]; then
        diff -u "$file" "$block" || bad=1
    elif ! BLOCK=$(cat "$block") perl -0777 -ne 'exit !/^\Q$ENV{BLOCK}\E$/m' "$file"; then
        echo "README.md quotes $file, but these lines are not in it:"
        cat "$block"
        bad=1
    fi
done
if [ "$n" -eq 0 ]; then
    echo 'README.md quotes no file'
    bad=1
fi
exit $bad
