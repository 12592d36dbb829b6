#!/usr/bin/env bash
# What becomes of the learned vectors of qwen_gsm8k.sh 0 and qwen_math.sh 0 elsewhere: on the other task, on the same base; greedy;
# with twice the tokens. Not run yet. QWEN and STEERLIFT_DATA as there; about two hours of one CPU core.
set -euo pipefail
ROOT=${RUNS:-runs}
GSM8K=$ROOT/qwen-gsm8k-0 MATH=$ROOT/qwen-math-0
BASE=${QWEN:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
GSM8K_TUNED=$GSM8K/grpo/checkpoint_step_8 MATH_TUNED=$MATH/grpo/checkpoint_step_8
SAMPLING=(--few_shot 2 --temperature 0.9 --max_completion_length 160)
source recipes/transfer.sh

transfer "$GSM8K" temperature-0 "$BASE" "$GSM8K_TUNED" "$GSM8K" gsm8k --temperature 0 --num_completions_eval 1
transfer "$GSM8K" limit-of-320-tokens "$BASE" "$GSM8K_TUNED" "$GSM8K" gsm8k --max_completion_length 320 --num_completions_eval 2
transfer "$MATH" vectors-of-gsm8k "$BASE" "$MATH_TUNED" "$GSM8K" math --reuse "$MATH/answers.json"
transfer "$GSM8K" vectors-of-math "$BASE" "$GSM8K_TUNED" "$MATH" gsm8k --reuse "$GSM8K/answers.json"
