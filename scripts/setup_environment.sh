#!/usr/bin/env bash
# usage: setup_environment.sh PYTHON VERSION EXTRA
# Make .venv/pythonVERSION with the package, editable, and its EXTRA (quickstart, or dev, which gets eval too). Does nothing when
# that is already so.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1 version=$2 extra=$3
venv=.venv/python$version
constraints=constraints/py$version.txt
fingerprint=$(cat setup.py pyproject.toml "$constraints" | sha256sum)

for done_extra in "$extra" dev; do # dev holds every other extra that is set up here
    [[ $(cat "$venv/.installed-$done_extra" 2>/dev/null) != "$fingerprint" ]] || exit 0
done

if [[ ! -x $venv/bin/python ]]; then
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian and Ubuntu keep it in a package of its own
        [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null && apt-get install -qq -y "python$version-venv" >/dev/null ||
            { echo "error: $python cannot make virtual environments; install python$version-venv" >&2; exit 1; }
    fi
    echo "making $venv"
    "$python" -m venv "$venv"
fi

pip() { "$venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check --no-input "$@"; } # errors still show
echo "installing into $venv (minutes the first time; set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for a small torch)"
pip install --upgrade pip        # an old pip needs twenty minutes to resolve what follows
pip install torch==2.13.0        # alone: the largest part, kept when the rest fails
pip install --constraint "$constraints" --editable ".[$extra]"
if [[ $extra == dev ]]; then # in a step of its own: without the constraints, one resolve of both tries torch after torch
    pip install --constraint "$constraints" --editable ".[eval]"
fi
echo "$fingerprint" >"$venv/.installed-$extra"
