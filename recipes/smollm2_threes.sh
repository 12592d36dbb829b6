#!/usr/bin/env bash
# A row of docs/results.md: SmolLM2-135M-Instruct on sums of two two-digit numbers and a digit, after smollm2_base.sh.
#
#     bash recipes/smollm2_threes.sh 0        # the seed of all but the base model and the problems
#
# Not run to the end yet. About 1.5 hours of one CPU core; seeds can run side by side.
set -euo pipefail
SEED=$1
ROOT=${RUNS:-runs}
RUN=$ROOT/smollm2-threes-$SEED
BASE=$ROOT/smollm2-base/checkpoint_step_0
PROBLEMS=$ROOT/problems/threes
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source recipes/stages.sh

SAMPLING=(--temperature 1 --max_completion_length 48 --seed "$SEED")
ANSWERED=400 AVERAGED=200 TESTED=400 STEPS=24 CHECKPOINT=24 ROWS=64
GRPO=(--learning_rate 3e-5 --gradient_accumulation_steps 8)
DISTILL=(--train_size 400 --finetuned_completions 2 --num_train_iters 50)
LEARN_GRPO=(--num_train_iters 24)
source recipes/experiment.sh
