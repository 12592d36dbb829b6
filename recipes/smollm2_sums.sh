#!/usr/bin/env bash
# SmolLM2-135M-Instruct on sums of two-digit numbers: 12 supervised steps, 20 steps of GRPO, the training curves.
# About 40 minutes on one CPU core without bfloat16 instructions. What came out is in docs/results.md.
set -euo pipefail
test -f runs/smollm2/config.json || python recipes/smollm2.py runs/smollm2
test -f runs/sums/train.jsonl || python recipes/sums.py runs/sums

python main.py --model_name runs/smollm2 --problems runs/sums --output_dir runs/smollm2-sums --resume \
    --sft_steps 12 --sft_learning_rate 1e-4 --num_train_iters 20 --gradient_accumulation_steps 8 --num_chains 8 \
    --learning_rate 3e-5 --max_grad_norm 1 --weight_decay 0 --temperature 1 --max_completion_length 64 \
    --eval-size 100 --num_completions_eval 4 --eval_every 20 --save_every 10
steerlift plot runs/smollm2-sums
