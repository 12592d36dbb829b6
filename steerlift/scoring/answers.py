r"""Finds the answer in a completion: strictly between the tags, or leniently wherever it stands.

Everything here is one pass from left to right, so that a megabyte of opening tags costs milliseconds.
"""

import re
from dataclasses import dataclass

# ASCII: without it IGNORECASE would also take a "ſ" for an "s".
_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE | re.ASCII)
_BRACE = re.compile(r"(?P<box>\\(?:[A-Za-z]*boxed|fbox)\s*\{)|(?P<escaped>\\.)|[{}]", re.DOTALL)
_ANNOUNCED = re.compile(r"####|\banswer\s+is\b|\banswer\s*:", re.IGNORECASE | re.ASCII)
_ANNOUNCED_END = re.compile(r"\n|\.\s|\.?\Z|</?(?:think|answer)>", re.IGNORECASE | re.ASCII)
# A minus after a letter, a digit or a bracket is an operation; digits inside a word are no number.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-)?(?:\\frac\{\d+\}\{\d+\}|(?<![\w.])(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the tags of a completion hold."""

    answer: str | None
    after_thinking: bool


def extract_answer(text: str) -> str | None:
    """The text of the last complete `<answer>...</answer>` that stands after the thinking ended, stripped.

    Tags may be written in any case, and the answer may contain `<`. Answers inside of `<think>...</think>`, before the
    first `</think>`, or never closed do not count. Where the thinking never began, any complete answer counts.
    """
    return _read(text).answer


def follows_format(text: str) -> bool:
    """Whether a complete `<think>...</think>` is followed by a complete `<answer>...</answer>`, as the prompt asks."""
    return _read(text).after_thinking


def extract_lenient(text: str) -> str | None:
    r"""The answer wherever it stands, stripped; None when there is nothing like an answer.

    In this order: the strict answer; the last answer tag anywhere, even one that is never closed; the last complete
    `\boxed{...}`; what follows the last "answer is", "answer:" or "####" on its line; the last number of the text.
    """
    for find in (extract_answer, _tagged_anywhere, last_boxed, _announced, _last_number):
        found = find(text)
        if found:
            return found
    return None


def last_boxed(text: str) -> str | None:
    r"""The content of the complete `\boxed{...}` (or `\fbox`) that opens last, braces balanced; None without one."""
    open_braces: list[tuple[int, bool]] = []
    best_start = best_end = -1
    for token in _BRACE.finditer(text):
        if token["escaped"]:
            continue  # a command, or the written braces of a set
        if token.group() != "}":
            open_braces.append((token.end(), token["box"] is not None))
        elif open_braces:
            start, boxed = open_braces.pop()
            if boxed and start > best_start:
                best_start, best_end = start, token.start()
    return text[best_start:best_end].strip() if best_start >= 0 else None


def _read(text: str) -> _Reading:
    """Walks over the tags and keeps the last complete answer outside of the thinking."""
    answer: str | None = None
    after_thinking = False
    thinking = thought = closed_once = False
    start: int | None = None
    for tag in _TAG.finditer(text):
        closing, name = bool(tag.group(1)), tag.group(2).lower()
        if name == "think":
            start = None
            if closing:
                if not closed_once:
                    answer = None  # whatever was answered before the thinking ended was part of it
                closed_once = True
                thought = thought or thinking
            thinking = not closing
        elif not thinking and not closing:
            start = tag.end()
        elif closing and start is not None:
            answer, after_thinking, start = text[start : tag.start()].strip(), thought, None
    return _Reading(answer, after_thinking and answer is not None)


def _tagged_anywhere(text: str) -> str | None:
    """The last answer tag whatever surrounds it; one that is never closed reaches to the next tag or the end."""
    found: str | None = None
    start: int | None = None
    for tag in _TAG.finditer(text):
        if start is not None and tag.start() > start:
            found = text[start : tag.start()].strip() or found
        opens = tag.group(2).lower() == "answer" and not tag.group(1)
        start = tag.end() if opens else None
    if start is not None:
        found = text[start:].strip() or found
    return found


def _announced(text: str) -> str | None:
    """The rest of the line or sentence after the last announcement."""
    last = _last(_ANNOUNCED, text)
    if last is None:
        return None
    end = _ANNOUNCED_END.search(text, last.end())
    found = text[last.end() : end.start() if end else len(text)]
    return found.strip(" \t:*") or None


def _last_number(text: str) -> str | None:
    last = _last(_NUMBER, text)
    return last.group() if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found
