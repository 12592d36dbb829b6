#!/usr/bin/env bash
# What becomes of the learned vectors of smollm2_sums.sh 0 and smollm2_hundreds.sh 0 elsewhere: on the other task, at other
# temperatures, with a longer limit, on weights of 8 bits. 100 test problems x 4 each; about half an hour of one CPU core.
set -euo pipefail
ROOT=${RUNS:-runs}
SUMS=$ROOT/smollm2-sums-0 HUNDREDS=$ROOT/smollm2-hundreds-0
BASE=$ROOT/smollm2-base/checkpoint_step_0 HUNDREDS_BASE=$ROOT/smollm2-hundreds-base/checkpoint_step_0
TUNED=$SUMS/grpo/checkpoint_step_8 HUNDREDS_TUNED=$HUNDREDS/grpo/checkpoint_step_32
VECTORS=$SUMS/distill/vectors.safetensors HUNDREDS_VECTORS=$HUNDREDS/distill/vectors.safetensors
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
SAMPLING=(--max_completion_length 64)
source recipes/transfer.sh

transfer "$SUMS" temperature-0.5 "$BASE" "$TUNED" "$VECTORS" sums --temperature 0.5
transfer "$SUMS" temperature-0 "$BASE" "$TUNED" "$VECTORS" sums --temperature 0 --num_completions_eval 1 --eval-size 400
transfer "$SUMS" limit-of-192-tokens "$BASE" "$TUNED" "$VECTORS" sums --temperature 1 --max_completion_length 192
for model in "$BASE" "$TUNED"; do
    test -f "$model-8bit/config.json" || python recipes/eight_bit.py "$model" "$model-8bit"
done
transfer "$SUMS" weights-of-8-bits "$BASE-8bit" "$TUNED-8bit" "$VECTORS" sums --temperature 1
transfer "$SUMS" vectors-of-hundreds "$BASE" "$TUNED" "$HUNDREDS_VECTORS" sums --temperature 1 --reuse "$SUMS/results.json"
transfer "$HUNDREDS" temperature-0 "$HUNDREDS_BASE" "$HUNDREDS_TUNED" "$HUNDREDS_VECTORS" hundreds --temperature 0 \
    --num_completions_eval 1 --eval-size 200 --max_completion_length 112
transfer "$HUNDREDS" vectors-of-sums "$HUNDREDS_BASE" "$HUNDREDS_TUNED" "$VECTORS" hundreds --temperature 1 \
    --max_completion_length 112 --reuse "$HUNDREDS/results.json"
