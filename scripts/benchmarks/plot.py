"""Figures as a picture: the median of each row, and its spread, on a scale of powers of ten.

The picture is an SVG that follows the reader's colours, light or dark.
"""

import math
from collections.abc import Sequence
from html import escape

from benchmarks.figures import Figure, number, spread

WIDTH, LEFT, RIGHT, LINE = 800, 250, 90, 24
STYLE = (
    "text{font:14px sans-serif;fill:#1a1a1a}.name{font-weight:bold}.scale{fill:#666;font-size:12px}"
    "line{stroke:#ccc}.spread{stroke:#2563a8;stroke-width:3}circle{fill:#2563a8}"
    ".peer circle{fill:#888}.peer .spread{stroke:#888}.ground{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.scale{fill:#aaa}.ground{fill:#161616}"
    "line{stroke:#444}circle{fill:#7db3ee}.spread{stroke:#7db3ee}}"
)


def svg(figures: Sequence[Figure], ours: Sequence[str]) -> str:
    """A picture of `figures`, which all have one unit. The rows named in `ours` stand out."""
    values = [value for figure in figures for row in figure.rows.values() for value in row]
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)))
    height = LINE * (sum(len(figure.rows) + 2 for figure in figures) + 1)

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape('; '.join(figure.name for figure in figures))}</title>",
        f'<style>{STYLE}</style><rect class="ground" width="100%" height="100%"/>',
    ]
    for power in range(low, high + 1):
        x = across(10.0**power)
        parts.append(f'<line x1="{x:.1f}" y1="{LINE}" x2="{x:.1f}" y2="{height - LINE}"/>')
        label = f"{10.0**power:g} {figures[0].unit}"
        parts.append(
            f'<text class="scale" text-anchor="middle" x="{x:.1f}" y="{height - 6}">{label}</text>'
        )
    y = 0
    for figure in figures:
        y += LINE
        parts.append(f'<text class="name" x="8" y="{y}">{escape(figure.name)}</text>')
        for name, row in figure.rows.items():
            y += LINE
            least, middle, most = spread(row)
            parts.append(
                f'<g class="{"own" if name in ours else "peer"}">'
                f'<text x="20" y="{y}">{escape(name)}</text>'
                f'<line class="spread" x1="{across(least):.1f}" y1="{y - 5}"'
                f' x2="{across(most):.1f}" y2="{y - 5}"/>'
                f'<circle cx="{across(middle):.1f}" cy="{y - 5}" r="5"/>'
                f'<text x="{across(most) + 10:.1f}" y="{y}">{number(middle)}</text></g>'
            )
        y += LINE
    return "\n".join([*parts, "</svg>\n"])
