#!/usr/bin/env bash
# From nothing to a trained model that answers: environment, data, model, training on 2 ranks, questions.
#   bash examples/quickstart.sh
#   QUICKSTART_VENV=folder   the environment, made if it is not there (default: .venv-quickstart)
#   QUICKSTART_DIR=folder    data, models, metrics and the picture of the run (default: runs/quickstart)
# Needs Python 3.10 or later, and g++; no GPU (but it uses what is there), no model hub.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${QUICKSTART_VENV:-.venv-quickstart}
run=${QUICKSTART_DIR:-runs/quickstart}
steps=$PWD/examples/quickstart

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

title "1/5  Environment: $venv"
bash "$steps/environment.sh" "$venv"
PATH=$(cd "$venv/bin" && pwd):$PATH
mkdir -p "$run"
cd "$run"

title "2/5  Data: sums and differences in words"
python "$steps/make_data.py" .

title "3/5  An untrained model"
python "$steps/make_model.py" train.jsonl untrained

num_gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
num_ranks=$((num_gpus > 0 ? num_gpus : 2))
title "4/5  Training on $num_ranks ranks with ZeRO-2 (the first start compiles DeepSpeed's AdamW: about a minute)"
# a port of its own: other runs on this machine may hold DeepSpeed's usual one
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
deepspeed --num_accelerators "$num_ranks" --master_port "$port" --module openrlhf.cli.train_sft @ "$steps/run.toml"

title "5/5  Questions that it has never seen"
python "$steps/ask.py" untrained trained held_out.jsonl
echo
echo "model: $run/trained   metrics: $run/trained/metrics.jsonl   picture: $run/trained/training_curves.png"
