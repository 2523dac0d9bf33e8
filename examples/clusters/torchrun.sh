#!/usr/bin/env bash
# Two machines (or more) without a scheduler: start this on each of them, with its own number.
#
#   on the first:   NODE_RANK=0 MASTER_ADDR=first.machine ./torchrun.sh recipes/ssv2_pks4_b16_8f.toml /shared/runs/ssv2
#   on the second:  NODE_RANK=1 MASTER_ADDR=first.machine ./torchrun.sh recipes/ssv2_pks4_b16_8f.toml /shared/runs/ssv2
#
# The output has to be a folder that all machines share. More words go to kinescan: --resume, --set loader.batch_size=4.
set -euo pipefail

: "${NODE_RANK:?number of this machine, from 0}"
: "${MASTER_ADDR:?name or address of the machine whose NODE_RANK is 0}"
: "${NNODES:=2}"
: "${MASTER_PORT:=29500}"
: "${PROCESSES:=gpu}" # one for each GPU of the machine; a number on machines without
recipe="${1:?a recipe}"
output="${2:?a folder that all machines share}"

exec torchrun --nnodes "$NNODES" --node-rank "$NODE_RANK" --nproc-per-node "$PROCESSES" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    -m kinescan train "$recipe" --output "$output" "${@:3}"
