"""Compares this folder in transformers with the model that it was exported from, and names the first difference."""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

folder = sys.argv[1] if len(sys.argv) > 1 else "."
expected, found = load_file(f"{folder}/selftest.safetensors"), {}
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
for i, layer in enumerate(blocks):
    # A block returns its residual stream, or a tuple of two.
    layer.register_forward_hook(
        lambda _, __, x, i=i: found.update(zip((f"blocks.{i}.x", f"blocks.{i}.y"), x if isinstance(x, tuple) else (x,)))
    )
with torch.no_grad():
    found["logits"] = model(expected["tokens"]).logits
names = [name for name in found if name in expected]
missing = sorted(expected.keys() - {"tokens", *found})
for name in names:
    difference = (found[name] - expected[name]).abs().max().item()
    if not difference <= 1e-4 * max(1.0, expected[name].abs().max().item()):
        sys.exit(f"{name} is the first that differs, by up to {difference:.1e}")
if missing:
    sys.exit(f"{missing[0]} is not an output of this model; compared and equal: {len(names)}, not compared: {len(missing)}")
print(f"equal: all {len(blocks)} blocks, and logits within {difference:.1e}")
