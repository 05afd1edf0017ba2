#!/usr/bin/env bash
# One machine or many with torchrun. On one machine:
#   bash examples/torchrun.sh run.toml
# On many, the same line on each; they meet at the first one's address:
#   NUM_MACHINES=4 FIRST_MACHINE=10.0.0.1 bash examples/torchrun.sh run.toml
# A rank for each GPU; without one, say how many: RANKS_PER_MACHINE=2. All machines need the same environment, and a
# shared folder for checkpoints and the model. When a rank dies, all start again from the newest checkpoint, up to
# three times; so ask for checkpoints (--ckpt.save_steps or --ckpt.save_minutes).
set -euo pipefail
machines=${NUM_MACHINES:-1}
port=${PORT:-$([ "$machines" = 1 ] && echo 0 || echo 29400)} # 0: any free port

# torchrun knows the first machine by looking up the machine's own name. Where that leads to 127.0.1.1, it must be told.
is_first=()
case " $(hostname -I 2>/dev/null) " in *" ${FIRST_MACHINE:-localhost} "*) is_first=(--rdzv_conf is_host=1) ;; esac

torchrun \
    --nnodes "$machines" \
    --rdzv_backend c10d \
    --rdzv_endpoint "${FIRST_MACHINE:-localhost}:$port" \
    --rdzv_id "${RUN_NAME:-sft}" "${is_first[@]}" \
    --max_restarts 3 \
    --nproc_per_node "${RANKS_PER_MACHINE:-gpu}" \
    -m openrlhf.cli.train_sft @ "$@" --ckpt.load_enable
