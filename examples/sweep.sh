#!/bin/sh
# Four runs, one after the other, then the one with the lowest held-out loss.
#   sh examples/sweep.sh CONFIG [training.max_steps=20 …]
set -eu
config=$1
shift
sets=""
for setting in "$@"; do sets="$sets --set $setting"; done

loratory sweep "$config" --over adapter.r=8,16 --over training.learning_rate=1e-4,2e-4 $sets --json |
    python3 -c '
import json, sys

runs = json.load(sys.stdin)
for run in sorted(runs, key=lambda run: run["eval_loss"]):
    print("%.4f  %s  %s" % (run["eval_loss"], run["run_id"], run["name"]))
'
