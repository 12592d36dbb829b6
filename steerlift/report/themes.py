"""The colours of a figure: `CHRISTMAS`, as in the original, and `PLAIN`, for a paper and for readers who see red as green."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. `frame` is used for frame, ticks and title, `quiet` for what is said in passing."""

    background: str
    panel: str
    frame: str
    quiet: str
    grid: str
    steered: str
    base: str
    finetuned: str
    control: str
    chosen: str
    decorated: bool


CHRISTMAS = Theme(
    background="#fffff0",
    panel="#fffff0",
    frame="#14532d",
    quiet="#4d6b57",
    grid="#dfe6d3",
    steered="#b80f2e",
    base="#2a5fa5",
    finetuned="#c8920a",
    control="#7f9a86",
    chosen="#f2b91d",
    decorated=True,
)

# The lines' colours are from Okabe and Ito's set, made to be told apart by everybody.
PLAIN = Theme(
    background="#ffffff",
    panel="#ffffff",
    frame="#262626",
    quiet="#5f5f5f",
    grid="#e6e6e6",
    steered="#d55e00",
    base="#0072b2",
    finetuned="#009e73",
    control="#8a8a8a",
    chosen="#ffe3c8",
    decorated=False,
)

THEMES = {"christmas": CHRISTMAS, "plain": PLAIN}
