r"""Units beside a number: `12 square inches`, `\$5`, `5\text{ cm}^2`.

A gold answer and a prediction may name the unit or leave it out; when both name one, it has to be the same.
"""

import re

from steerlift.scoring.notation import TEXT_COMMANDS

_NAMES = """
mm millimeter millimetre | cm centimeter centimetre | m meter metre | km kilometer kilometre
in inch inches | ft foot feet | yd yard | mi mile
mg milligram | g gram | kg kilogram | lb lbs pound | oz ounce | ton tons
ml milliliter millilitre | l liter litre | gal gallon
s sec second | min minute | h hr hrs hour | day | week wk | month | year yr | am | pm
$ dollar usd | cent ¢ | £ | € euro | ¥ yen
degree deg | mph | km/h kmh kph
"""
# Every name of a unit, and the first of its line's part that stands for it.
_KNOWN = {name: part.split()[0] for line in _NAMES.split("\n") for part in line.split("|") for name in part.split()}
# Words that change the value, so that they are never dropped with a unit.
_CHANGES_VALUE = """
and or if not no is to for mod modulo when where less more than times half third quarter dozen hundred thousand million
billion trillion squared cubed base plus minus over choose sin cos tan log ln pi
"""
_NOT_UNITS = frozenset(_CHANGES_VALUE.split())
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_DEGREES = re.compile(r" ?\^\\circ\Z")
_CURRENCY = re.compile(r"\\?\$|[£€¥]")
_TEXT_AT_END = re.compile(r"(.*[^ ]) ?" + TEXT_COMMANDS + r" ?\{([^{}]*)\}(?:\^\{?([0-9])\}?)?")
_POWER_AT_END = re.compile(r"(?<=[A-Za-z])\^\{?([0-9])\}?\Z")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ./ "
_NUMBER_AT_END = re.compile(r"[0-9})]\Z|\\pi\Z")


def split_unit(text: str) -> tuple[str, str | None]:
    """A tidy answer as (value, unit); the unit is None where there is none, "" where its name is not a known one."""
    found = _CURRENCY.search(text)
    if found:
        value = _CURRENCY.sub("", text).strip()
        return (split_unit(value)[0] if value else text), _KNOWN[found.group().lstrip("\\")]
    if text.endswith("\\%"):
        return text, "%"  # the sign stays: 50\% is also 1/2
    if degrees := _DEGREES.search(text):
        return text[: degrees.start()], "degree"
    match = _TEXT_AT_END.fullmatch(text)
    if match and _NUMBER_AT_END.search(match[1]) and _is_unit(match[2], anything=True):
        return match[1], _canonical(match[2], match[3])
    return _split_words(text)


def units_conflict(gold: str | None, predicted: str | None) -> bool:
    """Whether both name a known unit, and not the same."""
    return bool(gold) and bool(predicted) and gold != predicted


def _split_words(text: str) -> tuple[str, str | None]:
    """`12 cm^2` as `12` and `cm^2`: words after a number that are units, or nouns (`12 apples`)."""
    power = _POWER_AT_END.search(text)
    body = text[: power.start()] if power else text
    value = body.rstrip(_LETTERS)
    words = body[len(value) :]
    if value.endswith("\\"):  # the first word belongs to a command such as \pi
        name = re.match("[A-Za-z]*", words)
        value, words = value + (name[0] if name else ""), words[name.end() if name else 0 :]
    if not words.strip() or not _NUMBER_AT_END.search(value):
        return text, None
    if not words.startswith(" ") and words not in _KNOWN:
        return text, None  # 3t and 5ab are products
    if len(words.strip()) == 1 or not _is_unit(words, anything=False):
        return text, None
    return value, _canonical(words, power[1] if power else None)


def _is_unit(words: str, *, anything: bool) -> bool:
    """Whether the words can be left out; `anything` holds for those in a text command, which are no variables."""
    parts = words.replace(".", "").split()
    if not parts or any(part.lower() in _NOT_UNITS for part in parts):
        return False
    return anything or all(_lookup(part) or part in _POWERS or _is_noun(part) for part in parts)


def _is_noun(word: str) -> bool:
    return word in ("per", "of", "each", "sq") or (len(word) >= 4 and word.islower() and not set(word).isdisjoint("aeiou"))


def _lookup(word: str) -> str | None:
    word = word.lower()
    return _KNOWN.get(word) or _KNOWN.get(word.removesuffix("s"))


def _canonical(words: str, power: str | None) -> str:
    """One name for a known unit with its power; "" for anything else."""
    parts = words.replace(".", "").replace(" per ", "/").split()
    suffix = f"^{power}" if power else ""
    if len(parts) == 2 and parts[0] in _POWERS:
        suffix, parts = _POWERS[parts[0]], parts[1:]
    if len(parts) != 1:
        return ""
    named = "/".join(_lookup(part) or "" for part in parts[0].split("/"))
    named = {"mi/h": "mph"}.get(named, _KNOWN.get(named, ""))
    return named + suffix if named else ""
