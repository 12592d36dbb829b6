"""Clip rate, KL and entropy of a step, one token at a time by their formulas."""

from dataclasses import replace

import pytest
import torch
from small_pipeline import tokenizer, trained
from training_runs import completions, metrics

from steerlift.sampling.rollouts import prompt_ids
from steerlift.steering.models import load_model
from steerlift.training.checkpoints import checkpoint_path
from steerlift.training.train import train


def log_softmax(model, row, answer, temperature) -> torch.Tensor:
    """Of every token of a completion, shape (tokens, vocabulary), float64."""
    prompt = prompt_ids(tokenizer(), row["prompt"])
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer["token_ids"]]])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


def chosen(model, row, answer, temperature) -> list[float]:
    logprobs = log_softmax(model, row, answer, temperature)
    return [float(logprobs[place, token]) for place, token in enumerate(answer["token_ids"])]


def test_kl_and_entropy_are_those_of_the_formulas(config):
    config = replace(config, beta=0.1, temperature=0.8, learning_rate=1e-2, warmup_percent=0.0, save_every=1)
    train(config)
    for step, line in enumerate(metrics(config.output_dir), start=1):
        policy = trained("base") if step == 1 else load(config, step - 1)
        kl, entropy = [], []
        for row in completions(config.output_dir, step):
            for answer in row["completions"]:
                distribution = log_softmax(policy, row, answer, 0.8)
                entropy += (-(distribution.exp() * distribution).sum(-1)).tolist()
                pairs = zip(chosen(policy, row, answer, 0.8), chosen(trained("base"), row, answer, 0.8), strict=True)
                kl += [float(torch.tensor(ref - new, dtype=torch.float64).exp() - (ref - new) - 1) for new, ref in pairs]
        assert line["entropy"] == pytest.approx(sum(entropy) / len(entropy), rel=1e-4)
        assert line["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-7)
        assert line["clip_rate"] == 0
    assert line["kl"] > 1e-2


@pytest.mark.e2e
@pytest.mark.parametrize("mask_truncated", [False, True])
def test_the_clip_rate_counts_the_tokens_that_the_second_update_leaves_alone(config, tmp_path, mask_truncated):
    # The first update of a batch is that of a run with one update of each.
    once = {"num_train_iters": 1, "learning_rate": 2e-2, "warmup_percent": 0.0, "num_chains": 8, "max_completion_length": 5}
    config = replace(config, **once, epsilon_low=0.1, epsilon_high=0.3, mask_truncated=mask_truncated)
    train(replace(config, num_iterations=2))
    train(replace(config, output_dir=tmp_path / "once"))
    first = load(replace(config, output_dir=tmp_path / "once"), 1)
    clipped, tokens = 0, 0
    for row in completions(config.output_dir):
        mean = sum(row["rewards"]) / len(row["rewards"])
        for answer, reward in zip(row["completions"], row["rewards"], strict=True):
            if len(set(row["rewards"])) == 1 or (mask_truncated and answer["truncated"]):
                continue
            for new, old in zip(chosen(first, row, answer, 1.0), chosen(trained("base"), row, answer, 1.0), strict=True):
                ratio = float(torch.tensor(new - old, dtype=torch.float64).exp())
                tokens += 2  # of both updates
                clipped += ratio > 1.3 if reward > mean else ratio < 0.9
    (line,) = metrics(config.output_dir)
    assert clipped > 5
    assert line["clip_rate"] == pytest.approx(clipped / tokens, abs=1e-9)
    assert metrics(tmp_path / "once")[0]["clip_rate"] == 0


def load(config, step: int):
    return load_model(str(checkpoint_path(config.output_dir, step)), torch.device("cpu"), torch.float32)
