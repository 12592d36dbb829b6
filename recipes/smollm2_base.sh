#!/usr/bin/env bash
# SmolLM2-135M-Instruct with the answer's form taught by a dozen supervised steps on worked solutions (it never uses the tags by
# itself), and the problems: what smollm2_sums.sh begins with. 5 minutes of one CPU core.
set -euo pipefail
ROOT=${RUNS:-runs}
RUN=$ROOT/smollm2-base
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source recipes/stages.sh
test -f "$ROOT/smollm2/config.json" || python recipes/smollm2.py "$ROOT/smollm2"
test -f "$ROOT/problems/hundreds/train.jsonl" || python recipes/arithmetic.py "$ROOT/problems"
stage warm-up steerlift train --model_name "$ROOT/smollm2" --problems "$ROOT/problems/warmup" --output_dir "$RUN" --overwrite \
    --sft_steps 12 --sft_learning_rate 1e-4 --num_train_iters 0 --max_completion_length 64
