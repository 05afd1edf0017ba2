#!/usr/bin/env bash
# Many machines with DeepSpeed's launcher, which starts the others by ssh (without a password; it uses pdsh):
#   bash examples/hostfile/train.sh run.toml
# Run it on one of the machines in the hostfile. All need the same environment at the same path, and a shared folder
# for checkpoints and the model. Variables that the others need go into ~/.deepspeed_env, a NAME=value a line.
set -euo pipefail

deepspeed \
    --hostfile "$(dirname "${BASH_SOURCE[0]}")/hostfile" \
    --master_port "${PORT:-29400}" \
    --module openrlhf.cli.train_sft @ "$@"
