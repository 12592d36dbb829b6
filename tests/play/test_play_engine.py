import threading
import time

import pytest
import torch
from small_pipeline import ANSWER, TEXTS, tokenizer, trained, untrained
from transformers import AutoModelForCausalLM, Lfm2Config

from steerlift.play.engine import Answer, Engine
from steerlift.records.types import Problem
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.models import hidden_size
from steerlift.steering.vectors import SteeringVectors

LIMIT = 12
PROBLEM = Problem(TEXTS[3], ANSWER)


def vectors_of(model, size=2.0):
    return SteeringVectors({1: size * torch.randn(hidden_size(model))})


@pytest.fixture
def make_engine():
    engines = []

    def make(model, limit=LIMIT, temperature=1.0):
        sampler = LocalSampler(model, tokenizer(), vectors_of(model))
        engines.append(Engine(sampler, tokenizer(), SamplingOptions(temperature, limit)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def finished(job):
    job.future.result(timeout=60)
    return job


class Held:
    """A sampler that samples only once it is let go, as one that is busy."""

    def __init__(self, sampler):
        self.sampler = sampler
        self.begun, self.free = threading.Event(), threading.Event()

    def sample(self, *arguments):
        self.begun.set()
        assert self.free.wait(30)
        return self.sampler.sample(*arguments)


def test_answers_are_those_of_an_evaluation_and_their_tokens_spell_them(make_engine):
    engine = make_engine(trained("base"))
    job = finished(engine.answer(PROBLEM, 1.0, seed=5))
    tasks = [Task(PROBLEM, 1, 5, weight) for weight in (0.0, 1.0)]
    expected = rollouts(engine.sampler, tokenizer(), tasks, engine.options)
    assert [job.base.graded, job.steered.graded] == expected
    for answer in (job.base, job.steered):
        (completion,) = answer.graded.completions
        assert "".join(token.text for token in answer.tokens) == completion.text
        assert all(0 < token.probability <= 1 for token in answer.tokens)
    assert (job.state, job.over, job.error) == ("done", True, "")


def test_at_weight_0_both_are_the_same_answer(make_engine):
    job = finished(make_engine(trained("base")).answer(PROBLEM, 0.0, seed=5))
    assert job.base.tokens == job.steered.tokens
    assert job.base.tokens
    assert job.base.graded is job.steered.graded


def test_stopping_ends_a_job_at_its_next_token(make_engine):
    engine = make_engine(untrained(), limit=10_000)
    job = engine.answer(PROBLEM, 1.0, seed=1)
    end = time.monotonic() + 30
    while len(job.steered.tokens) < 3:
        assert time.monotonic() < end
    job.stop()
    seen = len(job.steered.tokens)
    finished(job)
    assert job.state == "stopped"
    assert len(job.steered.tokens) <= seen + 2
    assert job.steered.graded is None
    assert not any(module._forward_hooks for module in engine.sampler.model.modules())


def test_a_second_job_waits_for_the_first_and_can_be_stopped_before_its_turn(make_engine):
    engine = make_engine(trained("base"))
    engine.sampler = held = Held(engine.sampler)
    first, second, third = (engine.answer(PROBLEM, 1.0, seed) for seed in (1, 2, 3))
    assert held.begun.wait(30)
    assert [job.state for job in (first, second, third)] == ["running", "waiting", "waiting"]
    second.stop()
    assert second.state == "stopped"
    held.free.set()
    assert [finished(job).state for job in (first, third)] == ["done", "done"]


def test_a_sweep_has_a_point_per_weight_and_counts(make_engine):
    engine = make_engine(trained("base"))
    problems = [Problem(text, ANSWER) for text in TEXTS[:2]]
    job = finished(engine.sweep(problems, [0.0, 0.5], 3, seed=9))
    assert (job.finished, job.total, job.state) == (12, 12, "done")
    grades = [g for graded in rollouts(engine.sampler, tokenizer(), [Task(p, 3, 9) for p in problems], engine.options)
              for g in graded.grades]  # fmt: skip
    shares = (sum(g.correct for g in grades) / 6, sum(g.lenient_correct for g in grades) / 6)
    assert job.points[0] == (0.0, *shares)
    assert [weight for weight, _, _ in job.points] == [0.0, 0.5]


def test_a_sweep_is_stopped_too(make_engine):
    engine = make_engine(untrained(), limit=10_000)
    job = engine.sweep([PROBLEM], [0.0, 1.0], 2, seed=1)
    job.stop()
    assert job.future.cancelled() or finished(job).state == "stopped"
    assert job.over
    assert job.points == []


def test_a_model_that_says_no_tokens_as_it_goes_is_graded_all_the_same(make_engine):
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    job = finished(make_engine(AutoModelForCausalLM.from_config(config).eval()).answer(PROBLEM, 1.0, seed=1))
    assert job.state == "done"
    assert (job.base.tokens, job.steered.tokens) == ([], [])
    assert job.steered.graded.completions[0].text


def test_what_the_sampler_refuses_is_the_jobs_error(make_engine):
    engine = make_engine(trained("base"))
    engine.sampler = LocalSampler(trained("base"), tokenizer())
    job = finished(engine.answer(PROBLEM, 1.0, seed=1))
    assert job.state == "failed"
    assert job.error == "a request has a steering weight, but the sampler was given no vectors"


def test_a_bug_is_said_and_its_traceback_kept(make_engine):
    class Broken:
        def sample(self, *arguments):
            raise ZeroDivisionError

    engine = make_engine(trained("base"))
    engine.sampler = Broken()
    job = engine.answer(PROBLEM, 1.0, seed=1)
    with pytest.raises(ZeroDivisionError):
        finished(job)
    assert (job.state, job.error) == ("failed", "this is a bug of steerlift; its traceback stands in the terminal")


def test_closing_stops_what_runs_and_what_waits(make_engine):
    engine = make_engine(untrained(), limit=10_000)
    jobs = [engine.answer(PROBLEM, 1.0, seed) for seed in (1, 2)]
    engine.close()
    assert [job.state for job in jobs] == ["stopped", "stopped"]


def test_a_character_of_several_tokens_shows_when_it_is_whole():
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace")

    answer = Answer(0.0, Bytes())
    for byte in "a∑b".encode():
        answer.add(byte, -1.0)
    assert [token.text for token in answer.tokens] == ["a", "∑", "b"]
