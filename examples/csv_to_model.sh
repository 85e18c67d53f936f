#!/bin/sh
# From a CSV of questions and answers to a tuned model.
#   sh examples/csv_to_model.sh support.csv my-model [training.max_steps=20 …]
set -eu
data=$1 folder=$2
shift 2
sets="--set dataset.source=$data"
for setting in "$@"; do sets="$sets --set $setting"; done

# What is kept, what is skipped and why.
loratory inspect "$data"

# Whether it fits, and what would make it fit. The preset runs on a CPU; any other one, or a file of your own, works as well.
loratory estimate quickstart-cpu $sets

run=$(loratory train quickstart-cpu $sets --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["run_id"])')
loratory show "$run"

question=$(python3 -c 'import csv, sys; print(next(iter(csv.DictReader(open(sys.argv[1]))))["question"])' "$data")
loratory chat "$run" --prompt "$question"
loratory export "$run" --to merged --out "$folder"
