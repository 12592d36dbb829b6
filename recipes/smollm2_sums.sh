#!/usr/bin/env bash
# A row of docs/results.md: SmolLM2-135M-Instruct on sums of two two-digit numbers, after smollm2_base.sh.
#
#     bash recipes/smollm2_sums.sh 0        # the seed of all but the base model and the problems
#
# Run with seeds 0, 1 and 2. About 2 hours of one CPU core, 4 for seed 0, which has all controls; seeds can run side by side.
set -euo pipefail
SEED=${1:?expected a seed, for instance 0}
ROOT=${RUNS:-runs}
RUN=$ROOT/smollm2-sums-$SEED
BASE=$ROOT/smollm2-base/checkpoint_step_0
PROBLEMS=$ROOT/problems/sums
LENGTH=64 RATE=(--learning_rate 3e-5)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source recipes/stages.sh

source recipes/smollm2_row.sh
