import pytest
from small_pipeline import GOOD, UNTAGGED, WRONG, tokenizer, trained

from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import render_prompt
from steerlift.records.types import Completion, GradedProblem, Problem
from steerlift.sampling import rollouts as rollouts_module
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import SampledProblem, Task, grade_sampled, prompt_ids, rollouts, sample_tasks
from steerlift.sampling.sampler import SamplingOptions

OPTIONS = SamplingOptions(1.0, 12)


class Watched:
    """A sampler that remembers what it was asked."""

    def __init__(self) -> None:
        self.sampler = LocalSampler(trained("base"), tokenizer())
        self.requests = []

    def sample(self, requests, options, on_done=None):
        self.requests.extend(requests)
        return self.sampler.sample(requests, options, on_done)


def tasks(count: int = 3) -> list[Task]:
    return [Task(problem, 2 + index, seed=5) for index, problem in enumerate(load_problems("embedded", "test", count))]


def test_rollouts_are_sampled_and_graded_in_the_order_of_the_tasks():
    done = []
    graded = rollouts(Watched(), tokenizer(), tasks(), OPTIONS, done.append)
    sampled = sample_tasks(Watched(), tokenizer(), tasks(), OPTIONS)
    assert graded == grade_sampled(sampled)
    assert [(g.problem, len(g.completions)) for g in graded] == [(task.problem, task.count) for task in tasks()]
    assert [s.prompt for s in sampled] == [render_prompt(tokenizer(), task.problem.problem) for task in tasks()]
    assert sum(done) == 9


def test_sampling_alone_grades_nothing(monkeypatch):
    monkeypatch.setattr(rollouts_module, "grade_all", None)
    sampled = sample_tasks(Watched(), tokenizer(), tasks(), OPTIONS)
    assert all(isinstance(s, SampledProblem) for s in sampled)


def test_every_completion_gets_its_own_grade():
    texts = [[GOOD], [WRONG, GOOD, UNTAGGED], [], [WRONG]]
    sampled = [
        SampledProblem(Problem(str(number), "7"), "?", tuple(Completion((1,), (), text, False) for text in group))
        for number, group in enumerate(texts)
    ]
    graded = grade_sampled(sampled)
    assert [[(grade.correct, grade.lenient_correct) for grade in g.grades] for g in graded] == [
        [(True, True)], [(False, False), (True, True), (False, True)], [], [(False, False)],
    ]  # fmt: skip
    assert [(g.problem, g.prompt, g.completions) for g in graded] == [(s.problem, s.prompt, s.completions) for s in sampled]
    assert grade_sampled([]) == []


def test_a_row_is_that_of_a_graded_problem_without_the_grades():
    (sampled,) = sample_tasks(Watched(), tokenizer(), tasks(1), OPTIONS)
    (graded,) = grade_sampled([sampled])
    row = graded.to_row()
    for completion in row["completions"]:
        for grade in ("extracted_answer", "format_ok", "correct", "lenient_correct"):
            del completion[grade]
    assert sampled.to_row() == row
    with pytest.raises(KeyError):
        GradedProblem.from_row(sampled.to_row())


def test_worked_examples_stand_before_every_problem_and_leave_the_random_numbers_alone():
    few_shot = load_worked_examples("embedded", 2)
    without, shown = Watched(), Watched()
    rollouts(without, tokenizer(), tasks(), OPTIONS)
    graded = rollouts(shown, tokenizer(), tasks(), OPTIONS, few_shot=few_shot)
    expected = [render_prompt(tokenizer(), task.problem.problem, few_shot=few_shot) for task in tasks()]
    assert [g.prompt for g in graded] == expected
    assert [request.prompt_ids for request in shown.requests] == [prompt_ids(tokenizer(), prompt) for prompt in expected]
    assert all(example.solution in g.prompt for g in graded for example in few_shot)
    assert [request.seeds for request in shown.requests] == [request.seeds for request in without.requests]
