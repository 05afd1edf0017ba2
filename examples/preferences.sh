#!/usr/bin/env bash
# Preferences on the quickstart's arithmetic: a weak model, pairs of right and wrong answers, a reward model, DPO.
#   bash examples/preferences.sh
#   PREFERENCES_VENV=folder   the environment, made if it is not there (default: .venv-quickstart)
#   PREFERENCES_DIR=folder    data, models, metrics and pictures (default: runs/preferences)
# Needs Python 3.10 or later, and g++; no GPU (but it uses what is there), no model hub.
# Exits with 1 where the reward model's held-out accuracy is below 90%, or DPO gains less than 15 points.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${PREFERENCES_VENV:-.venv-quickstart}
run=${PREFERENCES_DIR:-runs/preferences}
quickstart=$PWD/examples/quickstart
steps=$PWD/examples/preferences

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

train() {
    # a port of its own: other runs on this machine may hold DeepSpeed's usual one
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    deepspeed --num_accelerators "$num_ranks" --master_port "$port" --module "openrlhf.cli.$1" @ "$steps/$2.toml"
}

title "1/6  Environment: $venv"
bash "$quickstart/environment.sh" "$venv"
PATH=$(cd "$venv/bin" && pwd):$PATH
mkdir -p "$run"
cd "$run"
num_gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
num_ranks=$((num_gpus > 0 ? num_gpus : 2))

title "2/6  A weak model: the quickstart's training, ended early"
python "$quickstart/make_data.py" .
python "$quickstart/make_model.py" train.jsonl untrained
train train_sft weak

title "3/6  Pairs of a right and a wrong answer"
python "$steps/make_pairs.py" weak

title "4/6  A reward model"
train train_rm reward

title "5/6  DPO"
train train_dpo dpo

title "6/6  What has come of it"
python "$steps/check.py" weak preferred reward held_out.jsonl
echo "pictures: $run/reward/training_curves.png   $run/preferred/training_curves.png"
