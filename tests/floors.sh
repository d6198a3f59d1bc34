#!/usr/bin/env bash
# The suite at both ends of what pyproject.toml allows, each in an environment of its own, deleted afterwards: the oldest
# Python with the lowest version of all that it names, and the newest Python that torch serves with the newest of all.
# An environment takes up to 7 GB in the temporary folder, and where pip's downloads are not cached, 3 GB are downloaded.
#
#   tests/floors.sh [arguments of pytest]
#   PYTHONS="python3.11 /opt/python/bin/python3.14" tests/floors.sh    the interpreters, instead of those on the path;
#                                                   the oldest of them has the lowest versions, the newest has the newest
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> "$folder/error"; }
lowest=$(sed -n 's/^requires-python = ">=\([0-9.]*\)".*/\1/p' pyproject.toml)
candidates=${PYTHONS:-$(for minor in $(seq "${lowest#3.}" 30); do echo "python3.$minor"; done)}
pythons=()  # those that run, from the oldest to the newest
while read -r _ python; do pythons+=("$python"); done < <(
    for python in $candidates; do
        if number=$(version "$python"); then echo "$number $python"; else
            [ -z "${PYTHONS:-}" ] || echo "$python does not run: $(cat "$folder/error")" >&2
        fi
    done | sort -V
)
[ ${#pythons[@]} -gt 0 ] || { echo "no Python from $lowest on is on the path; name some in PYTHONS" >&2; exit 2; }

"${pythons[0]}" -m venv "$folder/uv"
"$folder/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv
uv() { UV_CACHE_DIR="${UV_CACHE_DIR:-$folder/cache}" "$folder/uv/bin/uv" "$@"; }

served() {  # whether torch and torchvision have wheels for Python $1
    printf 'torch\ntorchvision\n' | uv pip compile --quiet --only-binary :all: --python-version "$1" - > "$folder/served" 2>&1
}
newest=$lowest
for minor in $(seq "${lowest#3.}" 30); do
    served "3.$minor" || break
    newest=3.$minor
done

failed=0
missed=()
suite() {  # in words, Python, resolution, arguments of pytest
    local words=$1 python=$2 resolution=$3
    shift 3
    echo "== $words: Python $("$python" -c 'import platform; print(platform.python_version())')"
    uv venv --quiet --clear --python "$python" "$folder/venv"
    uv pip install --quiet --python "$folder/venv" --resolution "$resolution" -r pyproject.toml --group dev
    uv pip install --quiet --python "$folder/venv" --no-deps --editable .
    uv pip freeze --python "$folder/venv" | grep -E '^(torch|torchvision|lightning|numpy|scipy|pillow)==' | xargs echo
    "$folder/venv/bin/python" -m pytest "$@" || { failed=1; echo "failed: $words"; }
    rm -rf "$folder/venv"
}

oldest=${pythons[0]} latest=
[ "$(version "$oldest")" = "$lowest" ] || missed+=("Python $lowest, the oldest that pyproject.toml allows")
suite "lowest versions" "$oldest" lowest-direct "$@"
for python in "${pythons[@]}"; do
    if served "$(version "$python")"; then latest=$python; fi
done
if [ -z "$latest" ] || [ "$(version "$latest")" != "$newest" ]; then
    missed+=("Python $newest, the newest that torch serves")
fi
[ -z "$latest" ] || suite "newest versions" "$latest" highest "$@"
for what in ${missed[@]+"${missed[@]}"}; do
    echo "not run: $what. Install it ('uv python install', pyenv, or your system's packages) and put it on the path or in PYTHONS."
done
exit $failed
