"""`load_problems`: a seeded sample of the train, dev or test split of MATH, GSM8K, a file of problems or the embedded ones.

`load_worked_examples`: training problems to be shown, solved, before each problem.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from steerlift.problems.embedded import embedded_problems
from steerlift.problems.files import SUFFIXES, read_problems
from steerlift.problems.hub import HUB_NAMES, load_from_hub
from steerlift.problems.prompt import clean_solution
from steerlift.problems.splits import carve, distinct, sample, without
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.progress import say
from steerlift.records.types import Problem

Split = Literal["train", "dev", "test"]

DATA_VARIABLE = "STEERLIFT_DATA"
DEV_SHARE = 0.1
DEV_LIMIT = 500
TEST_SHARE = 0.2  # only where one file has to give all three splits

LONGEST_SOLUTION = 400
"""Most characters of a worked example's solution: every prompt carries all of them."""


def load_problems(
    source: str = "math",
    split: Split = "train",
    size: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    held_out: Sequence[Problem] = (),
) -> list[Problem]:
    """`size` problems of a split (all when None) in a seeded order; the same everywhere for the same arguments.

    Args:
        source: `math`, `gsm8k`, `embedded`, or the path of a .jsonl(.gz) file or of a folder with `train` and `test`
            files (and optionally `dev`). A path may also be relative to `data_dir` or to $STEERLIFT_DATA.
        split: No problem text stands in two splits, whatever the seeds. Test is the test file; train is the train file
            less test; dev, where it has no file, is carved out of train by hash (10 %, at most 500). A single file is
            divided by hash: 20 % test, 10 % dev, the rest train. What a folder's `examples` file holds is in neither train
            nor dev: it is kept for `load_worked_examples`.
        size: A size beyond what there is returns all there is (the original asks 12,000 of MATH; 11,497 are left).
        seed: Which problems are taken, and their order. A smaller size gives the beginning of a larger one.
        data_dir: A folder with `<source>/train.jsonl.gz` and so on, or with the files themselves, instead of
            $STEERLIFT_DATA. Without either, `math` and `gsm8k` come from the Hugging Face hub.
        held_out: Problems to leave out, and near copies of them: training problems that are worked examples.

    Raises InputError for a wrong argument or record, MissingInputError for a missing file or an unreachable hub.
    """
    if split not in get_args(Split):
        raise InputError(f"split: got {split!r}; expected one of {', '.join(get_args(Split))}")
    if size is not None and size < 1:
        raise InputError(f"size: got {size}; expected at least 1, or none for every problem of the split")
    if source == "embedded":
        if data_dir is not None:
            raise InputError(f"data_dir: got {data_dir} with the embedded problems, which need no data; leave one out")
        problems = embedded_problems(split)
    else:
        problems = _split(source, split, data_dir)
    if held_out:
        problems = without(problems, held_out)
        if not problems:
            raise InputError(
                f"held_out: got {len(held_out)} problem(s) that leave no {split} problem of {source}; expected some to be"
                " left; hold out fewer (a lower few_shot)"
            )
    return sample(problems, size, seed)


def load_worked_examples(
    source: str = "math", count: int = 0, seed: int = 0, data_dir: str | Path | None = None
) -> list[Problem]:
    """The first `count` problems of the seeded training sample that have a solution of at most LONGEST_SOLUTION characters.

    Of a folder with an `examples` file (.jsonl or .jsonl.gz) they are instead the first `count` of that file, in its order,
    that have a solution: the same whatever the seed, and however few training problems are left in the folder. One that is
    (nearly) a test problem is left out. `steerlift choose` writes such a file.

    They are what `render_prompt` takes as `few_shot`; give them to load_problems as `held_out` to train on other problems.
    Raises InputError for a count below 0 or when there are fewer, and what load_problems raises.
    """
    if count < 0:
        raise InputError(f"few_shot: got {count}; expected at least 0")
    if count == 0:
        return []
    place = problems_place(source, data_dir)
    file = _examples_file(place)
    if place is not None and file is not None:
        return _first_examples(source, place, file, count)
    problems = load_problems(source, "train", None, seed, data_dir)
    worked = [problem for problem in problems if 0 < len(clean_solution(problem)) <= LONGEST_SOLUTION]
    if len(worked) < count:
        raise InputError(
            f"few_shot: got {len(worked)} training problem(s) of {source} with a solution of at most {LONGEST_SOLUTION}"
            f" characters; expected at least {count}; ask for fewer or add solutions"
        )
    return worked[:count]


def problems_place(source: str, data_dir: str | Path | None = None) -> Path | None:
    """The file or folder that `source` means; None for the hub and the embedded problems, which have none.

    Raises MissingInputError where there should be one and is not.
    """
    if source == "embedded":
        return None
    root = Path(data_dir).expanduser() if data_dir is not None else _environment_folder()
    if root is not None and not root.is_dir():
        name = "data_dir" if data_dir is not None else f"${DATA_VARIABLE}"
        raise MissingInputError(f"{name}: got {root}, which is not a folder; expected one with {source}/train.jsonl.gz")
    if source in HUB_NAMES:
        return _named_place(source, root) if root else None
    candidates = [root / source] if root else []
    if data_dir is None:
        candidates.insert(0, Path(source).expanduser())
    for candidate in candidates:
        if candidate.is_dir() or (candidate.is_file() and candidate.name.endswith(SUFFIXES)):
            return candidate
    raise MissingInputError(
        f"source: got {source!r}, and there is no {' or '.join(map(str, candidates))}; expected math, gsm8k, embedded,"
        f" or an existing {' or '.join(SUFFIXES)} file or folder of such files"
    )


def _first_examples(source: str, folder: Path, file: Path, count: int) -> list[Problem]:
    # A test problem that every prompt shows solved would be no test.
    examples = _pool(source, read_problems(file), _records(source, folder, "test"))
    worked = [example for example in examples if clean_solution(example)]
    if len(worked) < count:
        raise InputError(
            f"few_shot: got {len(worked)} problem(s) with a solution in {file}; expected at least {count};"
            " ask for fewer or add solutions"
        )
    return worked[:count]


def _split(source: str, split: Split, data_dir: str | Path | None) -> list[Problem]:
    place = problems_place(source, data_dir)
    if place is not None and place.is_file():
        return _split_of_file(place, split)
    if split == "test":
        return _pool(source, _records(source, place, "test"))
    held_out = _records(source, place, "test")
    examples_file = _examples_file(place)
    if examples_file is not None:
        held_out = held_out + read_problems(examples_file)
    dev_file = _file(place, "dev") if place else None
    if dev_file is None:
        dev, train = _carved(_pool(source, _records(source, place, "train"), held_out), str(place or source))
        return dev if split == "dev" else train
    dev = _pool(source, read_problems(dev_file), held_out)
    return dev if split == "dev" else _pool(source, _records(source, place, "train"), held_out + dev)


def _split_of_file(path: Path, split: Split) -> list[Problem]:
    problems = _pool(str(path), read_problems(path))
    test, pool = carve(problems, max(1, round(TEST_SHARE * len(problems))))
    dev, train = carve(pool, max(1, round(DEV_SHARE * len(problems))))
    if not train:
        raise InputError(
            f"{path}: got {len(problems)} different problem(s); expected at least 3 for train, dev and test; add some"
        )
    return {"train": train, "dev": dev, "test": test}[split]


def _carved(pool: list[Problem], where: str) -> tuple[list[Problem], list[Problem]]:
    dev, train = carve(pool, max(1, min(DEV_LIMIT, int(DEV_SHARE * len(pool)))))
    if not train:
        raise InputError(
            f"{where}: got {len(pool)} training problem(s) that are not in test; expected at least 2, as dev is carved"
            " out of train; add some"
        )
    return dev, train


def _pool(source: str, problems: list[Problem], held_out: Sequence[Problem] = ()) -> list[Problem]:
    """The distinct problems that are not held out; says how many that leaves out."""
    once = distinct(problems)
    pool = without(once, held_out)
    repeated, leaked = len(problems) - len(once), len(once) - len(pool)
    if repeated or leaked:
        say(
            f"{source}: {repeated + leaked} of {len(problems)} records left out"
            f" ({repeated} with another's text, {leaked} with the text, or nearly, of a held-out problem)"
        )
    return pool


def _records(source: str, place: Path | None, split: Literal["train", "test"]) -> list[Problem]:
    if place is None:
        return load_from_hub(source, split)
    path = _file(place, split)
    if path is None:
        raise MissingInputError(
            f"{place}: no {split} file; expected {split}.jsonl or {split}.jsonl.gz beside its counterpart;"
            " add it, or name a single file, which is divided into splits"
        )
    return read_problems(path)


def _examples_file(place: Path | None) -> Path | None:
    return _file(place, "examples") if place is not None and place.is_dir() else None


def _file(folder: Path, split: str) -> Path | None:
    found = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise InputError(f"{folder}: got both {found[0].name} and {found[1].name}; expected one of them; remove the other")
    return found[0] if found else None


def _named_place(source: str, root: Path) -> Path:
    if (root / source).is_dir():
        return root / source
    if _file(root, "train") or _file(root, "test"):
        return root
    raise MissingInputError(
        f"{root}: no {source} problems; expected {source}/train.jsonl.gz and {source}/test.jsonl.gz, or train and test"
        " files, in it; name another folder"
    )


def _environment_folder() -> Path | None:
    value = os.environ.get(DATA_VARIABLE, "")
    return Path(value).expanduser() if value else None
