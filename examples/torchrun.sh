#!/usr/bin/env bash
# One machine or many with torchrun. On one machine:
#   bash examples/torchrun.sh run.toml
# On many, the same line on each; they meet at the first one's address:
#   NUM_MACHINES=4 MACHINE=0 FIRST_MACHINE=10.0.0.1 bash examples/torchrun.sh run.toml      (MACHINE=1, 2, 3 there)
# A rank for each GPU; without one, say how many: RANKS_PER_MACHINE=2. All machines need the same environment, and a
# shared folder for checkpoints and the model.
set -euo pipefail

torchrun \
    --nnodes "${NUM_MACHINES:-1}" \
    --node_rank "${MACHINE:-0}" \
    --master_addr "${FIRST_MACHINE:-127.0.0.1}" \
    --master_port "${PORT:-29400}" \
    --nproc_per_node "${RANKS_PER_MACHINE:-gpu}" \
    -m openrlhf.cli.train_sft @ "$@"
