#!/usr/bin/env python3
"""Compares exported models with `transformers`: logits, block by block, with and without a cache, with left padding,
in `generate`, with gradient checkpointing; and the tokenizer.

    bench/check_export.py [--all] [--venv DIR]

The models have random weights; without --all there are a few placements, with it all named ones, each dense, with a
mixture of experts, with latent attention and with both. Without an interpreter that has transformers, the script installs
it into a virtual environment, in a temporary folder or in DIR.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import py_compile
import subprocess
import sys
import tempfile
import venv

PACKAGES = ["torch==2.15.0", "transformers==5.24.0", "safetensors"]
LIMIT = 1e-4
ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all named placements")
    parser.add_argument("--venv", type=pathlib.Path, help="virtual environment, kept for later runs")
    parser.add_argument("--models", type=pathlib.Path, help="folder of models that were written before")
    args = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        with tempfile.TemporaryDirectory() as temporary:
            sys.exit(run_in_environment(args.venv or pathlib.Path(temporary) / "venv"))
    with tempfile.TemporaryDirectory() as temporary:
        # The modules of exported models must not mix with those of other models.
        os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=temporary + "/modules")
        models = args.models or write_models(pathlib.Path(temporary) / "models", args.all)
        sys.exit(check_all(models))


def run_in_environment(folder):
    """Runs this script again in a virtual environment with the packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return subprocess.run([python, *sys.argv]).returncode


def write_models(folder, is_all):
    folder.mkdir()
    environment = dict(os.environ, EXPORT_MODELS=str(folder))
    if is_all:
        environment["EXPORT_ALL"] = "1"
    command = "cargo test --release -q -p hybridnorm --test export -- --ignored write_models"
    subprocess.run(command.split(), cwd=ROOT, env=environment, check=True)
    return folder


def check_all(models):
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failures, largest, count = [], 0.0, 0
    for folder in sorted(path.parent for path in models.glob("*/config.json")):
        problems = []
        try:
            differences = check(folder, problems)
            largest = max(largest, *differences.values())
            problems += [f"{name} {value:.1e}" for name, value in differences.items() if not value <= LIMIT]
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        count += 1
        if problems:
            failures.append(folder.name)
            print(f"{folder.name}: {'; '.join(problems)}", flush=True)
    tokens = models / "tokens.json"
    if tokens.exists() and not tokenizer_agrees(models, json.loads(tokens.read_text())):
        failures.append("tokenizer")
    print(
        f"transformers {transformers.__version__}: {count} models, {len(failures)} failed; "
        f"largest difference {largest:.1e}, relative to logits above 1"
    )
    return 1 if failures else 0


def tokenizer_agrees(models, expected):
    from transformers import AutoTokenizer

    folder = next(path.parent for path in sorted(models.glob("setting-*/tokenizer.json")))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    found = tokenizer(expected["text"]).input_ids
    if found != expected["ids"]:
        print(f"tokenizer: {found}, expected {expected['ids']}")
        return False
    decoded = tokenizer.decode(found)
    if decoded != expected["text"]:
        print(f"tokenizer: decodes to {decoded!r}, expected {expected['text']!r}")
        return False
    chat = tokenizer.apply_chat_template(expected["messages"], tokenize=True, return_dict=True)["input_ids"]
    if chat != expected["chat"]:
        print(f"tokenizer: a chat has the tokens {chat}, expected {expected['chat']}")
        return False
    spelled = tokenizer(expected["spelled"]).input_ids
    if spelled != expected["spelled_ids"]:
        print(f"tokenizer: {expected['spelled']!r} has the tokens {spelled}, expected {expected['spelled_ids']}")
        return False
    return True


def check(folder, problems):
    """Returns the largest differences by kind of comparison, divided by the largest logit if that is above 1."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    for source in folder.glob("*.py"):
        py_compile.compile(str(source), doraise=True)
    expected = load_file(folder / "selftest.safetensors")
    ids, logits = expected["tokens"], expected["logits"]
    scale = max(1.0, logits.abs().max().item())

    def load(**options):
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, **options).eval()

    def difference(found, expected):
        assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        return (found - expected).abs().max().item() / scale

    model = load()
    states = {}
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    for i, layer in enumerate(blocks):
        names = (f"blocks.{i}.x", f"blocks.{i}.y")
        layer.register_forward_hook(
            lambda _, __, x, names=names: states.update(zip(names, x if isinstance(x, tuple) else (x,)))
        )
    differences = {}
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        differences["logits"] = difference(output.logits, logits)
        for name in expected.keys() & states.keys():
            largest = max(1.0, expected[name].abs().max().item())
            differences[name] = (states[name] - expected[name]).abs().max().item() / largest
        problems += [f"no {name}" for name in expected.keys() - states.keys() - {"tokens", "logits"}]
        if len(output.hidden_states) != len(blocks) + 1:
            problems.append(f"{len(output.hidden_states)} hidden states")
        differences["eager attention"] = difference(load(attn_implementation="eager")(ids).logits, logits)
        differences["cache"] = difference(with_cache(model, ids), logits)
        differences["left padding"] = difference(left_padded(model, ids), logits)
    problems += generation(model, ids[:, :6])
    problems += checkpointing(model, ids)
    problems += self_test(folder)
    return differences


def with_cache(model, ids):
    import torch

    output = model(ids[:, :5], use_cache=True)
    # The name before transformers 5.24 was past_key_values.
    name = "cache" if "cache" in output else "past_key_values"
    parts = [output.logits]
    for t in range(5, ids.shape[1]):
        output = model(ids[:, t : t + 1], use_cache=True, **{name: output[name]})
        parts.append(output.logits)
    return torch.cat(parts, 1)


def left_padded(model, ids):
    """Returns the logits of the second of two sequences, which is shorter and padded, at its first positions."""
    import torch

    n = 4
    positions = ids.shape[1]
    batch = torch.cat((ids, torch.cat((torch.zeros_like(ids[:, :n]), ids[:, : positions - n]), 1)))
    mask = torch.ones_like(batch)
    mask[1, :n] = 0
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(batch, attention_mask=mask, position_ids=position_ids).logits
    # The last positions, which the shorter sequence lacks, are compared in the other one.
    return torch.cat((padded[1:, n:], padded[:1, positions - n :]), 1)


def generation(model, ids):
    """Compares greedy generation with and without a cache, alone and in a batch with a longer, left-padded prompt."""
    import torch

    longer = torch.cat((ids[:, :4], ids), 1)
    batch = torch.cat((longer, torch.cat((torch.zeros_like(ids[:, :4]), ids), 1)))
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
    without = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)[0, ids.shape[1] :]
    padded = model.generate(batch, attention_mask=mask, **options)[1, batch.shape[1] :]
    found = {"without a cache": without, "left-padded": padded}
    return [f"generation {name} differs" for name, tokens in found.items() if not torch.equal(tokens, alone)]


def checkpointing(model, ids):
    """Compares gradients with and without gradient checkpointing."""
    import torch

    def gradients():
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.train()
    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    recomputed = gradients()
    model.eval()
    same = len(plain) == len(recomputed) and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, recomputed))
    return [] if same else ["gradients with gradient checkpointing differ"]


def self_test(folder):
    """Runs the script of the folder, for some of the models: each takes seconds."""
    if folder.name not in ("setting-windows", "family-llama"):
        return []
    result = subprocess.run([sys.executable, folder / "selftest.py", folder], capture_output=True, text=True)
    return [] if result.returncode == 0 else [f"selftest.py: {result.stderr.strip().splitlines()[-1:]}"]


if __name__ == "__main__":
    main()
