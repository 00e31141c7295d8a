#!/usr/bin/env python3
"""Trains the same model in hybridnorm and PyTorch in alternating runs; prints ratios of medians.

    cargo build --release
    python3 bench/compare.py

PyTorch is installed into a virtual environment in target/ on the first run. Nothing here is needed to
build or to test the project.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "d128": dict(d=128, layers=4, heads=4, ff=344, vocab=4096, seq=128, batch=16),
    "d384": dict(d=384, layers=6, heads=6, ff=1024, vocab=8192, seq=256, batch=8),
    "d384-moe": dict(d=384, layers=6, heads=6, ff=512, vocab=8192, seq=256, batch=8, experts=8),
    "d768": dict(d=768, layers=12, heads=12, ff=2048, vocab=32000, seq=512, batch=2),
}
# Dense models with the same FLOPs per token, measured in the same rounds.
DENSE = {"d384-moe": "d384"}


def python_with_torch():
    folder = ROOT / "target" / "bench-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        print("installing PyTorch into", folder, file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch", "numpy"], check=True)
    return python


def config(shape, placement):
    width = f'd_ff = {shape["ff"]}'
    if "experts" in shape:
        width = f'moe = {{ n_experts = {shape["experts"]}, top_k = 2, d_expert = {shape["ff"]} }}'
    return f"""
[model]
d_model = {shape["d"]}
n_layers = {shape["layers"]}
n_heads = {shape["heads"]}
{width}
vocab_size = {shape["vocab"]}
placement = "{placement}"

[train]
batch_size = {shape["batch"]}
seq_len = {shape["seq"]}
"""


def run_hybridnorm(shape, precision, a):
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config(shape, a.placement) + f'precision = "{precision}"\n')
        file.flush()
        program = ROOT / "target" / "release" / "hybridnorm"
        command = [program, "bench", "step", "--config", file.name, "--json",
                   "--threads", str(a.threads), "--seconds", str(a.seconds)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def run_pytorch(program, shape, precision, a):
    command = [*program, "--placement", a.placement, "--precision", precision,
               "--threads", str(a.threads), "--seconds", str(a.seconds)]
    command += [word for key, value in shape.items() for word in (f"--{key}", str(value))]
    threads = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS"], str(a.threads))
    result = subprocess.run(command, check=True, capture_output=True, env=os.environ | threads)
    return json.loads(result.stdout.splitlines()[-1])


def runners(a):
    eager = [a.python or python_with_torch(), ROOT / "bench" / "pytorch_step.py"]
    programs = {"pytorch eager": eager, "pytorch compile": eager + ["--compile"]}
    runs = {}
    for precision in a.precisions:
        runs["hybridnorm", precision] = lambda shape, p=precision: run_hybridnorm(shape, p, a)
        for name, program in programs.items():
            runs[name, precision] = (
                lambda shape, p=precision, program=program: run_pytorch(program, shape, p, a))
    return runs


def processor():
    """Returns the name of the processor and its vector units."""
    units = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    name = facts.get("model name", platform.machine())
    family = " ".join(f"{key} {facts[key]}" for key in ["cpu family", "model"] if key in facts)
    return f"{name} ({family}): {', '.join(unit for unit in units if unit in flags)}"


def report(found):
    def median(key):
        return {run: statistics.median(r[key] for r in rows) for run, rows in found.items()}

    ours = [run for run in found if run[0] == "hybridnorm"]
    rows = []
    first = found[ours[0]][0]
    flops = first["gflops"] / first["tokens_per_second"]
    speed, memory = median("tokens_per_second"), median("peak_rss_bytes")
    versions = {rows[0]["version"] for run, rows in found.items() if run[0] != "hybridnorm"}
    print("PyTorch " + ", ".join(sorted(versions)))
    print(f"{'':24} {'tokens/s':>10} {'GFLOP/s':>9} {'memory':>10}")
    for run in found:
        print(f"{' '.join(run):24} {speed[run]:10,.0f} {flops * speed[run]:9.1f} "
              f"{memory[run] / 2**20:6.0f} MiB")
    for run in ours:
        # In bfloat16 a user of PyTorch may still choose single precision.
        rivals = [other for other in found if other[0] != "hybridnorm"
                  and (run[1] == "bf16" or other[1] == "f32")]
        best = max(rivals, key=speed.get)
        key = "sgemm_share" if run[1] == "f32" else "bf16_gemm_share"
        share = statistics.median(r[key] for r in found[run])
        print(f"{run[1]}: {speed[run] / speed[best]:.2f}x the tokens/s of {' '.join(best)}, "
              f"{memory[run] / memory[best]:.2f}x its memory; {share:.1%} of the {run[1]} peak "
              f"({found[run][0]['matmul_unit']})")
        rows.append([run[1], f"{speed[run]:,.0f}",
                     *(f"{speed[name, run[1]]:,.0f}" for name in ["pytorch eager", "pytorch compile"]),
                     f"{speed[run] / speed[best]:.2f}x", f"{memory[run] / memory[best]:.2f}x", f"{share:.0%}"])
    if len(ours) == 2:
        f32, bf16 = (("hybridnorm", precision) for precision in ("f32", "bf16"))
        print(f"bf16 against f32: {speed[bf16] / speed[f32]:.2f}x the tokens/s, "
              f"{memory[bf16] / memory[f32]:.2f}x the memory")
    return rows


def print_table(rows):
    """Prints the table of docs/performance.md."""
    heads = ["model", "precision", "hybridnorm, tokens/s", "PyTorch eager", "PyTorch compile",
             "ratio to the better", "memory", "share of peak"]
    print()
    for row in [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows]:
        print("|" + "|".join(f" {cell} " for cell in row) + "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: all")
    parser.add_argument("--all", action="store_true",
                        help="all shapes and precisions, with the table of docs/performance.md at the end")
    parser.add_argument("--precisions", nargs="+", choices=["f32", "bf16"], help="default: both")
    parser.add_argument("--placement", choices=["hybridnorm", "pre-norm"], default="hybridnorm")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=8,
                        help="duration of each measurement; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--python", help="Python interpreter with torch; default: a new virtual environment")
    a = parser.parse_args()
    if a.all and (a.shapes or a.precisions):
        parser.error("--all measures all shapes in both precisions; leave out --shapes and --precisions")
    a.shapes = a.shapes or list(SHAPES)
    a.precisions = a.precisions or ["f32", "bf16"]
    print(processor())
    table = []
    for name in a.shapes:
        shape = SHAPES[name]
        runs = runners(a)
        print(f"\n{name}: " + " ".join(f"{key} {value}" for key, value in shape.items())
              + f", {a.placement}, {a.threads} threads, {a.rounds} rounds")
        found = {run: [] for run in runs}
        dense = {precision: [] for precision in a.precisions}
        for _ in range(a.rounds):
            for run, measure in runs.items():
                found[run].append(measure(shape))
            if name in DENSE:
                for precision, rows in dense.items():
                    rows.append(run_hybridnorm(SHAPES[DENSE[name]], precision, a))
        counts = {run: rows[0]["parameters"] for run, rows in found.items()}
        assert len(set(counts.values())) == 1, f"not the same model: {counts}"
        table += [[name, *row] for row in report(found)]
        for precision, rows in dense.items():
            if rows:
                sparse, of_dense = (statistics.median(r["step_seconds"] for r in rows)
                                    for rows in (found["hybridnorm", precision], rows))
                print(f"{precision}: step time {sparse * 1e3:.1f} ms, {sparse / of_dense:.2f}x that of "
                      f"the dense {DENSE[name]}")
    if a.all:
        print_table(table)


if __name__ == "__main__":
    main()
