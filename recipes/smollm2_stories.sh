#!/usr/bin/env bash
# A row of docs/results.md: SmolLM2-135M-Instruct on sums of two two-digit numbers in words, after smollm2_base.sh.
#
#     bash recipes/smollm2_stories.sh 0        # the seed of all but the base model and the problems
#
# The base model of the plain sums answers none of these, so this row has one of its own, warmed up on them.
# Not run yet. About 1.5 hours of one CPU core.
set -euo pipefail
SEED=$1
ROOT=${RUNS:-runs}
PROBLEMS=$ROOT/problems/stories
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source recipes/stages.sh

RUN=$ROOT/smollm2-stories-base
BASE=$RUN/checkpoint_step_0
stage warm-up steerlift train --model_name "$ROOT/smollm2" --problems "$PROBLEMS" --output_dir "$RUN" --resume \
    --sft_steps 16 --sft_learning_rate 1e-4 --num_train_iters 0 --max_completion_length 64

RUN=$ROOT/smollm2-stories-$SEED
source recipes/smollm2_row.sh
