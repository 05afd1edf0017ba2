#!/usr/bin/env bash
# Makes a virtual environment with this package in it:   bash environment.sh FOLDER
# Needs Python 3.10 or later (3.11 is best), and g++ with Python's headers: DeepSpeed compiles its operators.
set -euo pipefail
venv=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
    echo "$*" >&2
    exit 1
}

pick_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.10 or later is needed, 3.11 is best."
}

has_headers() {
    "$venv/bin/python" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null
}

# From Debian's or Ubuntu's packages, where root runs this; elsewhere the checks below say what is missing.
apt_install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$@"; } >/dev/null 2>&1 || true
    fi
}

python=$(pick_python)
if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv" 2>/dev/null || apt_install "$python-venv"
    [ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv" || fail "Install Python's venv: apt install $python-venv"
fi
command -v g++ >/dev/null || apt_install build-essential
command -v g++ >/dev/null || fail "g++ is missing: apt install build-essential"
has_headers || apt_install "$python-dev"
has_headers || fail "Python's headers are missing: apt install $python-dev"

# Modules are compiled when they are imported: pip would take a minute and a half for all of them, and most are not.
install() { "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile "$@"; }
# torch first and by itself: it decides between CPU and CUDA, and DeepSpeed asks it when it is built.
install "torch==$(sed -n 's/^torch.*<=//p' "$root/requirements.txt")"
install --constraint "$root/requirements.txt" --editable "$root"
