"""The two data sets of the Hugging Face hub that steerlift knows by name: MATH and GSM8K.

Without a network the copy that an earlier run left in the hub's cache serves. `datasets` is imported here only, when asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from steerlift.problems.files import FIELDS, problem_from
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.types import Problem

HUB_NAMES: Mapping[str, tuple[str, str | None]] = {
    "math": ("nlile/hendrycks-MATH-benchmark", None),
    "gsm8k": ("openai/gsm8k", "main"),
}
"""Source to (data set, configuration)."""

PROBE_SECONDS = 10.0

# Two solutions of MATH end in an empty \boxed{}; both say that there are no such primes.
_EMPTY_IN_THE_ORIGINAL = {"train/number_theory/7115.json": "0", "train/number_theory/7117.json": "0"}


def load_from_hub(source: str, split: Literal["train", "test"]) -> list[Problem]:
    """All problems of a split of `math` or `gsm8k`, in the data set's order.

    Raises MissingInputError when the hub cannot be reached (or has no such data set) and nothing is cached.
    """
    name, _ = HUB_NAMES[source]
    convert = _math_record if source == "math" else _gsm8k_record
    problems = []
    for index, row in enumerate(_rows(source, split)):
        where = f"{name} {split} record {index}"
        problems.append(problem_from(convert(row, f"{source}/{split}/{index}", where), where))
    return problems


def _math_record(row: Mapping[str, Any], default_id: str, where: str) -> dict[str, Any]:  # noqa: ARG001
    record = {field: row[field] for field in FIELDS if field in row}
    record.setdefault("unique_id", default_id)
    if record.get("answer") == "":
        record["answer"] = _EMPTY_IN_THE_ORIGINAL.get(record["unique_id"], "")
    return record


def _gsm8k_record(row: Mapping[str, Any], default_id: str, where: str) -> dict[str, Any]:
    solution = str(row.get("answer", ""))
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise InputError(f"{where}: got an answer without ####; expected the result after it; use a local copy")
    # 1,080 is a number with its thousands marked; everything else in GSM8K is a plain integer.
    return {
        "problem": row.get("question", ""),
        "answer": answer.replace(",", ""),
        "solution": solution,
        "subject": "gsm8k",
        "unique_id": default_id,
    }


def _rows(source: str, split: str) -> list[dict[str, Any]]:
    import datasets

    name, configuration = HUB_NAMES[source]
    failure = _hub_failure(name)
    try:
        with _offline_if(failure is not None):
            rows: list[dict[str, Any]] = datasets.load_dataset(name, configuration, split=split).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(failure or error).strip().splitlines() or [type(error).__name__]
        raise MissingInputError(
            f"cannot get the data set {name} ({split}) from the Hugging Face hub ({reason[0].rstrip('.')}) and no copy of"
            f" it is cached; set STEERLIFT_DATA or --data-dir to a folder with {source}/train.jsonl.gz and"
            f" {source}/test.jsonl.gz"
        ) from error
    return rows


def _hub_failure(name: str) -> Exception | None:
    """What keeps the hub from answering, if anything does: one request, where `load_dataset` would retry for 23 s."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, as the hub's client

    try:
        HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except (HTTPError, OSError) as error:
        failure: Exception = error
        return failure
    return None


@contextmanager
def _offline_if(offline: bool) -> Iterator[None]:
    """Makes `datasets` look at its cache only, as HF_HUB_OFFLINE=1 would (which it reads once, when imported)."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = offline or before
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
