#!/usr/bin/env bash
# The original's five commands on MATH with SmolLM2-135M-Instruct, sizes scaled down to a CPU: half an hour on one core.
#   STEERLIFT_DATA=folder-with-math bash recipes/smollm2_math.sh
# Far too small to show a gain; it shows that the commands work on a real pretrained model. See docs/log.md.
set -euo pipefail
run=runs/smollm2-math
test -f runs/smollm2/config.json || python recipes/smollm2.py runs/smollm2

# Without the warm-up the model never uses the tags, and no group has signal. It also makes checkpoint_step_0, the base here.
python main.py --model_name runs/smollm2 --output_dir $run --resume --train-size 1000 --sft_steps 10 --sft_learning_rate 1e-4 \
    --num_train_iters 20 --num_chains 4 --gradient_accumulation_steps 2 --max_completion_length 128 \
    --eval-size 5 --num_completions_eval 4 --eval_every 20 --save_every 10
python build_steering_vectors.py --base_model_name $run/checkpoint_step_0 --finetuned_checkpoint $run/checkpoint_step_20 \
    --output_path $run/steering_vectors.json --train-size 1000 --max_examples 16 --max_completion_length 128
python eval_with_steering.py --base_model_name $run/checkpoint_step_0 --finetuned_checkpoint $run/checkpoint_step_20 \
    --steering_vectors_path $run/steering_vectors.json --output_path $run/steering_eval_results.json \
    --eval-size 5 --num_completions_eval 4 --max_completion_length 128
python plotter.py --results-path $run/steering_eval_results.json --output-path $run/steering_results.png
