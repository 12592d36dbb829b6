#!/usr/bin/env bash
# A row of docs/results.md: SmolLM2-135M-Instruct on sums of two two-digit numbers, after smollm2_base.sh.
#
#     bash recipes/smollm2_sums.sh 0        # the seed of all but the base model and the problems
#
# Run so far: three seeds up to their learned vectors, and seed 0's controls; the rest of experiment.sh was not.
# About 1.5 hours of one CPU core; seeds can run side by side.
set -euo pipefail
SEED=$1
ROOT=${RUNS:-runs}
RUN=$ROOT/smollm2-sums-$SEED
BASE=$ROOT/smollm2-base/checkpoint_step_0
PROBLEMS=$ROOT/problems/sums
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source recipes/stages.sh

SAMPLING=(--temperature 1 --max_completion_length 64 --seed "$SEED")
ANSWERED=300 AVERAGED=200 TESTED=400 STEPS=8 CHECKPOINT=8 ROWS=64
GRPO=(--learning_rate 3e-5 --gradient_accumulation_steps 8 --warmup_percent 0.25 --final_lr_percent 0.7)
DISTILL=(--train_size 960 --finetuned_completions 1 --num_train_iters 80 --gradient_accumulation_steps 12)
LEARN_GRPO=(--num_train_iters 16)
source recipes/experiment.sh
