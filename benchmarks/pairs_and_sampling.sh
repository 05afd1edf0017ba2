#!/usr/bin/env bash
# Preferences and reward models against TRL, then the stages of rejection sampling: `bash benchmarks/pairs_and_sampling.sh`,
# about 15 minutes on 2 quiet cores. Words behind it go to benchmarks.run, such as --work FOLDER. Each part writes its
# file in benchmarks/results/ by itself; a part that fails does not keep the others.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=2
status=0
part() {
  python -m "$@" || status=1
}

for case in i k l; do
  part benchmarks.run --results benchmarks/results --cases "$case" --rounds 5 "$@"
done
part benchmarks.run --results benchmarks/results --cases m --rounds 3 "$@"
part benchmarks.scoring --texts 96
part benchmarks.generation --prompts 64 --rounds 3
part benchmarks.restarts
part benchmarks.run --results benchmarks/results --cases j --rounds 5 "$@"
part benchmarks.select
exit "$status"
