"""Learned vectors: only they move, what is saved is what was trained, and a run goes on where it stopped."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import training_rewards
from asked import asked_from_here_on
from launched import launch
from small_pipeline import saved, trained
from training_runs import assert_close_tensors, assert_same_tensors, metrics, read

from steerlift.extraction.config import ExtractConfig
from steerlift.extraction.extract import extract
from steerlift.problems.load import load_problems
from steerlift.problems.separation import check_unseen
from steerlift.records.errors import InputError, SteerliftError
from steerlift.records.runs import Journal
from steerlift.steering.apply import steer
from steerlift.steering.identity import digest, identity
from steerlift.steering.models import load_model
from steerlift.steering.trainable import TrainableVectors, scale_of
from steerlift.steering.vectors import SteeringVectors
from steerlift.training.batch import pack
from steerlift.training.checkpoints import checkpoint_path, load_training_state, saved_steps, vectors_path
from steerlift.training.distill import DistillTrainer, distill_loss
from steerlift.training.head import Head, chunked_kl
from steerlift.training.learn import learn, learned_path
from steerlift.training.learn_config import LearnConfig
from steerlift.training.train import train

CPU = torch.device("cpu")
IDS = torch.arange(2, 42).view(4, 10)


@pytest.fixture(scope="session")
def models(prepared):
    saved(prepared / "finetuned", trained("finetuned"))
    return prepared


@pytest.fixture
def distilling(config, models) -> LearnConfig:
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    return LearnConfig(
        **{**given, "learning_rate": 0.1, "weight_decay": 0.0, "adam_beta2": 0.99},
        finetuned_checkpoint=str(models / "finetuned"),
    )


@pytest.fixture
def earning(distilling) -> LearnConfig:
    return replace(distilling, objective="grpo", finetuned_checkpoint=None)


def base_model(models):
    return load_model(str(models / "base"), CPU, torch.float32)


def checkpoint_vectors(config, step) -> dict[str, torch.Tensor]:
    return {f"{i}": v for i, v in SteeringVectors.load(vectors_path(checkpoint_path(config.output_dir, step))).layers.items()}


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("tokens", [1, 300])
def test_the_chunked_kl_is_torchs(cap, tokens):
    generator = torch.Generator().manual_seed(0)
    hidden_NH, teacher_NH = (torch.randn(tokens, 8, generator=generator, dtype=torch.float64).float() for _ in range(2))
    hidden_NH.requires_grad_()
    weights_N = torch.rand(tokens, generator=generator)
    # So large a vocabulary that 300 tokens take several chunks.
    heads = [Head(torch.randn(50_000, 8, generator=generator), None, cap, 0.5) for _ in range(2)]

    def logprobs(states_NH, head, temperature):
        logits_NV = states_NH @ head.weight_VH.T * head.scale
        return ((cap * torch.tanh(logits_NV / cap) if cap else logits_NV) / temperature).log_softmax(-1)

    expected_N = torch.nn.functional.kl_div(
        logprobs(hidden_NH, heads[0], 0.7), logprobs(teacher_NH, heads[1], 0.4), reduction="none", log_target=True
    ).sum(-1)
    (expected_NH,) = torch.autograd.grad(3 * (expected_N * weights_N).sum(), hidden_NH)
    loss = chunked_kl(hidden_NH, heads[0], 0.7, teacher_NH, heads[1], 0.4, weights_N)
    (3 * loss).backward()
    torch.testing.assert_close(loss, (expected_N * weights_N).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden_NH.grad, expected_NH, rtol=1e-4, atol=1e-5)


def test_vectors_in_training_are_added_as_steer_adds_them(models):
    model, generator = base_model(models), torch.Generator().manual_seed(0)
    start = {layer: torch.randn(32, generator=generator) for layer in (0, 1)}
    vectors = TrainableVectors(start, {0: 0.5, 1: 4.0}, {"method": "test"})
    with steer(model, SteeringVectors(start), 1.0), torch.no_grad():
        expected = model(IDS).logits
    vectors.attach(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["steering_vectors.directions_LH"]
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert_same_tensors(
        {str(i): v for i, v in vectors.vectors().layers.items()}, {str(i): v for i, v in start.items()}
    )  # scales are powers of two: nothing is rounded
    assert torch.equal(TrainableVectors.resumed(vectors.vectors()).directions_LH, vectors.directions_LH)


def test_scales_are_powers_of_two_near_the_root_mean_square():
    assert [scale_of(norm, 4) for norm in (2.0, 2.7, 3.0, 0.5)] == [1.0, 1.0, 2.0, 0.25]
    assert scale_of(0.0, 4) == 1.0


def test_the_gradient_of_the_distillation_is_that_of_a_small_step(models):
    model, finetuned = base_model(models), load_model(str(models / "finetuned"), CPU, torch.float32)
    vectors = TrainableVectors({0: torch.zeros(32), 1: torch.zeros(32)}, {0: 1.0, 1: 2.0}, {})
    vectors.attach(model)
    batch = pack([(5, 6, 7), (8, 9)], [(10, 11), (12,)], torch.ones(2), torch.full((2, 2), 0.5), CPU)
    loss = distill_loss(finetuned, 0.9, 0.5)
    loss(model, batch).loss.backward()
    slope_LH, size = vectors.directions_LH.grad, 1e-2
    direction_LH = slope_LH / slope_LH.norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            vectors.directions_LH.copy_(sign * size * direction_LH)
            values.append(float(loss(model, batch).loss))
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(float(slope_LH.norm()), rel=1e-2)


def test_distilled_vectors_make_the_base_like_the_finetuned_model(distilling, models):
    learned = learn(replace(distilling, num_train_iters=25, save_every=25, eval_every=25))
    kls = [row["kl"] for row in metrics(distilling.output_dir)]
    assert kls[-1] < 0.6 * kls[0]
    assert learned.layers.keys() == {0, 1}
    assert learned.metadata["method"] == "learned by distill"
    summary = read(distilling.output_dir / "eval_summary.json")
    assert summary["25"]["pass_at_2"] > summary["0"]["pass_at_2"]
    # The file does what the training did: a saved checkpoint is the vectors, and nothing else was written of the model.
    assert {path.name for path in checkpoint_path(distilling.output_dir, 25).iterdir()} == {
        "vectors.safetensors",
        "training_state.safetensors",
    }


def test_only_vectors_are_trained_and_kept_by_the_optimizer(earning, models):
    learn(earning)
    state = load_training_state(earning.output_dir, 3)
    assert {name.split("|")[0] for name in state} == {"model.steering_vectors.directions_LH"}
    assert metrics(earning.output_dir)[0]["grad_norm"] > 0
    assert any(bool(v.any()) for v in checkpoint_vectors(earning, 3).values())


@pytest.mark.parametrize("objective", ["distill", "grpo"])
def test_an_interrupted_run_goes_on_to_the_same_end(objective, distilling, earning, tmp_path, monkeypatch):
    monkeypatch.setattr(training_rewards, "calls", [])
    config = distilling if objective == "distill" else replace(earning, rewards=("training_rewards:interrupted",))
    if objective == "distill":
        learn(replace(config, num_train_iters=2, warmup_percent=0.0, final_lr_percent=1.0))
        config = replace(config, warmup_percent=0.0, final_lr_percent=1.0)
    else:
        with pytest.raises(KeyboardInterrupt):
            learn(config)
        training_rewards.calls.extend([None] * 7)
    assert saved_steps(config.output_dir) == [2]
    config_again = replace(config, resume=True)
    if objective == "distill":
        with pytest.raises(InputError, match="warmup_percent"):
            learn(replace(config_again, warmup_percent=0.5))
    learn(config_again)
    whole = replace(config, output_dir=tmp_path / "whole")
    learn(whole)
    assert metrics(config.output_dir) == metrics(whole.output_dir)
    assert_same_tensors(checkpoint_vectors(config, 3), checkpoint_vectors(whole, 3))
    assert_same_tensors(load_training_state(config.output_dir, 3), load_training_state(whole.output_dir, 3))


def test_it_begins_with_given_vectors_on_the_layers_asked_for(distilling, models, tmp_path):
    extracted = extract(
        ExtractConfig(
            base_model_name=str(models / "base"),
            finetuned_checkpoint=str(models / "finetuned"),
            output_path=tmp_path / "start.safetensors",
            problems=distilling.problems,
            max_completion_length=12,
        )
    ).vectors
    learned = learn(
        replace(
            distilling,
            start_vectors=tmp_path / "start.safetensors",
            start_weight=0.5,
            layers="1",
            num_train_iters=1,
            learning_rate=1e-9,
        )
    )
    assert list(learned.layers) == [1]
    torch.testing.assert_close(learned.layers[1], 0.5 * extracted.layers[1], rtol=1e-4, atol=1e-6)
    assert learned.metadata["method"] == "learned by distill, from mean_difference x 0.5"


def test_vectors_know_what_they_were_learned_from(distilling):
    learned = learn(replace(distilling, num_train_iters=1))
    problems = load_problems(distilling.problems, "train", distilling.train_size, distilling.seed)
    with pytest.raises(InputError, match="were used to make or choose it"):
        check_unseen(learned.metadata, problems, "vectors")
    check_unseen(learned.metadata, load_problems(distilling.problems, "test"), "vectors")


def test_every_completion_to_learn_from_is_sampled_once(distilling):
    learn(replace(distilling, num_train_iters=8))  # 24 problems of 20: some twice
    _, *rows = Journal(distilling.output_dir / "finetuned_completions.jsonl").read()
    assert len(rows) == len({row["problem"]["problem"] for row in rows}) == 20
    learn(replace(distilling, overwrite=True))
    header, *rows = Journal(distilling.output_dir / "finetuned_completions.jsonl").read()
    assert header == {
        "settings": {
            "finetuned_model": identity(distilling.finetuned_checkpoint),
            "completions": distilling.finetuned_completions,
            "few_shot": digest([]),
            "max_completion_length": distilling.max_completion_length,
            "temperature": distilling.temperature,
            "seed": distilling.seed,
            "dtype": "float32",
        }
    }
    texts = [row["problem"]["problem"] for row in rows]
    assert len(texts) == len(set(texts)) == 9  # three steps of three problems
    assert all(len(row["completions"]) == distilling.finetuned_completions for row in rows)


def test_a_run_stopped_before_its_first_checkpoint_keeps_what_it_has_sampled(distilling, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    resumed = replace(distilling, resume=True)
    with monkeypatch.context() as stopped:
        stopped.setattr(DistillTrainer, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(resumed)
    asked = asked_from_here_on(monkeypatch)
    vectors = learn(resumed)
    assert asked == []
    whole = learn(replace(distilling, overwrite=True))
    assert len(asked) == 9, "without --resume they are sampled anew"
    assert_same_tensors(vectors.layers, whole.layers)


def test_completions_of_an_extraction_are_not_sampled_again(distilling, models, tmp_path, monkeypatch, capsys):
    extracting = ExtractConfig(
        base_model_name=str(models / "base"),
        finetuned_checkpoint=str(models / "finetuned"),
        output_path=tmp_path / "extracted.safetensors",
        problems=distilling.problems,
        train_size=6,
        seed=distilling.seed,
        temperature=distilling.temperature,
        max_completion_length=distilling.max_completion_length,
    )
    extract(extracting)
    alone = replace(distilling, finetuned_completions=1)
    asked = asked_from_here_on(monkeypatch)
    vectors = learn(replace(alone, reuse=extracting.output_path))
    taken = 9 - len(asked)
    assert 0 < taken <= 6
    assert f"{taken} completions are those of {extracting.output_path}\n" in capsys.readouterr().err
    assert_same_tensors(vectors.layers, learn(replace(alone, overwrite=True)).layers)
    elsewhere = replace(alone, reuse=extracting.output_path, output_dir=tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"other settings \(completions, temperature\)"):
        learn(replace(elsewhere, finetuned_completions=2, finetuned_temperature=0.5))
    assert not elsewhere.output_dir.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetuned_checkpoint": None}, "name it with --finetuned_checkpoint"),
        ({"objective": "grpo"}, "leave --finetuned_checkpoint out"),
        ({"objective": "grpo", "finetuned_checkpoint": None, "reuse": "v.json"}, "--objective grpo learns from no fine-tuned"),
        ({"reuse": Path("nowhere.json")}, "--reuse nowhere.json: no nowhere.completions.jsonl"),
        ({"lora_r": 4}, "--lora_r is about a model's weights"),
        ({"num_train_iters": 0}, "--num_train_iters 0: expected at least 1"),
        ({"num_train_iters": 0, "sft_steps": 2}, "--sft_steps is about a model's weights"),
        ({"layers": "0-5"}, "got layer 5, the model has 0 to 1"),
        ({"layers": "all"}, "expected runs of layers"),
        ({"finetuned_completions": 0}, "--finetuned_completions 0: expected at least 1"),
        ({"start_vectors": "nowhere.safetensors"}, "no such file"),
    ],
)
def test_what_cannot_be_learned_is_refused(changes, message, distilling):
    with pytest.raises(SteerliftError, match=message):
        learn(replace(distilling, **changes))
    assert not distilling.output_dir.exists()


def test_a_run_of_weights_is_not_gone_on_with(config, distilling, models):
    train(config)
    with pytest.raises(InputError, match="is a run with other options"):
        learn(replace(distilling, resume=True))


@pytest.mark.e2e
def test_the_command_line_learns_and_says_where(distilling, models):
    command = ["-m", "steerlift", "learn"]
    options = {
        "base_model_name": models / "base",
        "finetuned_checkpoint": models / "finetuned",
        "problems": distilling.problems,
        "output_dir": distilling.output_dir,
        "num_train_iters": 2,
        "max_completion_length": 12,
        "train_size": 20,
        "eval_size": 4,
        "num_completions_eval": 2,
        "gradient_accumulation_steps": 3,
    }
    done = launch(*command, *[part for name, value in options.items() for part in (f"--{name}", str(value))])
    assert done.returncode == 0, done.stderr
    assert f"wrote {learned_path(distilling.output_dir)}" in done.stdout
    assert json.loads((distilling.output_dir / "config.json").read_text())["objective"] == "distill"
    refused = launch(*command, "--base_model_name", str(models / "base"))
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: --objective distill learns from a fine-tuned model")


@pytest.mark.e2e
@pytest.mark.parametrize("objective", ["distill", "grpo"])
def test_two_processes_learn_what_one_does(objective, distilling, earning):
    config = distilling if objective == "distill" else earning
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "steerlift", "learn")
    options = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if getattr(config, field.name) not in (field.default, None, False)
    }
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in options.items()}
    done = launch(*command, *[part for name, parts in values.items() for part in (f"--{name}", *map(str, parts))])
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    alone = replace(config, output_dir=config.output_dir.with_name("alone"))
    learn(alone)
    for step in (2, 3):
        assert_close_tensors(checkpoint_vectors(config, step), checkpoint_vectors(alone, step), 1e-4)
