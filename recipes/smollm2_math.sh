#!/usr/bin/env bash
# The original's five commands on MATH with SmolLM2-135M-Instruct, sizes scaled down to a CPU: some minutes on two cores.
#   STEERLIFT_DATA=folder-with-math bash recipes/smollm2_math.sh
# Far too small to show a gain; it shows that the commands work on a real pretrained model. See docs/results.md.
set -euo pipefail
model=runs/smollm2
run=runs/smollm2-math
test -f $model/config.json || python recipes/smollm2.py $model

python main.py --model_name $model --output_dir $run --train-size 200 --num_train_iters 3 --num_chains 4 \
    --gradient_accumulation_steps 2 --max_completion_length 192 --eval-size 4 --num_completions_eval 4 --eval_every 3 --save_every 3
python build_steering_vectors.py --base_model_name $model --finetuned_checkpoint $run/checkpoint_step_3 \
    --output_path $run/steering_vectors.json --train-size 200 --max_examples 16 --max_completion_length 192
python eval_with_steering.py --base_model_name $model --finetuned_checkpoint $run/checkpoint_step_3 \
    --steering_vectors_path $run/steering_vectors.json --output_path $run/steering_eval_results.json \
    --eval-size 4 --num_completions_eval 4 --max_completion_length 192
python plotter.py --results-path $run/steering_eval_results.json --output-path $run/steering_results.png
