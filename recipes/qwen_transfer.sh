#!/usr/bin/env bash
# What the distilled vectors of qwen_gsm8k.sh 0 and qwen_math.sh 0, in float32, do elsewhere: on the other task, on the same base; and
# greedy; and what the raw means of the same runs do. They are in this repository, so this needs the base model alone; there is no share
# of a gain, then. 100 test problems x 2.
#
#     QWEN=folder-with-the-model STEERLIFT_DATA=folder-with-the-problems bash recipes/qwen_transfer.sh gsm8k math
#
# One of the tasks alone is the half of it that is asked on its problems: they can run side by side. QWEN and STEERLIFT_DATA can be
# left out where the Hugging Face hub can be reached. An hour of two CPU cores; the last lines, greedy, have not been run yet.
set -euo pipefail
ROOT=${RUNS:-runs}
GSM8K=$ROOT/qwen-gsm8k-0_float32 MATH=$ROOT/qwen-math-0_float32
GSM8K_VECTORS=results/qwen-gsm8k-0_float32/distill.safetensors MATH_VECTORS=results/qwen-math-0_float32/distill.safetensors
BASE=${QWEN:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
SAMPLING=(--few_shot 2 --temperature 0.9 --max_completion_length 160 --num_completions_eval 2 --dtype float32)
source recipes/transfer.sh

on_gsm8k() {
    transfer "$GSM8K" own-task "$BASE" None "$GSM8K_VECTORS" gsm8k
    transfer "$GSM8K" vectors-of-math "$BASE" None "$MATH_VECTORS" gsm8k --reuse "$GSM8K/own-task.json"
    # The raw mean of the run's increments, at the weight that its development problems had chosen (docs/log.md).
    python recipes/raw_mean.py results/qwen-gsm8k-0_float32/increments.safetensors "$GSM8K/completion-mean.safetensors"
    transfer "$GSM8K" completion-mean-at-0.34 "$BASE" None "$GSM8K/completion-mean.safetensors" gsm8k \
        --weights 0.34 --reuse "$GSM8K/own-task.json"
    transfer "$GSM8K" temperature-0 "$BASE" None "$GSM8K_VECTORS" gsm8k --temperature 0 --num_completions_eval 1
}

on_math() {
    transfer "$MATH" own-task "$BASE" None "$MATH_VECTORS" math
    transfer "$MATH" vectors-of-gsm8k "$BASE" None "$GSM8K_VECTORS" math --reuse "$MATH/own-task.json"
    # At the weight that the development problems of seed 1 chose.
    python recipes/raw_mean.py results/qwen-math-0_float32/increments.safetensors "$MATH/completion-mean.safetensors"
    transfer "$MATH" completion-mean-at-0.5 "$BASE" None "$MATH/completion-mean.safetensors" math \
        --weights 0.5 --reuse "$MATH/own-task.json"
    transfer "$MATH" temperature-0 "$BASE" None "$MATH_VECTORS" math --temperature 0 --num_completions_eval 1
}

for task in "${@:?expected gsm8k, math or both}"; do
    [[ $task =~ ^(gsm8k|math)$ ]] || { echo "expected gsm8k, math or both; got $task" >&2; exit 2; }
    DTYPE=float32 ONLY=problems bash "recipes/qwen_$task.sh" 0
    "on_$task"
done
