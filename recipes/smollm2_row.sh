# Sourced by smollm2_sums.sh and smollm2_hundreds.sh, which set LENGTH, the most tokens of a completion, RATE and what
# experiment.sh asks for but sizes and rates: these are the same for both.
SAMPLING=(--temperature 1 --max_completion_length "$LENGTH" --seed "$SEED")
ANSWERED=300 AVERAGED=200 TESTED=${TESTED:-400} CONTROLLED=${CONTROLLED:-100} STEPS=${STEPS:-8} ROWS=${ROWS:-64}
CHECKPOINT=$STEPS
DEV=(--eval-size 40 --num_completions_eval 4)
GRPO=(--gradient_accumulation_steps 8 --warmup_percent 0.25 --final_lr_percent 0.7 "${RATE[@]}")
DISTILL_STEPS=${DISTILL_STEPS:-80}
DISTILL=(--train_size $((12 * DISTILL_STEPS)) --finetuned_completions 1 --num_train_iters "$DISTILL_STEPS" --gradient_accumulation_steps 12)
LEARN_STEPS=16 LEARN_GRPO=()
[ -v WEIGHTS_TRIED ] || WEIGHTS_TRIED=(--trials 8 --dev_size 40)
SEARCHED=(--trials "${TRIALS:-16}" --rungs 3 --dev_size 48 --num_completions_eval 4)
source recipes/experiment.sh
