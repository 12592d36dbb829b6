# Sourced by smollm2_stories.sh and smollm2_hundreds.sh, which set TASK, SEED and LENGTH: a row on a task that the base model of the sums
# cannot do, after SmolLM2-135M-Instruct has been warmed up on worked solutions of that task. One base for all seeds.
ROOT=${RUNS:-runs}
PROBLEMS=$ROOT/problems/$TASK
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source recipes/stages.sh

RUN=$ROOT/smollm2-$TASK-base
BASE=$RUN/checkpoint_step_0
stage warm-up steerlift train --model_name "$ROOT/smollm2" --problems "$PROBLEMS" --output_dir "$RUN" --resume \
    --sft_steps 16 --sft_learning_rate 1e-4 --num_train_iters 0 --max_completion_length "$LENGTH" --num_completions_eval 4

RUN=$ROOT/smollm2-$TASK-$SEED
source recipes/smollm2_row.sh
