#!/usr/bin/env bash
# All that must pass: ruff, the type checker, pytest; in an environment of its own. Needs python3 alone.
#   bash tests/run_all.sh [arguments of pytest]      `-n 0`: one test after another; `-m ''`: the slow ones too
#   TEST_VENV=folder   the environment, made if it is not there (default: .venv-tests)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${TEST_VENV:-.venv-tests}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pick_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.10 or later is needed, 3.11 is best." >&2
    return 1
}

has_headers() { "$venv/bin/python" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null; }

# Takes what the system lacks from Debian's or Ubuntu's packages where that is allowed, and goes on without it.
apt_install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$@"; } >/dev/null 2>&1 ||
            echo "could not install: $*" >&2
    fi
}

# Modules are compiled when they are imported: pip would take a minute and a half for all of them, and most are not.
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }

make_environment() {
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" 2>/dev/null || {
        apt_install "$python-venv"
        "$python" -m venv --clear "$venv"
    }
    # torch first and by itself: it decides between CPU and CUDA, and DeepSpeed asks it when it is built.
    install "torch==$(sed -n 's/^torch.*<=//p' requirements.txt)"
    install --constraint requirements.txt --editable '.[dev,serve]'
}

command -v g++ >/dev/null || apt_install build-essential
command -v chromium >/dev/null || apt_install chromium
python=$(pick_python)
make_environment
has_headers || apt_install "$python-dev" # DeepSpeed compiles its operators on first use

export PATH="$(cd "$venv" && pwd)/bin:$PATH"
# No warm caches: extensions are compiled and data are prepared anew.
export TORCH_EXTENSIONS_DIR="$scratch/extensions" HF_HOME="$scratch/huggingface" TRITON_CACHE_DIR="$scratch/triton"
export OMP_NUM_THREADS=1

failed=0
python -m tests.helpers.operators & # takes the compiler two minutes, and mypy half a minute
ruff check . || failed=1
ruff format --check --quiet . || { echo "ruff format: some files are not formatted" && failed=1; }
mypy || failed=1
wait $! || failed=1
# Two processes, each with files of tests for itself: most tests keep one core busy. In the order of their names: by
# xdist's own order the few long tests of benchmarks/ would come last, and one process would wait for them.
python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder "$@" || failed=1
exit "$failed"
