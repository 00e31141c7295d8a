"""Measures the overhead of the flight recorder: steps that record all blocks, compared with adjacent steps.

    cargo build --release
    python3 bench/recorder.py

Prints for several shapes the time of a step, the additional time of a recorded step, and the fraction of the
total time if every tenth step is recorded.
"""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/hybridnorm"
RECORD_EVERY = 5
WARMUP_STEPS = 10  # Excluded from the measurement.

# Settings on top of crates/cli/configs/bench.toml, and steps.
SHAPES = {
    "d128": (
        [
            "model.d_model=128", "model.n_layers=4", "model.n_heads=4", "model.d_ff=344",
            "model.vocab_size=4096", "train.batch_size=16", "train.seq_len=128",
            'data.tokenizer="bpe:4096"',
        ],
        300,
    ),
    "d384": (['data.tokenizer="bpe:8192"'], 60),
    "d384, one sequence of 1024": (
        ['data.tokenizer="bpe:8192"', "train.batch_size=1", "train.seq_len=1024"],
        100,
    ),
}
ALWAYS = [
    'data.train=["gutenberg"]', "train.eval_every=0", "train.eval_sequences=1",
    "train.checkpoint_every=0", f"log.layers_every={RECORD_EVERY}",
]


def rows(settings, steps):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = [PROGRAM, "train", ROOT / "crates/cli/configs/bench.toml", "--quiet", "--run", run]
        for setting in [*ALWAYS, *settings, f"train.steps={steps}"]:
            arguments += ["--set", setting]
        subprocess.run(arguments, check=True)
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][WARMUP_STEPS:]


for name, (settings, steps) in SHAPES.items():
    found = rows(settings, steps)
    tokens = found[1]["tokens"] - found[0]["tokens"]
    seconds = {row["step"]: tokens / row["tokens_per_second"] for row in found}
    plain = statistics.median(s for step, s in seconds.items() if step % RECORD_EVERY)
    recordings = [
        seconds[step] - statistics.median([seconds[step - 2], seconds[step - 1], seconds[step + 1]])
        for step in seconds
        if step % RECORD_EVERY == 0 and {step - 2, step + 1} <= seconds.keys()
    ]
    recording = statistics.median(recordings)
    print(
        f"{name}: step {1e3 * plain:.1f} ms, recording {1e3 * recording:.2f} ms, "
        f"overhead at one recording per ten steps {10 * recording / plain:.2f} %"
    )
