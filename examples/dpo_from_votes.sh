#!/bin/sh
# The votes of the Chat tab become pairs, on which a run continues with DPO.
#   sh examples/dpo_from_votes.sh RUN [training.max_steps=20 …]
set -eu
start=$1
shift
sets="--set adapter.warm_start=$start"
for setting in "$@"; do sets="$sets --set $setting"; done

# Ties are left out, and pairs whose better answer was cut off.
pairs=$(mktemp -d)/votes.jsonl
loratory votes export "$pairs"

run=$(
    loratory train quickstart-dpo-cpu --set dataset.source="$pairs" $sets --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["run_id"])'
)
loratory evaluate "$run"
