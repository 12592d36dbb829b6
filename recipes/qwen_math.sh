#!/usr/bin/env bash
# A row of docs/results.md: Qwen2.5-Coder-0.5B-Instruct on MATH, levels 1 and 2, with two worked examples before each problem.
#
#     QWEN=folder-with-the-model STEERLIFT_DATA=folder-with-the-problems bash recipes/qwen_math.sh 0
#
# QWEN and STEERLIFT_DATA can be left out where the Hugging Face hub can be reached. In bfloat16; DTYPE=float32 is a run of its own,
# of which no more than the table's first lines was run.
set -euo pipefail
SEED=${1:?expected a seed, for instance 0}
ROOT=${RUNS:-runs}
RUN=$ROOT/qwen-math-$SEED${DTYPE:+_$DTYPE}
BASE=${QWEN:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
PROBLEMS=$ROOT/problems/math
source recipes/stages.sh

# The same two worked examples for every seed and every command: choose keeps them beside the problems. MATH's test problems have
# 133 of these levels; 67 of its training problems, which nothing is trained on then, join them.
stage problems steerlift choose --num_completions 0 --problems math --levels 1 2 --test_size 200 --few_shot 2 --train_size 10000 \
    --seed 0 --output_dir "$PROBLEMS"

# The base solves a tenth of 128 training problems once to three times of four: three times as many are asked.
ANSWERED=384
# Answers are longer than on GSM8K: controls, other weights and the search have fewer problems.
CONTROLLED=32
# The first seed was run before raw means were evaluated. Those of seed 1 are, on a slower machine: half as many training problems to
# choose from, half as many test problems, and half as many answers to each; and of GRPO the model after four of its eight steps.
if [ "$SEED" != 0 ]; then
    ANSWERED=192 TESTED=100 ASKED=2 CHECKPOINT=4 MEANS="completion prompt"
fi
source recipes/qwen_row.sh

if [ "$SEED" != 0 ]; then
    # At the weight that both runs of seed 0 chose.
    stage increments-at-0.78 steerlift evaluate "${MODELS[@]}" --weights 0.78 "${TEST[@]}" --reuse "$ANSWERS" \
        --steering_vectors_path "$RUN/increments.safetensors" --output_path "$RUN/increments-at-0.78.json"
fi
