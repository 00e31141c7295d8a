#!/usr/bin/env python3
"""Measures training time per token as a function of sequence length and of width.

    cargo build --release
    python3 bench/scaling.py --out scaling.svg

Prints Markdown tables and draws both curves with the time that the FLOPs of the model take at peak
matmul throughput, measured by the same process.
"""

import argparse
import math
import statistics
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

from compare import run_hybridnorm

TOKENS = {"sequence": 4096, "width": 2048}
MEASURED, PEAK, INK, GRID = "#0060a8", "#d1495b", "#222222", "#dddddd"
TOP, HEIGHT, LEFT, WIDTH, GAP = 96, 290, 78, 370, 92


def sequence_shape(seq):
    return dict(d=384, layers=6, heads=6, ff=1024, vocab=8192, seq=seq,
                batch=TOKENS["sequence"] // seq)


def width_shape(d):
    ff = 8 * math.ceil(d / 3)
    return dict(d=d, layers=4, heads=d // 64, ff=ff, vocab=4096, seq=256,
                batch=TOKENS["width"] // 256)


@dataclass
class Point:
    x: int
    tokens_per_second: float
    gflops: float
    sgemm_gflops: float

    @property
    def flops(self):
        return 1e9 * self.gflops / self.tokens_per_second

    @property
    def measured(self):
        return 1e6 / self.tokens_per_second

    @property
    def at_peak(self):
        return self.flops / (1e3 * self.sgemm_gflops)


def measure(values, shape, a):
    found = {x: [] for x in values}
    for _ in range(a.rounds):
        for x in values:
            print("measuring", shape(x), file=sys.stderr)
            found[x].append(run_hybridnorm(shape(x), a))
    keys = "tokens_per_second", "gflops", "sgemm_gflops"
    return [Point(x, *(statistics.median(r[key] for r in rows) for key in keys))
            for x, rows in found.items()]


def table(name, points):
    print(f"| {name} | tokens/s | µs/token | MFLOP/token | peak, GFLOP/s "
          "| µs/token at peak | fraction of peak |")
    print("|" + "---:|" * 7)
    for p in points:
        print(f"| {p.x} | {p.tokens_per_second:,.0f} | {p.measured:.1f} | {p.flops / 1e6:.1f} "
              f"| {p.sgemm_gflops:.1f} | {p.at_peak:.1f} | {p.at_peak / p.measured:.0%} |")


def text(x, y, words, size=13, anchor="middle", more=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{more}>'
            f"{escape(words)}</text>")


def line(x1, y1, x2, y2, colour=GRID, more=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}"{more}/>')


def curve(points, colour, dashes):
    svg_points = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
                   for x, y in points)
    return (f'<polyline points="{svg_points}" fill="none" stroke="{colour}" stroke-width="2.2" '
            f'stroke-dasharray="{dashes}"/>{dots}')


def ticks(low, high):
    """Returns the ticks 1, 2 and 5 times powers of ten that cover [low, high]."""
    steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    first = max(i for i, value in enumerate(steps) if value <= low)
    last = min(i for i, value in enumerate(steps) if value >= high)
    return steps[first:last + 1]


def scale(low, high, start, length):
    return lambda value: start + length * math.log(value / low) / (math.log(high / low) or 1)


def panel(left, title, label, points):
    xs = [p.x for p in points]
    values = [v for p in points for v in (p.measured, p.at_peak)]
    marks = ticks(min(values), max(values))
    bottom = TOP + HEIGHT
    x = scale(xs[0], xs[-1], left + 18, WIDTH - 36)
    y = scale(marks[0], marks[-1], bottom, -HEIGHT)
    out = [text(left + WIDTH / 2, TOP - 14, title, 15, more=' font-weight="600"')]
    for mark in marks:
        out.append(line(left, y(mark), left + WIDTH, y(mark)))
        out.append(text(left - 9, y(mark) + 4.5, f"{mark:g}", anchor="end"))
    for mark in xs:
        out.append(line(x(mark), TOP, x(mark), bottom))
        out.append(text(x(mark), bottom + 20, f"{mark}"))
    out.append(line(left, bottom, left + WIDTH, bottom, INK))
    out.append(line(left, TOP, left, bottom, INK))
    out.append(text(left + WIDTH / 2, bottom + 46, label))
    middle = TOP + HEIGHT / 2
    turned = f' transform="rotate(-90 {left - 52} {middle})"'
    out.append(text(left - 52, middle, "time per token (µs)", more=turned))
    out.append(curve([(x(p.x), y(p.at_peak)) for p in points], PEAK, "7 4"))
    out.append(curve([(x(p.x), y(p.measured)) for p in points], MEASURED, "none"))
    return out


def legend(x, y, colour, dashes, words):
    return curve([(x, y), (x + 34, y)], colour, dashes) + text(x + 46, y + 4.5, words,
                                                                anchor="start")


def picture(sequence, width, note):
    total, height = 2 * (LEFT + WIDTH) + GAP - 50, TOP + HEIGHT + 92
    second = LEFT + WIDTH + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" '
           f'width="{total}" height="{height}" font-family="Helvetica, Arial, sans-serif" '
           f'fill="{INK}">',
           f'<rect width="{total}" height="{height}" fill="#ffffff"/>',
           legend(LEFT, 30, MEASURED, "none", "measured training step"),
           legend(LEFT + 260, 30, PEAK, "7 4",
                  "FLOPs of the model at peak matmul throughput")]
    shape, other = sequence_shape(sequence[0].x), width_shape(width[0].x)
    out += panel(LEFT, f"width {shape['d']}, {shape['layers']} layers, vocabulary {shape['vocab']}",
                 f"sequence length (tokens), {TOKENS['sequence']} tokens per step", sequence)
    out += panel(second, f"length {other['seq']}, {other['layers']} layers, "
                 f"vocabulary {other['vocab']}", f"width, {TOKENS['width']} tokens per step", width)
    out += [text(LEFT, height - 12, note, 12, "start"), "</svg>"]
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="output file, SVG")
    parser.add_argument("--lengths", type=int, nargs="+",
                        default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 192, 256, 384, 512, 768])
    parser.add_argument("--placement", default="hybridnorm")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all points; the medians are reported")
    parser.add_argument("--seconds", type=float, default=8, help="duration of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    sequence = measure(a.lengths, sequence_shape, a)
    width = measure(a.widths, width_shape, a)
    table("sequence length", sequence)
    print()
    table("width", width)
    note = f"{a.placement}, {a.threads} threads, float32; both axes logarithmic"
    a.out.write_text(picture(sequence, width, note), encoding="utf-8")


if __name__ == "__main__":
    main()
