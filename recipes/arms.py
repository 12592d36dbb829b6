"""What the arms of the recipes' evaluations are called in summaries and tables, by the files that their vectors come from."""

# The arms of an evaluation by the file that their vectors come from.
ARMS = {
    "weight-of-increments/best": "increments of the completion mean, weight chosen on dev problems",
    "weight-of-completion-mean/best": "completion mean, weight chosen on dev problems",
    "weight-of-prompt-mean/best": "prompt mean, weight chosen on dev problems",
    "random_control": "random directions, norms of the learned ones",
}
DISTILLED = "learned by distillation"
# Evaluations of other vectors of the run, which stand in one table with those of the learned ones.
BESIDE = {
    "results-increments": ARMS["weight-of-increments/best"],
    "results-completion-mean": ARMS["weight-of-completion-mean/best"],
    "results-prompt-mean": ARMS["weight-of-prompt-mean/best"],
    # Made by an earlier recipe, which chose no weight.
    "results-increments-once": "increments of the completion mean, weight 1",
    "results-learn-grpo": "learned by GRPO alone",
}
# An evaluation of the two models before there were vectors.
ANSWERS = "answers"
# An evaluation of the same vectors beside a fine-tuned model that had as many steps as they: an arm, and a share of its gain.
LONGER = "results-longer"
