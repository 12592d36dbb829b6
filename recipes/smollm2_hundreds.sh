#!/usr/bin/env bash
# A row of docs/results.md: SmolLM2-135M-Instruct on sums of two three-digit numbers, after smollm2_base.sh.
#
#     bash recipes/smollm2_hundreds.sh 0        # the seed of all but the base model and the problems
#
# Run as far as the first 8 steps of GRPO. About 3 hours of one CPU core.
set -euo pipefail
SEED=$1 TASK=hundreds LENGTH=112 STEPS=24
source recipes/smollm2_own_base.sh
