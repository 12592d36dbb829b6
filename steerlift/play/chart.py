"""Small line charts as SVG: numbers only, coloured by the page's style sheet."""

from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 14, 10, 36

Point = tuple[float, float]


def line_chart(description: str, series: Mapping[str, Sequence[Point]], ticks: Sequence[float], unit: str) -> str:
    """Shares (0 to 1) over numbers. The names of `series` are the classes of its lines; `unit` stands below the axis."""
    low, high = min(ticks), max(ticks)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((value - low) / (high - low) if high > low else 0.5)

    def y(share: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">']
    for percent in (0, 50, 100):
        height = y(percent / 100)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{percent}</text>')
    for tick in ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{unit}</text>')
    for name, points in series.items():
        places = [(x(value), y(share)) for value, share in points]
        if places:
            path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
            parts.append(f'<polyline class="{name}" points="{path}"/>')
            parts.extend(f'<circle class="{name}" cx="{left:.1f}" cy="{top:.1f}" r="3"/>' for left, top in places)
    return "".join([*parts, "</svg>"])
