# Sourced by smollm2_transfer.sh and qwen_transfer.sh, which set ROOT and SAMPLING.
# transfer RUN NAME BASE FINE-TUNED VECTORS PROBLEMS OPTIONS...: a file of vectors, at weight 1, on 100 test problems x 4.
source recipes/stages.sh
transfer() {
    RUN=$1
    stage "$2" steerlift evaluate --base_model_name "$3" --finetuned_checkpoint "$4" --steering_vectors_path "$5" \
        --weights 1 --problems "$ROOT/problems/$6" --eval-size 100 --num_completions_eval 4 --seed 0 "${SAMPLING[@]}" \
        --output_path "$RUN/$2.json" "${@:7}"
}
