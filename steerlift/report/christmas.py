"""The Christmas decorations: a tree and a gift in the top corners, drawn with matplotlib's own shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

Point = tuple[float, float]

PINE, PINE_LIGHT, PINE_DARK = "#1c6b3c", "#2d8a52", "#114a29"
TRUNK, GOLD, GOLD_DARK = "#7a4a21", "#f2b91d", "#b98a0c"
CRIMSON, CRIMSON_DARK, CRIMSON_LIGHT = "#b80f2e", "#8a0b22", "#d8344f"
SKY, SNOW, SHADOW = "#2a5fa5", "#ffffff", "#e3e2cf"

# Left, bottom, width, height as fractions of the figure: inside the header, beside title and legend.
TREE_PLACE = (0.022, 0.785, 0.115, 0.205)
GIFT_PLACE = (0.868, 0.788, 0.108, 0.185)


def decorate(figure: Figure) -> None:
    """Draws the tree in the top left corner and the gift in the top right one."""
    _draw_tree(_canvas(figure, TREE_PLACE, "tree", width=10, height=12))
    _draw_gift(_canvas(figure, GIFT_PLACE, "gift", width=10, height=11))


def _canvas(figure: Figure, place: tuple[float, float, float, float], name: str, width: float, height: float) -> Axes:
    """Bare axes in units of our own, with the origin at the bottom left."""
    axes = figure.add_axes(place, label=name)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return axes


def _draw_tree(axes: Axes) -> None:
    from matplotlib.patches import Circle, Ellipse, PathPatch, Polygon, Rectangle

    axes.add_patch(Ellipse((5, 0.55), 7.6, 0.7, color=SHADOW, linewidth=0))
    axes.add_patch(Rectangle((4.4, 0.5), 1.2, 1.6, facecolor=TRUNK, linewidth=0))
    # From the bottom branch up, so that each covers the top of the one before.
    for foot, top, half in ((1.5, 6.2, 4.2), (3.9, 8.3, 3.4), (6.2, 10.4, 2.5)):
        branch = axes.add_patch(PathPatch(_branch(foot, top, half), facecolor=PINE, linewidth=0))
        axes.add_patch(PathPatch(_lit_side(foot, top, half), facecolor=PINE_LIGHT, linewidth=0))
        garland = axes.add_patch(PathPatch(_garland(foot + 0.95), facecolor="none", edgecolor=GOLD, linewidth=1.5))
        garland.set_clip_path(branch)
    baubles = ((3.5, 2.35, CRIMSON), (6.6, 2.6, SKY), (5.1, 3.85, GOLD), (3.9, 4.85, SKY), (6.1, 4.9, CRIMSON))
    for x, y, colour in (*baubles, (4.4, 6.35, CRIMSON), (5.9, 7.1, SNOW), (5.0, 8.75, CRIMSON)):
        axes.add_patch(Circle((x, y), 0.36, facecolor=colour, edgecolor=PINE_DARK, linewidth=0.4))
        axes.add_patch(Circle((x - 0.1, y + 0.11), 0.1, facecolor=SNOW, alpha=0.75, linewidth=0))
    axes.add_patch(Polygon(_star((5, 10.6), 1.15), facecolor=GOLD, edgecolor=GOLD_DARK, linewidth=0.6, joinstyle="round"))


def _draw_gift(axes: Axes) -> None:
    from matplotlib.patches import Ellipse, FancyBboxPatch, PathPatch, Rectangle

    axes.add_patch(Ellipse((5, 0.55), 9.2, 0.7, color=SHADOW, linewidth=0))
    axes.add_patch(Rectangle((1.2, 0.6), 7.6, 5.4, facecolor=CRIMSON, linewidth=0))
    axes.add_patch(Rectangle((1.2, 0.6), 2.2, 5.4, facecolor=CRIMSON_LIGHT, alpha=0.55, linewidth=0))
    # The lid's shadow on the box.
    axes.add_patch(Rectangle((1.2, 5.35), 7.6, 0.5, facecolor=CRIMSON_DARK, linewidth=0))
    axes.add_patch(Rectangle((4.2, 0.6), 1.6, 5.4, facecolor=GOLD, linewidth=0))
    axes.add_patch(Rectangle((4.2, 5.35), 1.6, 0.5, facecolor=GOLD_DARK, linewidth=0))
    lid = FancyBboxPatch((0.75, 5.85), 8.5, 1.5, boxstyle="round,pad=0,rounding_size=0.25", facecolor=CRIMSON, linewidth=0)
    axes.add_patch(lid)
    axes.add_patch(Rectangle((4.2, 5.85), 1.6, 1.5, facecolor=GOLD, linewidth=0))
    for side in (-1, 1):
        axes.add_patch(PathPatch(_loop((5, 7.45), side, 1.0), facecolor=GOLD, edgecolor=GOLD_DARK, linewidth=0.7))
        axes.add_patch(PathPatch(_loop((5 + side * 0.45, 7.65), side, 0.55), facecolor=GOLD_DARK, linewidth=0))
    axes.add_patch(Ellipse((5, 7.6), 1.5, 1.15, facecolor=GOLD, edgecolor=GOLD_DARK, linewidth=0.7))


def _branch(foot: float, top: float, half: float) -> Path:
    """One tier of the tree, `half` as wide at the foot: its sides swing in and its foot hangs."""
    from matplotlib.path import Path

    swing = foot + 0.35 * (top - foot)
    points = [(5.0, top), (5 - 0.42 * half, swing), (5 - half, foot), (5.0, foot - 1.15)]
    points += [(5 + half, foot), (5 + 0.42 * half, swing), (5.0, top)]
    return Path(points, [Path.MOVETO] + [Path.CURVE3] * 6)


def _lit_side(foot: float, top: float, half: float) -> Path:
    """The left of a tier: the same left side, the first 30 % of the foot's curve, and a bend back to the top."""
    from matplotlib.path import Path

    points = [(5.0, top), (5 - 0.42 * half, foot + 0.35 * (top - foot)), (5 - half, foot)]
    points += [(5 - 0.7 * half, foot - 0.345), (5 - 0.4 * half, foot - 0.483)]
    points += [(5 - 0.2 * half, foot + 0.5 * (top - foot)), (5.0, top)]
    return Path(points, [Path.MOVETO] + [Path.CURVE3] * 6)


def _garland(height: float) -> Path:
    """A chain that hangs across the whole tree, rising to the right; the tier that carries it clips its ends."""
    from matplotlib.path import Path

    return Path([(0.0, height + 1.2), (4.6, height - 1.5), (10.0, height + 2.4)], [Path.MOVETO, Path.CURVE3, Path.CURVE3])


def _loop(knot: Point, side: int, size: float) -> Path:
    """One loop of the bow, out from the knot and back; `side` is -1 for left, 1 for right."""
    from matplotlib.path import Path

    offsets = [(0, 0), (0.9, 2.3), (2.5, 3.1), (3.3, 2.4), (4.1, 1.7), (3.0, 0.1), (0, 0)]
    points = [(knot[0] + side * size * x, knot[1] + size * y) for x, y in offsets]
    return Path(points, [Path.MOVETO] + [Path.CURVE4] * 6)


def _star(centre: Point, radius: float) -> list[Point]:
    angles = np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, radius, 0.45 * radius)
    return [(centre[0] + float(r * np.cos(a)), centre[1] + float(r * np.sin(a))) for a, r in zip(angles, radii, strict=True)]
