#!/usr/bin/env bash
# A weak model learns from its own answers: three iterations of rejection sampling, checked by a rule.
#   bash examples/rejection_sampling.sh
#   QUICKSTART_VENV=folder   the environment, made if it is not there (default: .venv-quickstart)
#   REJECTION_DIR=folder     data, models and reports (default: runs/rejection)
# Started again after a kill, it goes on. Exits with 1, and says why, where an aim of rejection/check.py is missed.
# Needs Python 3.10 or later, and g++; no GPU (but it uses what is there), no model hub.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${QUICKSTART_VENV:-.venv-quickstart}
run=${REJECTION_DIR:-runs/rejection}
quickstart=$PWD/examples/quickstart
steps=$PWD/examples/rejection

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

title "1/4  Environment: $venv"
bash "$quickstart/environment.sh" "$venv"
PATH=$(cd "$venv/bin" && pwd):$PATH
mkdir -p "$run"
cd "$run"

title "2/4  Questions, and a weak model"
if [ ! -f weak/model.safetensors ]; then
    python "$quickstart/make_data.py" .
    python "$steps/make_prompts.py" .
    python "$quickstart/make_model.py" train.jsonl untrained
    python -m openrlhf.cli.train_sft @ "$steps/weak.toml"
fi
cp "$steps/reward.py" .

title "3/4  Three iterations: answers, scores, selection, training"
python -m openrlhf.cli.rejection_sampling @ "$steps/recipe.toml"

title "4/4  What it was good for"
python "$steps/check.py" rejection/stats.json
echo
echo "model: $run/rejection/iteration_3/model   report: $run/rejection/report.html"
