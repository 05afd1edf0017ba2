#!/usr/bin/env bash
# What a GPU must show, on one GPU, in under ten minutes: the tests marked `gpu`, then ours against TRL on
# Llama-3-8B's and Qwen3-0.6B's shapes. benchmarks/gpu.py says what is measured, and in which order.
#   bash benchmarks/gpu.sh [--carry FOLDER] [--check] [--seconds 570] [--work FOLDER]
#   --carry FOLDER             wheels that the machine lacks (benchmarks/gpu_wheels.sh): no network is needed
#   --check                    only says what the machine lacks
#   GPU_BENCH_TOY=1            toy sizes, on the CPU: shows that it runs, the figures mean nothing
#   TRL_PYTHON=path            TRL's environment; "none": ours alone; default: with --carry this one, where TRL is among
#                              the wheels, else one is made from requirements_trl.txt
#   GPU_BENCH_OUT=folder       where gpu.json goes (default: benchmarks/results)
#   PYTHON=path                the interpreter that has torch (default: python, else python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-$(command -v python || command -v python3)}"
flags=()
carry=""
while [ $# -gt 0 ]; do
    case "$1" in
        --carry) carry="$2" && shift 2 ;;
        *) flags+=("$1") && shift ;;
    esac
done
if [ -n "$carry" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" \
        "$carry"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
    [ -n "${TRL_PYTHON:-}" ] || { [ -d "$site/trl" ] && TRL_PYTHON="$python" || TRL_PYTHON=none; }
fi
case "${TRL_PYTHON:-}" in
    "") ;;
    none) flags+=(--ours-alone) ;;
    *) flags+=(--trl-python "$TRL_PYTHON") ;;
esac
[ -z "${GPU_BENCH_TOY:-}" ] || flags+=(--toy)
[ -z "${GPU_BENCH_OUT:-}" ] || flags+=(--results "$GPU_BENCH_OUT")
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
"$python" -m benchmarks.gpu "${flags[@]}"
