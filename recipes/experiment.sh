# Sourced by the scripts of the rows of docs/results.md: from a base model and a folder of problems to tables, figures and a report.
# They set RUN, BASE, PROBLEMS, SEED and what stands in capitals below; they are to be run again after they were stopped: they go on.
FINETUNED=$RUN/grpo/checkpoint_step_$CHECKPOINT
MODELS=(--base_model_name "$BASE" --finetuned_checkpoint "$FINETUNED")
WEIGHT=(--problems "$PROBLEMS" --overwrite --rungs 1 --num_completions_eval 2 --eval-size 8 "${WEIGHTS_TRIED[@]}"
    "${SAMPLING[@]}")
LEARNED=$RUN/distill/vectors.safetensors
# The base's answers in runs of other seeds of this row, if they are there: it is not asked again what it has answered.
OTHER_SEEDS=$(ls "${RUN%-*}"-[0-9]"${DTYPE:+_$DTYPE}"/base/answers.json 2> /dev/null | grep -v "^$RUN/" || true)

# GRPO learns from problems that the base solves sometimes; all scores are on problems of every difficulty.
stage choose steerlift choose --model_name "$BASE" --problems "$PROBLEMS" --output_dir "$RUN/chosen" \
    --train_size "$ANSWERED" --num_completions 4 --success 0.25 0.75 "${SAMPLING[@]}"

# The models' answers to the test problems, which every evaluation of vectors takes over: ONLY=answers-base runs the base's beside the
# training. The base is asked once for all seeds, with the same random numbers.
TEST=(--problems "$PROBLEMS" --eval-size "$TESTED" --num_completions_eval "${ASKED:-4}" "${SAMPLING[@]}" --seed 0)
ALONE=(--base_model_name "$BASE" --steering_vectors_path None "${TEST[@]}")
stage answers-base steerlift evaluate "${ALONE[@]}" --finetuned_checkpoint None --output_path "$RUN/base/answers.json" --reuse $OTHER_SEEDS

TRAIN=(steerlift train --model_name "$BASE" --problems "$RUN/chosen" --resume --num_chains 8 --micro_batch_size "$ROWS"
    --max_grad_norm 1 --weight_decay 0 --eval_split dev "${DEV[@]}" --eval_every 8 --save_every 2 --keep_checkpoints "$((1 + (STEPS - CHECKPOINT) / 2))"
    "${SAMPLING[@]}" "${GRPO[@]}")
stage grpo "${TRAIN[@]}" --output_dir "$RUN/grpo" --num_train_iters "$STEPS"

ANSWERS=$RUN/answers.json
stage answers steerlift evaluate "${ALONE[@]}" --finetuned_checkpoint "$FINETUNED" --output_path "$ANSWERS" --reuse "$RUN/base/answers.json"

# Means over training problems: increments, what each layer adds, over completion tokens; and the raw means that MEANS names (those
# of the first seed, where it says nothing). Each one's weight is chosen on development problems.
AVERAGE=(steerlift extract "${MODELS[@]}" --problems "$PROBLEMS" --train-size "$AVERAGED" "${SAMPLING[@]}")
stage increments "${AVERAGE[@]}" --tokens completion --method increments --output_path "$RUN/increments.safetensors"
stage completion-mean "${AVERAGE[@]}" --tokens completion --output_path "$RUN/completion-mean.safetensors" \
    --reuse "$RUN/increments.safetensors"
stage prompt-mean "${AVERAGE[@]}" --tokens prompt --output_path "$RUN/prompt-mean.safetensors"
weigh() {  # NAME LEAST MOST: the best weight of a file of vectors, and what that has on test problems
    stage "weight-of-$1" steerlift search "${MODELS[@]}" --vectors "$RUN/$1.safetensors" \
        --output_dir "$RUN/weight-of-$1" --weight_range "$2" "$3" "${WEIGHT[@]}"
    stage "evaluate-$1" steerlift evaluate "${MODELS[@]}" --weights 1 "${TEST[@]}" \
        --steering_vectors_path "$RUN/weight-of-$1/best.safetensors" --output_path "$RUN/results-$1.json" --reuse "$ANSWERS"
}
weigh increments 0.2 0.8
for tokens in ${MEANS-$([ "$SEED" != 0 ] || echo completion prompt)}; do
    weigh "$tokens-mean" 0 0.8
done

stage distill steerlift learn "${MODELS[@]}" --problems "$PROBLEMS" --output_dir "$RUN/distill" --resume --objective distill \
    --reuse "$RUN/increments.safetensors" "${DISTILL[@]}" --micro_batch_size "$ROWS" --learning_rate 0.01 \
    "${DEV[@]}" --eval_every 1000 --save_every 4 --keep_checkpoints 1 "${SAMPLING[@]}"
EVALUATE=(steerlift evaluate "${MODELS[@]}" --steering_vectors_path "$LEARNED" --weights 1 "${TEST[@]}" --output_path "$RUN/results.json")
stage evaluate "${EVALUATE[@]}" --reuse "$ANSWERS"
stage evaluate-random "${EVALUATE[@]}" --random_control

# Vectors learned without the fine-tuned model: ONLY=learn-grpo runs beside its training. They are added once, and nothing is chosen.
stage learn-grpo steerlift learn --base_model_name "$BASE" --problems "$RUN/chosen" --output_dir "$RUN/learn-grpo" --resume \
    --objective grpo --num_train_iters "$LEARN_STEPS" "${LEARN_GRPO[@]}" --gradient_accumulation_steps 8 --num_chains 8 \
    --micro_batch_size "$ROWS" --learning_rate 0.002 "${DEV[@]}" --eval_every 1000 --save_every 2 --keep_checkpoints 1 "${SAMPLING[@]}"
LEARNED_ALONE=(--base_model_name "$BASE" --steering_vectors_path "$RUN/learn-grpo/vectors.safetensors" --weights 1 "${TEST[@]}")
stage evaluate-learn-grpo steerlift evaluate "${LEARNED_ALONE[@]}" --finetuned_checkpoint "$FINETUNED" \
    --output_path "$RUN/results-learn-grpo.json" --reuse "$ANSWERS"

# Fine-tuning gone on with to as many steps as these vectors had, where it had fewer: what they have beyond it may be only that.
if [ "$LEARN_STEPS" -gt "$STEPS" ]; then
    mkdir -p "$RUN/longer"
    stage longer-start cp -R "$RUN/grpo/." "$RUN/longer"
    stage longer "${TRAIN[@]}" --output_dir "$RUN/longer" --num_train_iters "$LEARN_STEPS"
    stage evaluate-longer steerlift evaluate "${LEARNED_ALONE[@]}" --finetuned_checkpoint "$RUN/longer/checkpoint_step_$LEARN_STEPS" \
        --output_path "$RUN/results-longer.json" --reuse "$RUN/results-learn-grpo.json"
fi

if [ "$SEED" != 0 ]; then
    return
fi

# The first seed only: other weights; all controls; a search over vectors, layers and weights.
SMALLER=(--problems "$PROBLEMS" --eval-size "$CONTROLLED" --num_completions_eval 4 --reuse "$RUN/results.json")
stage methods steerlift evaluate "${MODELS[@]}" --steering_vectors_path "$LEARNED" --weights 1 \
    --other_vectors "$RUN/weight-of-increments/best.safetensors" \
    --controls random negated shuffled cooler format "${SMALLER[@]}" --output_path "$RUN/methods.json" "${SAMPLING[@]}"
stage sweep steerlift evaluate "${MODELS[@]}" --steering_vectors_path "$LEARNED" --weights 0.25 0.5 0.75 1 1.5 2 \
    "${SMALLER[@]}" --output_path "$RUN/sweep.json" "${SAMPLING[@]}"
stage search steerlift search "${MODELS[@]}" --vectors "$RUN/increments.safetensors" "$LEARNED" --problems "$PROBLEMS" \
    --output_dir "$RUN/search" --overwrite --groups 3 --weight_range 0 2 "${SEARCHED[@]}" \
    --eval-size "$CONTROLLED" "${SAMPLING[@]}"
stage figure steerlift plot --results-path "$RUN/sweep.json" --output-path "$RUN/sweep.png"
stage report steerlift report "$RUN"
