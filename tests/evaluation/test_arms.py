import json
from collections.abc import Sequence

import pytest
import torch
from small_pipeline import ANSWER, RECIPE, TEXTS, graded_problem, tokenizer, trained

from steerlift.evaluation.arms import Arm, Gradebook, run_arms
from steerlift.records.errors import InputError
from steerlift.records.runs import Journal
from steerlift.records.types import Problem
from steerlift.sampling import kept as kept_module
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import OnDone, Request, SamplingOptions
from steerlift.steering.vectors import SteeringVectors

PROBLEMS = [Problem(text, ANSWER) for text in TEXTS[:6]]
OPTIONS = SamplingOptions(1.0, 12)
SETTINGS = {"seed": 1, "temperature": 1.0}
ARMS = [Arm("base"), Arm("steered:0.5", 0.5), Arm("steered:1.0", 1.0)]
COUNT, SEED = 3, 5


def vectors(scale: float) -> SteeringVectors:
    torch.manual_seed(1)
    return SteeringVectors({layer: scale * torch.randn(RECIPE.hidden_size) for layer in range(RECIPE.layers)})


def maker(scale: float = 0.2, batch_rows: int | None = None):
    return lambda: (LocalSampler(trained("base"), tokenizer(), vectors(scale), batch_rows), tokenizer())


def never():
    raise AssertionError("a finished stage loaded its model")


def run(book: Gradebook, make=None, arms: Sequence[Arm] = ARMS, problems: Sequence[Problem] = PROBLEMS) -> None:
    run_arms(book, make or maker(), arms, "test", problems, COUNT, OPTIONS, SEED)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "r.completions.jsonl"


@pytest.fixture
def small_writes(monkeypatch):
    """Two tasks between two writes."""
    monkeypatch.setattr(kept_module, "_LEAST_PER_WRITE", 2 * COUNT)
    monkeypatch.setattr(kept_module, "_SECONDS_PER_WRITE", 0)


class Dying:
    """A sampler that works a number of times and then is killed."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.sampler = maker()()[0]

    def sample(self, requests: Sequence[Request], options: SamplingOptions, on_done: OnDone | None = None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.sampler.sample(requests, options, on_done)


def token_ids(book: Gradebook, arm: str) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in g.completions] for g in book.graded("test", arm, len(PROBLEMS))]


def test_every_problem_is_answered_under_every_arm_and_kept(path):
    book = Gradebook.open(path, SETTINGS, overwrite=False)
    run(book)
    rows = Journal(path).read()
    assert rows[0] == {"settings": SETTINGS}
    assert [(row["split"], row["index"], row["arm"]) for row in rows[1:]] == [
        ("test", i, arm.name) for i in range(len(PROBLEMS)) for arm in ARMS
    ]
    assert all(len(row["completions"]) == COUNT for row in rows[1:])
    assert [g.problem for g in book.graded("test", "base", len(PROBLEMS))] == PROBLEMS


def test_a_book_is_read_back_as_it_was_written(path):
    book = Gradebook.open(path, SETTINGS, overwrite=False)
    run(book)
    again = Gradebook.open(path, SETTINGS, overwrite=False)
    assert list(again.done) == list(book.done)
    for key, graded in book.done.items():
        # Only the logprobs are not kept.
        assert again.done[key].to_row() == graded.to_row()
        assert again.done[key].grades == graded.grades


def test_what_is_done_loads_no_model(path):
    run(Gradebook.open(path, SETTINGS, overwrite=False))
    before = path.read_bytes()
    run(Gradebook.open(path, SETTINGS, overwrite=False), never)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("small_writes")
@pytest.mark.parametrize("times", [0, 1, 4])
def test_an_interrupted_run_goes_on_where_it_stopped(path, tmp_path, times):
    run(Gradebook.open(tmp_path / "whole.jsonl", SETTINGS, overwrite=False))
    with pytest.raises(KeyboardInterrupt):
        run(Gradebook.open(path, SETTINGS, overwrite=False), lambda: (Dying(times), tokenizer()))
    assert len(Journal(path).read()) == 1 + 2 * times
    run(Gradebook.open(path, SETTINGS, overwrite=False))
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.usefixtures("small_writes")
@pytest.mark.parametrize(("seconds", "most", "writes"), [(0, 99, 9), (1e9, 99, 2), (1e9, 4 * COUNT, 5)])
def test_a_fast_sampler_writes_seldom(path, monkeypatch, seconds, most, writes):
    monkeypatch.setattr(kept_module, "_SECONDS_PER_WRITE", seconds)
    monkeypatch.setattr(kept_module, "_MOST_PER_WRITE", most)
    sampler = Dying(writes)
    run(Gradebook.open(path, SETTINGS, overwrite=False), lambda: (sampler, tokenizer()))
    assert sampler.left == 0


def test_an_arm_added_later_adds_its_rows_only(path):
    run(Gradebook.open(path, SETTINGS, overwrite=False), arms=ARMS[:2])
    before = path.read_bytes()
    book = Gradebook.open(path, SETTINGS, overwrite=False)
    run(book)
    assert path.read_bytes().startswith(before)
    added = [json.loads(line) for line in path.read_bytes()[len(before) :].splitlines()]
    assert {row["arm"] for row in added} == {"steered:1.0"}
    assert len(added) == len(PROBLEMS)


def test_completions_do_not_depend_on_the_other_arms_or_problems_or_on_the_batch(path, tmp_path):
    together = Gradebook.open(path, SETTINGS, overwrite=False)
    run(together)
    assert len({json.dumps(token_ids(together, arm.name)) for arm in ARMS}) == 3
    for number, arm in enumerate(ARMS):
        alone = Gradebook.open(tmp_path / f"{number}.jsonl", SETTINGS, overwrite=False)
        run(alone, maker(batch_rows=2), [arm], PROBLEMS[::-1])
        assert token_ids(alone, arm.name)[::-1] == token_ids(together, arm.name)


def test_a_zero_vector_at_any_weight_gives_the_bases_completions_one_by_one(path):
    book = Gradebook.open(path, SETTINGS, overwrite=False)
    run(book, maker(scale=0.0))
    base = [g.to_row() for g in book.graded("test", "base", len(PROBLEMS))]
    for arm in ARMS[1:]:
        assert [g.to_row() for g in book.graded("test", arm.name, len(PROBLEMS))] == base
    assert len({tuple(ids) for group in token_ids(book, "base") for ids in group}) > 1


def test_other_settings_are_refused_by_name_unless_overwritten(path):
    book = Gradebook.open(path, SETTINGS, overwrite=False)
    run(book)
    before = path.read_bytes()
    changed = {"seed": 2, "temperature": 1.0, "vectors": "new"}
    with pytest.raises(InputError) as raised:
        Gradebook.open(path, changed, overwrite=False)
    assert str(raised.value) == (
        f"{path} holds completions of a run with other settings (seed, vectors); name another --output_path or pass --overwrite"
    )
    assert path.read_bytes() == before
    assert Gradebook.open(path, changed, overwrite=True).done == {}
    assert Journal(path).read() == [{"settings": changed}]


def test_a_file_of_something_else_is_refused(path):
    path.parent.mkdir()
    Journal(path).append([graded_problem(1, 2).to_row()])
    with pytest.raises(InputError, match="seed, temperature"):
        Gradebook.open(path, SETTINGS, overwrite=False)
    path.write_text('{"settings": {"seed": 1, "temperature": 1.0}}\n{"split": "test"}\n')
    with pytest.raises(InputError) as raised:
        Gradebook.open(path, SETTINGS, overwrite=False)
    assert str(path) in str(raised.value)


def test_a_beginning_cut_before_its_first_line_starts_anew(path):
    path.parent.mkdir()
    path.write_text('{"settings": {"se')
    assert Gradebook.open(path, SETTINGS, overwrite=False).done == {}
    assert Journal(path).read() == [{"settings": SETTINGS}]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write") as raised:
        Gradebook.open(tmp_path / "file" / "r.completions.jsonl", SETTINGS, overwrite=False)
    assert "\n" not in str(raised.value)
