#!/usr/bin/env bash
# A row of docs/results.md: SmolLM2-135M-Instruct on sums of two two-digit numbers in words, after smollm2_base.sh.
#
#     bash recipes/smollm2_stories.sh 0        # the seed of all but the base model and the problems
#
# Not run to the end yet. About 1.5 hours of one CPU core.
set -euo pipefail
SEED=$1 TASK=stories LENGTH=64
source recipes/smollm2_own_base.sh
