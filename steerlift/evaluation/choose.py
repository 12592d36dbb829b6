"""`steerlift choose`: training problems by how often a model solves them, as a folder of problems.

A group of completions that are all right or all wrong has no advantage, so a problem that a model always or never solves
costs a GRPO step its sampling and teaches nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerlift.evaluation.arms import Arm, Gradebook, run_arms
from steerlift.evaluation.choose_config import ChooseConfig
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.samplers import LocalModels
from steerlift.problems.files import SUFFIXES, write_problems
from steerlift.problems.load import Split, load_problems, load_worked_examples, problems_place
from steerlift.problems.prompt import few_shot_note, worked_example
from steerlift.problems.splits import carve, sample
from steerlift.records.errors import InputError
from steerlift.records.progress import say
from steerlift.records.provenance import provenance
from steerlift.records.runs import completions_path, write_json
from steerlift.records.types import Problem
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.identity import digest, identity
from steerlift.steering.models import choose_device, choose_dtype, load_config

_BASE = Arm("base")
_RECORD = "choose.json"
_FILES = ("train", "dev", "test", "examples")


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and where it is.

    `histogram` says of every number of right completions how many answered problems have it, `chosen` how many of them were
    chosen; `counts` has the answered problems and those of each file.
    """

    histogram: dict[int, int]
    chosen: dict[int, int]
    counts: dict[str, int]
    paths: list[Path]


def choose(config: ChooseConfig) -> Chosen:
    """Answers training problems and writes those chosen, with the source's dev and test problems, to a folder of problems.

    train.jsonl holds the training problems of the levels and subjects asked for that were answered and whose share of right
    completions (strict: right, and in the format) is within `success`, both ends included; in the order they were answered.
    dev.jsonl and test.jsonl hold all of those splits of these levels and subjects: they are never chosen by success, so a
    score on them is one on problems of every difficulty. Where the test split has fewer than `test_size` of them, training
    problems join it: the same for every seed, and neither they nor near copies of them are left to train on.
    examples.jsonl holds the worked examples, if there are any: they are in no other file, and `load_worked_examples` takes
    them from there, whatever the seed. choose.json tells how it was done, with every answered problem's success rate.

    With 0 completions the model is asked nothing: train.jsonl holds `train_size` training problems, solved or not.

    What was answered is kept beside it: a killed run goes on, another --success asks the model nothing again, and a larger
    --train_size only what is new.

    Raises InputError when the folder holds other problems or completions of other settings, when no problem has the levels
    and subjects, and when no problem is solved as often as asked.
    """
    if config.completions:
        load_config(config.model_name)  # a model that is not there leaves no folder behind
    _check_folder(config)
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    splits = _filtered(config, few_shot)
    asked = splits["train"][: config.train_size]
    right = _right(config, asked, few_shot, splits["train"]) if config.completions else []
    files = {
        "train": _within(config, asked, right) if config.completions else asked,
        "dev": splits["dev"],
        "test": splits["test"],
        "examples": few_shot,
    }
    for name, problems in files.items():
        if problems:
            write_problems(_file(config, name), problems)
    if not few_shot:  # those of an earlier run
        _file(config, "examples").unlink(missing_ok=True)
    record = config.output_dir / _RECORD
    counts = range(config.completions + 1 if config.completions else 0)
    all_of, taken_of = Counter(right), Counter(count for count in right if _is_within(config, count))
    result = Chosen(
        histogram={count: all_of[count] for count in counts},
        chosen={count: taken_of[count] for count in counts},
        counts={"answered": len(right), **{name: len(problems) for name, problems in files.items()}},
        paths=[*(_file(config, name) for name in files if files[name]), record, *([completions_path(record)] if right else [])],
    )
    write_json(record, _record(config, result, asked, right))
    return result


def _right(
    config: ChooseConfig, asked: Sequence[Problem], few_shot: Sequence[Problem], available: Sequence[Problem]
) -> list[int]:
    """How many completions of each problem are right; asks the model what was not asked before."""
    book = Gradebook.open(
        completions_path(config.output_dir / _RECORD), _settings(config, available, few_shot), config.overwrite
    )
    say(
        f"answering {len(asked)} of {len(available)} training problems of {config.problems} {config.completions} "
        f"time{'s' if config.completions > 1 else ''}{few_shot_note(few_shot)}; completions go to {book.journal.path}"
    )
    models = LocalModels(
        EvaluateConfig(
            base_model_name=config.model_name, device=config.device, dtype=config.dtype, batch_rows=config.batch_rows
        )
    )
    options = SamplingOptions(config.temperature, config.max_completion_length)
    make_sampler = models.sampler(config.model_name)
    run_arms(book, make_sampler, [_BASE], "train", asked, config.completions, options, config.seed, few_shot)
    models.release()
    return [sum(grade.correct for grade in g.grades) for g in book.graded("train", _BASE.name, len(asked))]


def _within(config: ChooseConfig, asked: Sequence[Problem], right: Sequence[int]) -> list[Problem]:
    """The problems that are solved as often as asked, in their order."""
    chosen = [problem for problem, count in zip(asked, right, strict=True) if _is_within(config, count)]
    if not chosen:
        low, high = config.success
        least, most = min(right) / config.completions, max(right) / config.completions
        raise InputError(
            f"--success {low} {high}: none of the {len(asked)} answered problems is solved as often, success rates go from "
            f"{least:g} to {most:g}; widen --success, take other --levels, or warm the model up (steerlift train --sft_steps)"
        )
    return chosen


def _is_within(config: ChooseConfig, right: int) -> bool:
    low, high = config.success
    return low <= right / config.completions <= high


def _filtered(config: ChooseConfig, few_shot: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Every split's problems of the levels and subjects, none of them a worked example."""

    def load(split: Split, held_out: Sequence[Problem]) -> list[Problem]:
        problems = load_problems(config.problems, split, None, config.seed, config.data_dir, held_out)
        fitting = [
            problem
            for problem in problems
            if (not config.levels or problem.level in config.levels)
            and (not config.subjects or problem.subject in config.subjects)
        ]
        if not fitting:
            raise _none_left(config, split, problems)
        return fitting

    # Worked examples are training problems, so never test problems.
    train, dev, test = load("train", few_shot), load("dev", few_shot), load("test", ())
    missing = (config.test_size or 0) - len(test)
    if missing > 0:
        joining, rest = carve(train, missing)
        if not rest:
            raise InputError(
                f"--test_size {config.test_size}: got {len(test)} test and {len(joining)} training problems of these "
                "levels and subjects; expected some left to train on; ask for fewer"
            )
        train, test = sample(rest, None, config.seed), [*test, *joining]
    return {"train": train, "dev": dev, "test": test}


def _none_left(config: ChooseConfig, split: str, problems: Sequence[Problem]) -> InputError:
    asked = [f"--levels {' '.join(map(str, config.levels))}"] if config.levels else []
    asked += [f"--subjects {' '.join(map(repr, config.subjects))}"] if config.subjects else []
    levels = ", ".join(map(str, sorted({problem.level for problem in problems if problem.level is not None})))
    subjects = ", ".join(sorted({problem.subject for problem in problems}))
    return InputError(
        f"{' '.join(asked) or '--problems'}: no {split} problem of {config.problems} is left; there are "
        f"levels {levels or '(none)'} and subjects {subjects or '(none)'}; ask for some of these"
    )


def _check_folder(config: ChooseConfig) -> None:
    """Raises InputError where problems would be lost: the source's own, or any that no earlier run has written."""
    folder, place = config.output_dir, problems_place(config.problems, config.data_dir)
    if place is not None and folder.resolve() in (place.resolve(), place.resolve().parent):
        raise InputError(f"--output_dir {folder} is where --problems {config.problems} are read; name another folder")
    record = folder / _RECORD
    ours = SUFFIXES[:1] if record.exists() or completions_path(record).exists() else ()
    found = [folder / f"{name}{ending}" for name in _FILES for ending in SUFFIXES if ending not in ours]
    others = [path.name for path in found if path.exists()]
    if others:
        raise InputError(
            f"--output_dir {folder} holds {others[0]}, which `steerlift choose` has not written; name another folder"
        )


def _file(config: ChooseConfig, name: str) -> Path:
    return config.output_dir / f"{name}{SUFFIXES[0]}"


def _settings(config: ChooseConfig, available: Sequence[Problem], few_shot: Sequence[Problem]) -> dict[str, Any]:
    """What completions depend on: two runs with the same settings share them, so --success can be changed later.

    The first of the available problems are asked, so more of them can be later, too.
    """
    device = choose_device(config.device)
    return {
        "model": identity(config.model_name),
        "problems": digest(f"{problem.problem}\0{problem.answer}" for problem in available),
        "few_shot": digest(f"{example.problem}\0{worked_example(example)}" for example in few_shot),
        "completions": config.completions,
        "max_completion_length": config.max_completion_length,
        "temperature": config.temperature,
        "seed": config.seed,
        "dtype": str(choose_dtype(config.dtype, device)).removeprefix("torch."),
    }


def _record(config: ChooseConfig, result: Chosen, asked: Sequence[Problem], right: Sequence[int]) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name != "overwrite"}
    return {
        "counts": result.counts,
        "completions_per_problem": config.completions,
        "histogram": result.histogram,
        "success_rates": _rates(asked, [count / config.completions for count in right]) if right else {},
        "completions_file": completions_path(config.output_dir / _RECORD).name if right else None,
        "settings": {**settings, "output_dir": str(config.output_dir)},
        "provenance": provenance(model=config.model_name, seed=config.seed, device=str(choose_device(config.device))),
    }


def _rates(asked: Sequence[Problem], rates: Sequence[float]) -> Mapping[str, float]:
    """By unique_id, or by the text of a problem that has none of its own."""
    count = Counter(problem.unique_id for problem in asked)
    names = [p.unique_id if p.unique_id and count[p.unique_id] == 1 else p.problem for p in asked]
    return dict(zip(names, rates, strict=True))
