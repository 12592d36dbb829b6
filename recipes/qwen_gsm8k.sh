#!/usr/bin/env bash
# A row of docs/results.md: Qwen2.5-Coder-0.5B-Instruct on GSM8K, with two worked examples before each problem.
#
#     QWEN=folder-with-the-model STEERLIFT_DATA=folder-with-the-problems bash recipes/qwen_gsm8k.sh 0
#
# QWEN and STEERLIFT_DATA can be left out where the Hugging Face hub can be reached. In bfloat16; DTYPE=float32 is a run of its own,
# of which no more than the table's first lines was run.
set -euo pipefail
SEED=${1:?expected a seed, for instance 0}
ROOT=${RUNS:-runs}
RUN=$ROOT/qwen-gsm8k-$SEED${DTYPE:+_$DTYPE}
BASE=${QWEN:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
PROBLEMS=$ROOT/problems/gsm8k
source recipes/stages.sh

# The same two worked examples for every seed and every command: choose keeps them beside the problems.
stage problems steerlift choose --num_completions 0 --problems gsm8k --few_shot 2 --train_size 10000 --seed 0 \
    --output_dir "$PROBLEMS"

source recipes/qwen_row.sh
