r"""Brings the many ways to write an answer into one: `tidy("$\dfrac12.$")` is `\frac{1}{2}`.

Only rewriting that keeps the meaning belongs here. Every pattern takes linear time on hostile text: no nested repetition,
and nothing that starts anew at every character of a run.
"""

import re
from functools import lru_cache

from steerlift.scoring.answers import last_boxed

TEXT_COMMANDS = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|operatorname|bf|rm)"

_INVISIBLE = [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xAD, 0xFEFF]
_CHARACTERS: dict[int, str | None] = dict.fromkeys(_INVISIBLE)
_CHARACTERS |= {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # fullwidth forms of ASCII
_CHARACTERS |= {ord(mark): "-" for mark in "‐‑‒–—―−﹣"}
_CHARACTERS |= {ord(mark): "'" for mark in "‘’′"}
_CHARACTERS |= {ord(mark): f"^{{{digit}}}" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_CHARACTERS |= {ord(mark): f"_{{{digit}}}" for digit, mark in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅙": "1/6", "⅛": "1/8"}
_CHARACTERS |= {ord(mark): rf"\frac{{{value[0]}}}{{{value[2]}}}" for mark, value in _FRACTIONS.items()}
_SYMBOLS = {
    **{"×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "±": r"\pm ", "√": r"\sqrt "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}"},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "π": r"\pi ", "θ": r"\theta ", "“": "", "”": ""},
}
_CHARACTERS |= {ord(mark): command for mark, command in _SYMBOLS.items()}

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_WORDS)}
_BARE_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_COMMANDS = {word: rf"\{word} " for word in ("pi", "infty", "theta", "alpha", "beta")}
_COMMANDS |= {"infinity": r"\infty ", "inf": r"\infty ", "percent": r"\%", "pct": r"\%", "and": ",", "or": ","}
_FUNCTIONS = {"sqrt", "arcsin", "arccos", "arctan", "sin", "cos", "tan", "sec", "csc", "cot", "log", "ln"}

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ('"', '"'), ("'", "'"))
_ANNOUNCEMENT = re.compile(r"(?:the )?(?:final )?answer(?: is)?:? ?", re.IGNORECASE)
_GROUPED = re.compile(r"([+-]?[0-9]{1,3})((?:,[0-9]{3})+|(?: [0-9]{3})+)((?:\.[0-9]*)?(?: ?\\?%)?)")
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_ALL_TEXT = re.compile(TEXT_COMMANDS + r" ?\{([^{}]*)\}")

_POWER_OF_TEN = r"(?<![0-9A-Za-z.\\])([0-9]+(?:\.[0-9]+)?|\.[0-9]+)[eE]([+-]?[0-9]+)(?![0-9A-Za-z.])"
# (needle, pattern, replacement), in this order. A text without the needle is not searched: most answers are short and
# plain, and this keeps them at microseconds.
_REWRITES = [
    (needle, re.compile(pattern), replacement)
    for needle, pattern, replacement in [
        # 11,\! 111   14{,}916   1\,234: thousands, wherever they stand
        ("\\", r"(?<=[0-9])(?:, ?\\!|\\!,|\\[,;:! ]) ?(?=[0-9]{3}(?![0-9]))", ""),
        ("{", r"(?<=[0-9]) ?\{ ?, ?\} ?(?=[0-9]{3}(?![0-9]))", ""),
        # spacing, sizes and synonyms
        (r"\!", r"(?<!\\)\\!", ""),
        ("~", r"~", " "),
        ("\\", r"(?<!\\)\\(?:[,;:> ]|(?:q?quad|thinspace|enspace|displaystyle|textstyle|d?limits)(?![A-Za-z]))", " "),
        ("\\", r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?", ""),
        ("frac", r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        ("binom", r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\geq", r"\\geq(?:slant)?(?![A-Za-z])", r"\\ge"),
        (r"\leq", r"\\leq(?:slant)?(?![A-Za-z])", r"\\le"),
        (r"\neq", r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\varnothing", r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        # the members of a list; "and" and "or" are commas already
        (",", rf"{TEXT_COMMANDS} ?\{{[ ,]*\}}", ","),
        (",", r", *, *", ", "),
        # percent (the word is a sign already), degrees and primes
        ("%", rf"{TEXT_COMMANDS} ?\{{ ?\\?% ?\}}", r"\\%"),
        ("%", r" ?\\?%", r"\\%"),
        (r"\circ", r"\^ ?\{ ?\\circ ?\}", r"^\\circ"),
        (r"\degree", r"\\degree(?![A-Za-z])", r"^\\circ"),
        (r"\prime", r"\^ ?(?:\{ ?\\prime ?\}|\\prime(?![A-Za-z]))", "'"),
        # what people type: 2**3, 1.5e3, sqrt(2)
        ("**", r"\*\*", "^"),
        ("e", _POWER_OF_TEN, r"\1 \\times 10^{\2}"),
        ("E", _POWER_OF_TEN, r"\1 \\times 10^{\2}"),
        (r"\sqrt", r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
        # \frac12, \frac1{2}, \frac{1}2, \sqrt2, \sqrt[3]2: arguments without braces are one character
        (r"\frac", r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\frac", r"\\frac ?([0-9A-Za-z]) ?\{", r"\\frac{\1}{"),
        (r"\frac", r"(\\frac ?\{[^{}]*\}) ?([0-9A-Za-z])", r"\1{\2}"),
        (r"\sqrt", r"\\sqrt ?(\[[^][]*\])? ?([0-9A-Za-z])", r"\\sqrt\1{\2}"),
        ("{", r"([_^]) ?\{ ?([0-9A-Za-z]) ?\}", r"\1\2"),
        # \mathbf{2340}, \text{C}, \mathrm{e}: a font is not a meaning; but 5\text{ m} has a unit
        ("{", rf"{TEXT_COMMANDS} ?\{{ ?([0-9.]+|[ei]) ?\}}", r"\1"),
        ("{", rf"(?<![0-9)}} ]){TEXT_COMMANDS} ?\{{ ?(\(?[A-Za-z]\)?) ?\}}", r"\1"),
    ]
]


@lru_cache(maxsize=4096)
def tidy(answer: str) -> str:
    """The answer in one notation: plain ASCII LaTeX without decoration, single spaces, no closing punctuation.

    It is meant for answers of a few thousand characters at most; it never raises.
    """
    text = " ".join(answer.translate(_CHARACTERS).split())
    text = _BARE_WORD.sub(_as_command, _undecorated(text))
    for needle, pattern, replacement in _REWRITES:
        if needle in text:
            text = pattern.sub(replacement, text)
    text = _undecorated(" ".join(text.split()))
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    return _NUMBER_WORDS.get((all_text(text) or text).lower(), text)


def ungrouped(text: str) -> str:
    """`1,234,567` and `1 234 567` as `1234567`, when that is the whole text; anything else unchanged."""
    match = _GROUPED.fullmatch(text)
    return match[1] + match[2].replace(",", "").replace(" ", "") + match[3] if match else text


def key(text: str) -> str:
    """What two tidy texts have in common when only their spacing differs; a space between two digits stays."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text)


def all_text(text: str) -> str | None:
    r"""The content of an answer that is one `\text{...}` and nothing else; None otherwise."""
    match = _ALL_TEXT.fullmatch(text)
    return match[1].strip() if match else None


def _as_command(match: re.Match[str]) -> str:
    r"""`pi` as `\pi`, `sin x` as `\sin x`; a function's name with nothing after it stays (`5 sec` are seconds)."""
    word = match.group()
    if word in _FUNCTIONS and match.string[match.end() : match.end() + 2].strip():
        return rf"\{word} "
    return _COMMANDS.get(word, word)


def _undecorated(text: str) -> str:
    """Takes off what stands around the answer: dollars, boxes, emphasis, "the answer is", closing punctuation."""
    for _ in range(8):  # layers; nobody writes more
        before = text
        text = text.strip(" `").rstrip(" .,;:\\")
        for left, right in _WRAPPERS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
                inner = text[len(left) : len(text) - len(right)]
                text = text if left in inner else inner
        if text.count("boxed") + text.count(r"\fbox") == 1:
            text = last_boxed(text) or text
        announcement = _ANNOUNCEMENT.match(text)
        if announcement and announcement.end() < len(text):
            text = text[announcement.end() :]
        if text == before:
            break
    return text
