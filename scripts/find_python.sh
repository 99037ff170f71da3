#!/usr/bin/env bash
# Print "PATH VERSION" of the Python to use: $1 where given, else the first of python3.11, python3.12, python3 that is a 3.11 or
# 3.12. A candidate counts only if it runs: version managers leave commands on PATH that do not.
set -euo pipefail

SUPPORTED='3\.1[12]'

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

paths_of() {
    type -ap "$1" || true
    # pyenv installs without activating
    find "${PYENV_ROOT:-$HOME/.pyenv}/versions" -maxdepth 3 -path "*/bin/${1##*/}" 2>/dev/null | sort -Vr || true
}

for name in ${1:-python3.11 python3.12 python3}; do
    while read -r path; do
        version=$(version_of "$path") || continue
        if [[ $version =~ ^$SUPPORTED$ ]]; then
            echo "$path $version"
            exit 0
        fi
        [[ -z ${1:-} ]] || echo "error: $path is Python $version; 3.11 and 3.12 are supported" >&2
    done < <(paths_of "$name")
done
echo "error: no Python 3.11 or 3.12 that runs${1:+ under the name $1}; install one, or name it: make ... PYTHON=/path/to/python3.12" >&2
exit 1
