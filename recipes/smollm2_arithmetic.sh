#!/usr/bin/env bash
# One row of docs/results.md: SmolLM2-135M-Instruct on arithmetic, from the weights to the report.
#
#     bash recipes/smollm2_arithmetic.sh sums 0        # or 1, 2: another seed of everything but the base model and the problems
#     bash recipes/smollm2_arithmetic.sh threes 0
#
# About 1.5 hours of one CPU core each; two of them side by side share nothing but the base model, which has to be there first:
#
#     bash recipes/smollm2_arithmetic.sh base
#
# Run it again after it was stopped: it goes on.
set -euo pipefail
ROOT=${RUNS:-runs}
BASE=$ROOT/smollm2-base/checkpoint_step_0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ "$1" = base ]; then
    RUN=$ROOT/smollm2-base
    source recipes/stages.sh
    test -f "$ROOT/smollm2/config.json" || python recipes/smollm2.py "$ROOT/smollm2"
    python recipes/arithmetic.py "$ROOT/problems"
    # The model never uses the tags by itself: a dozen supervised steps on worked solutions teach it the form.
    stage warm-up steerlift train --model_name "$ROOT/smollm2" --problems "$ROOT/problems/warmup" --output_dir "$RUN" --overwrite \
        --sft_steps 12 --sft_learning_rate 1e-4 --num_train_iters 0 --max_completion_length 48
    exit
fi

TASK=$1 SEED=$2
RUN=$ROOT/smollm2-$TASK-$SEED
PROBLEMS=$ROOT/problems/$TASK
FINETUNED=$RUN/grpo/checkpoint_step_32
source recipes/stages.sh
SAMPLING=(--temperature 1 --max_completion_length 48 --seed "$SEED")
MODELS=(--base_model_name "$BASE" --finetuned_checkpoint "$FINETUNED")

stage choose steerlift choose --model_name "$BASE" --problems "$PROBLEMS" --output_dir "$RUN/chosen" \
    --train_size 200 --num_completions 8 --success 0.1 0.9 "${SAMPLING[@]}"

stage grpo steerlift train --model_name "$BASE" --problems "$RUN/chosen" --output_dir "$RUN/grpo" --resume \
    --num_train_iters 32 --gradient_accumulation_steps 8 --num_chains 8 --learning_rate 3e-5 --max_grad_norm 1 --weight_decay 0 \
    --eval_split dev --eval-size 40 --num_completions_eval 4 --eval_every 16 --save_every 8 --keep_checkpoints 1 "${SAMPLING[@]}"

# Means over 200 training problems: of the completions, as they are and as what each layer adds, and of the prompts.
for method in mean_difference increments; do
    stage "completion-$method" steerlift extract "${MODELS[@]}" --problems "$PROBLEMS" --train-size 200 --tokens completion \
        --method "$method" --output_path "$RUN/completion-$method.safetensors" "${SAMPLING[@]}"
done
stage prompt-mean_difference steerlift extract "${MODELS[@]}" --problems "$PROBLEMS" --train-size 200 --tokens prompt \
    --output_path "$RUN/prompt-mean_difference.safetensors" --seed "$SEED"

stage distill steerlift learn "${MODELS[@]}" --problems "$PROBLEMS" --output_dir "$RUN/distill" --resume --objective distill \
    --train_size 400 --finetuned_completions 2 --num_train_iters 50 --gradient_accumulation_steps 8 --micro_batch_size 16 \
    --learning_rate 0.01 --eval-size 40 --num_completions_eval 4 --eval_every 50 --save_every 10 --keep_checkpoints 1 "${SAMPLING[@]}"

stage learn-grpo steerlift learn --base_model_name "$BASE" --problems "$RUN/chosen" --output_dir "$RUN/learn-grpo" --resume \
    --objective grpo --num_train_iters 24 --gradient_accumulation_steps 8 --num_chains 8 --learning_rate 0.005 \
    --eval-size 40 --num_completions_eval 4 --eval_every 24 --save_every 8 --keep_checkpoints 1 "${SAMPLING[@]}"

# The weight of the raw means is chosen on 40 development problems; everything else is added at weight 1.
for method in completion-mean_difference prompt-mean_difference; do
    stage "weight-of-$method" steerlift search "${MODELS[@]}" --vectors "$RUN/$method.safetensors" --problems "$PROBLEMS" \
        --output_dir "$RUN/weight-of-$method" --overwrite --weight_range 0 0.8 --trials 8 --rungs 2 --dev_size 40 \
        --num_completions_eval 2 --eval-size 20 "${SAMPLING[@]}"
done

stage evaluate steerlift evaluate "${MODELS[@]}" --steering_vectors_path "$RUN/distill/vectors.safetensors" --weights 1 \
    --other_vectors "$RUN/learn-grpo/vectors.safetensors" "$RUN/completion-increments.safetensors" \
    "$RUN/weight-of-completion-mean_difference/best.safetensors" "$RUN/weight-of-prompt-mean_difference/best.safetensors" \
    --random_control --problems "$PROBLEMS" --eval-size 400 --num_completions_eval 4 --output_path "$RUN/results.json" "${SAMPLING[@]}"

if [ "$SEED" != 0 ]; then
    exit
fi

# The first seed only: other weights, all controls, and a search over vectors, layers and weights.
stage sweep steerlift evaluate "${MODELS[@]}" --steering_vectors_path "$RUN/distill/vectors.safetensors" --weights 0.25 0.5 0.75 1 1.5 2 \
    --problems "$PROBLEMS" --eval-size 100 --num_completions_eval 4 --output_path "$RUN/sweep.json" "${SAMPLING[@]}"
stage controls steerlift evaluate "${MODELS[@]}" --steering_vectors_path "$RUN/distill/vectors.safetensors" --weights 1 \
    --controls random negated shuffled cooler format --problems "$PROBLEMS" --eval-size 100 --num_completions_eval 4 \
    --output_path "$RUN/controls.json" "${SAMPLING[@]}"
stage search steerlift search "${MODELS[@]}" --vectors "$RUN/completion-increments.safetensors" "$RUN/distill/vectors.safetensors" \
    --problems "$PROBLEMS" --output_dir "$RUN/search" --overwrite --groups 3 --weight_range 0 2 --trials 16 --rungs 3 --dev_size 48 \
    --num_completions_eval 4 --eval-size 100 "${SAMPLING[@]}"
stage figure steerlift plot --results-path "$RUN/sweep.json" --output-path "$RUN/sweep.png"
stage report steerlift report "$RUN" --title "SmolLM2-135M-Instruct, $TASK, seed $SEED"
