#!/usr/bin/env bash
# Preferences and reward models against TRL, then the stages of rejection sampling: `bash benchmarks/pairs_and_sampling.sh`,
# about 14 minutes on 2 quiet cores. Words behind it go to benchmarks.run, such as --work FOLDER. Each part writes its
# file in benchmarks/results/ by itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=2

python -m benchmarks.run --results benchmarks/results --cases i,k,l,j --rounds 5 "$@"
python -m benchmarks.run --results benchmarks/results --cases m --rounds 3 "$@"
python -m benchmarks.select
python -m benchmarks.scoring --texts 96
python -m benchmarks.generation --prompts 64 --rounds 3
python -m benchmarks.restarts
