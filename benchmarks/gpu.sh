#!/usr/bin/env bash
# What a GPU must show, on one GPU, in under ten minutes: ours against TRL on Qwen3-0.6B's and Llama-3-8B's shapes.
#   bash benchmarks/gpu.sh             needs this package installed; see benchmarks/gpu.py for what is measured
#   GPU_BENCH_TOY=1 ...                toy sizes, on the CPU: shows that it runs, the figures mean nothing
#   TRL_PYTHON=path                    TRL's environment; "none": ours alone; default: made from requirements_trl.txt
#   GPU_BENCH_OUT=folder               where gpu.json goes (default: benchmarks/results)
#   PYTHON=path                        the interpreter that has this package (default: python)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

flags=()
case "${TRL_PYTHON:-}" in
    "") ;;
    none) flags+=(--ours-alone) ;;
    *) flags+=(--trl-python "$TRL_PYTHON") ;;
esac
[ -z "${GPU_BENCH_TOY:-}" ] || flags+=(--toy)
[ -z "${GPU_BENCH_OUT:-}" ] || flags+=(--results "$GPU_BENCH_OUT")
exec "${PYTHON:-python}" -m benchmarks.gpu "${flags[@]}" "$@"
