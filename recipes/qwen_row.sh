# Sourced by qwen_gsm8k.sh and qwen_math.sh, which set what experiment.sh asks for but sizes and rates: these are the same for both.
# A processor with AMX multiplies bfloat16 several times faster than float32; adapters and vectors are float32 all the same.
SAMPLING=(--few_shot 2 --temperature 0.9 --max_completion_length 160 --seed "$SEED" --dtype "${DTYPE:-bfloat16}")
ANSWERED=${ANSWERED:-128} AVERAGED=128 TESTED=${TESTED:-200} CONTROLLED=${CONTROLLED:-50} STEPS=8 CHECKPOINT=${CHECKPOINT:-8} ROWS=8
DEV=(--eval-size 24 --num_completions_eval 2)
# Adapters: training all weights took 17 GB before the first update, and half as much time again.
GRPO=(--lora_r 16 --learning_rate 3e-4 --gradient_accumulation_steps 8 --warmup_percent 0.25 --final_lr_percent 0.7 --max_prompt_length 640)
DISTILL=(--train_size 256 --finetuned_completions 1 --num_train_iters 32 --max_prompt_length 640)
LEARN_STEPS=8 LEARN_GRPO=(--max_prompt_length 640)
WEIGHTS_TRIED=(--trials 6 --dev_size 24)
SEARCHED=(--trials 8 --rungs 2 --dev_size 24 --num_completions_eval 2)
source recipes/experiment.sh
