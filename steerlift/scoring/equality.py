r"""Whether a predicted answer equals the known one.

As text and as plain numbers first (microseconds), by math-verify in a killable process only where that does not decide
(milliseconds). No answer is ever evaluated as Python, none can hang the caller, and none raises.

The comparison is not symmetric: the gold answer says what is asked for. `x = 5` is answered by `5`; a gold set by that set.
"""

import os
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from steerlift.records.errors import InputError
from steerlift.scoring.notation import all_text, key, tidy, ungrouped
from steerlift.scoring.numerals import compare_numerals
from steerlift.scoring.pool import WorkerLostError, WorkerPool
from steerlift.scoring.units import split_unit, units_conflict

DEFAULT_TIMEOUT_SECONDS = 2.0
# A longer answer is compared as it stands: nothing in MATH or GSM8K comes near.
MAX_ANSWER_CHARACTERS = 10_000

_BASE = re.compile(r"([+-]?[0-9]+)_\{?([0-9]+)\}?")
_WORD = re.compile(r"[A-Za-z]{2}")
_LONG_WORD = re.compile(r"[A-Za-z]{4}")
_TIME_OF_DAY = re.compile(r"[0-9]{1,2}(?::[0-9]{2})? ?[ap]\.? ?m", re.IGNORECASE)
_CAPITALS = re.compile(r"[A-Z]{3,}")

_pool: WorkerPool | None = None
_pool_lock = threading.Lock()


def is_equal(gold: str, predicted: str, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
    """Whether `predicted` is as good an answer as `gold`. Safe from any thread.

    `timeout` is in seconds; a comparison that takes longer, or that breaks its worker, counts as not equal. Raises
    InputError for a timeout that is not positive and CheckerError when no worker can be started.
    """
    _check_timeout(timeout)
    decided = compare_as_text(gold, predicted)
    return decided if isinstance(decided, bool) else _ask_or_lose(decided, timeout)


def are_equal(pairs: Sequence[tuple[str, str]], timeout: float = DEFAULT_TIMEOUT_SECONDS) -> list[bool]:
    """`is_equal` for every (gold, predicted), in order; equal pairs are compared once, and all workers share the work."""
    _check_timeout(timeout)
    decided = {pair: compare_as_text(*pair) for pair in set(pairs)}
    hard = sorted({found for found in decided.values() if not isinstance(found, bool)})
    verdicts = dict(zip(hard, _ask_all(hard, timeout), strict=True))
    return [found if isinstance(found := decided[pair], bool) else verdicts[found] for pair in pairs]


def compare_as_text(gold: str, predicted: str) -> bool | tuple[str, str]:
    """The verdict where text and plain numbers decide it; otherwise the two tidy answers that math-verify should compare."""
    if gold == predicted or gold.strip() == predicted.strip():
        return True
    if max(len(gold), len(predicted)) > MAX_ANSWER_CHARACTERS:
        return False
    equal = compare_numerals(gold, predicted)
    if equal is not None:
        return equal
    return _compare_tidy(tidy(gold), tidy(predicted))


def _compare_tidy(gold: str, predicted: str) -> bool | tuple[str, str]:
    if not gold or not predicted:
        return gold == predicted
    if key(gold) == key(predicted):
        return True
    words = _compare_words(gold, predicted)
    if words is not None:
        return words
    if gold.count("'") != predicted.count("'"):
        return False  # f' is not f, but math-verify drops the prime
    gold, gold_unit = split_unit(all_text(gold) or gold)
    predicted, predicted_unit = split_unit(all_text(predicted) or predicted)
    if units_conflict(gold_unit, predicted_unit):
        return False
    gold, predicted = ungrouped(gold), ungrouped(predicted)
    if key(gold) == key(predicted):
        return True
    equal = _compare_based(gold, predicted)
    if equal is None:
        equal = compare_numerals(gold, predicted)
    return (gold, predicted) if equal is None else equal


def _compare_words(gold: str, predicted: str) -> bool | None:
    """Compares answers in words by their letters, None when neither is: math-verify would multiply the letters."""
    gold_text, predicted_text = all_text(gold), all_text(predicted)
    if not any(_is_words(answer, text) for answer, text in ((gold, gold_text), (predicted, predicted_text))):
        return None
    return _letters(gold_text or gold) == _letters(predicted_text or predicted)


def _is_words(answer: str, text: str | None) -> bool:
    if text is not None:
        return bool(_WORD.search(text))
    if "\\" in answer:
        return False
    # Short runs of small letters are products of variables; capitals spell an order or a name (ABC, CBAD).
    return bool(_TIME_OF_DAY.fullmatch(answer) or _CAPITALS.fullmatch(answer)) or (
        bool(_LONG_WORD.search(answer)) and split_unit(answer)[1] is None and not set(answer) & set("=<>^_+*/{}")
    )


def _letters(text: str) -> str:
    """Small letters and signs, without what writers add at will: spaces, points, quotes, a leading article."""
    return re.sub(r"\A(?:the|an?) |[ .,'\"()]", "", text.lower())


def _compare_based(gold: str, predicted: str) -> bool | None:
    """`204_5` and its like, None when neither is one; math-verify drops the base. `204` is `204_5` where that is asked."""
    bases = _BASE.fullmatch(gold), _BASE.fullmatch(predicted)
    if not any(bases):
        return None
    if all(bases):
        return False  # as texts they are different
    digits = [base[1] if base else text for base, text in zip(bases, (gold, predicted), strict=True)]
    return bool(compare_numerals(*digits))


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout < float("inf"):
        raise InputError(f"timeout is {timeout}; expected seconds above 0, such as {DEFAULT_TIMEOUT_SECONDS}")


def _ask_all(pairs: Sequence[tuple[str, str]], timeout: float) -> Iterable[bool]:
    if len(pairs) < 2:
        return [_ask_or_lose(pair, timeout) for pair in pairs]
    executor = ThreadPoolExecutor(max_workers=_shared_pool().size)
    try:
        return list(executor.map(lambda pair: _ask_or_lose(pair, timeout), pairs))
    finally:
        executor.shutdown(cancel_futures=True)


def _ask_or_lose(pair: tuple[str, str], timeout: float) -> bool:
    try:
        return _ask(*pair, timeout)
    except WorkerLostError:  # not cached: the reason may have been another, such as the system's lack of memory
        return False


@lru_cache(maxsize=8192)
def _ask(gold: str, predicted: str, timeout: float) -> bool:
    return _shared_pool().ask(gold, predicted, timeout)


def _shared_pool() -> WorkerPool:
    global _pool
    with _pool_lock:
        # A forked child cannot share its parent's pipes.
        if _pool is None or _pool.process_id != os.getpid():
            _pool = WorkerPool()
        return _pool
