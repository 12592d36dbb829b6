#!/usr/bin/env bash
# A row of docs/results.md: Qwen2.5-Coder-0.5B-Instruct on MATH, levels 1 and 2, with two worked examples before each problem.
#
#     QWEN=folder-with-the-model STEERLIFT_DATA=folder-with-the-problems bash recipes/qwen_math.sh 0
#
# Not run yet. QWEN and STEERLIFT_DATA can be left out where the Hugging Face hub can be reached. About 3 hours of two CPU cores.
set -euo pipefail
SEED=$1
ROOT=${RUNS:-runs}
RUN=$ROOT/qwen-math-$SEED
BASE=${QWEN:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
PROBLEMS=$ROOT/problems/math
source recipes/stages.sh

# The same two worked examples for every seed and every command: choose keeps them beside the problems.
stage problems steerlift choose --num_completions 0 --problems math --levels 1 2 --few_shot 2 --train_size 10000 --seed 0 \
    --output_dir "$PROBLEMS"

SAMPLING=(--few_shot 2 --temperature 0.9 --max_completion_length 160 --seed "$SEED")
ANSWERED=128 AVERAGED=128 TESTED=200 STEPS=16 CHECKPOINT=16 ROWS=32
GRPO=(--learning_rate 1e-5 --gradient_accumulation_steps 8 --max_prompt_length 640)
DISTILL=(--train_size 256 --finetuned_completions 1 --num_train_iters 32 --max_prompt_length 640)
LEARN_GRPO=(--num_train_iters 12 --max_prompt_length 640)
source recipes/experiment.sh
