"""Speed of `eval --tasks` relative to transformers on the same requests, with the same number of threads.

    python bench/tasks.py FOLDER CHECKPOINT TASK [--documents 100] [--threads 2] [--program target/release/hybridnorm]

FOLDER is a model in Hugging Face's format with its tokenizer, CHECKPOINT the same model, imported. Both score the
requests (unconditional ones included) of the first documents of TASK, a file of requests. transformers runs batches of
eight sequences, sorted by length and padded, in single precision. Tokens per second are tokens of contexts and
continuations, the same number for both; loading is not included: the program's time is the median of three runs, less
that of one document. CPU seconds are printed too, because they depend less on other programs that run at the same time.
"""

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def requests(path, documents):
    opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)
    with opened as lines:
        all_requests = [json.loads(line) for line in lines]
    ids = list(dict.fromkeys(request["doc_id"] for request in all_requests if request["doc_id"] < 1_000_000))
    kept = set(ids[:documents])
    return [request for request in all_requests if request["doc_id"] % 1_000_000 in kept]


def cpu(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def run_transformers(folder, texts, threads):
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    longest = model.config.max_position_embeddings
    encoded = []
    for context, continuation in texts:
        whole, start = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
        cut = max(0, len(whole) - longest - 1)
        encoded.append((whole[cut:], start - cut))
    encoded.sort(key=lambda item: -len(item[0]))
    tokens = sum(len(whole) - 1 for whole, _ in encoded)
    started, before = time.perf_counter(), cpu(resource.RUSAGE_SELF)
    total = 0.0
    with torch.inference_mode():
        for at in range(0, len(encoded), 8):
            batch = encoded[at : at + 8]
            width = max(len(whole) for whole, _ in batch) - 1
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            for row, (whole, _) in enumerate(batch):
                ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            logits = model(ids).logits
            for row, (whole, start) in enumerate(batch):
                logs = torch.log_softmax(logits[row, start - 1 : len(whole) - 1], dim=-1)
                total += logs.gather(1, torch.tensor(whole[start:])[:, None]).sum().item()
    return tokens, time.perf_counter() - started, cpu(resource.RUSAGE_SELF) - before, total


def run_program(program, checkpoint, path, documents, threads):
    started, before = time.perf_counter(), cpu(resource.RUSAGE_CHILDREN)
    command = [program, "--quiet", "--threads", str(threads), "eval", checkpoint, "--tasks", path, "--json"]
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(command + ["--limit", str(documents), "--out", out], check=True, stdout=subprocess.DEVNULL)
        samples = [json.loads(line) for line in next(Path(out).glob("samples_*")).open()]
    seconds, used = time.perf_counter() - started, cpu(resource.RUSAGE_CHILDREN) - before
    total = sum(float(resp[0]) for sample in samples for resp in sample["filtered_resps"])
    return seconds, used, total + sum(sum(sample.get("unconditional", [])) for sample in samples)


def run_program_thrice(*args):
    """Returns the median of each result of three runs."""
    return [statistics.median(values) for values in zip(*(run_program(*args) for _ in range(3)))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("checkpoint")
    parser.add_argument("task")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default="target/release/hybridnorm")
    args = parser.parse_args()
    texts = [(r["request"]["context"], r["request"]["continuation"]) for r in requests(args.task, args.documents)]
    tokens, seconds, used, total = run_transformers(args.folder, texts, args.threads)
    print(f"transformers {len(texts)} requests {tokens} tokens {tokens / seconds:.0f} tokens/s {used:.1f} CPU s")
    # The time of one document: start, loading, encoding.
    start = run_program_thrice(args.program, args.checkpoint, args.task, 1, args.threads)
    ours = run_program_thrice(args.program, args.checkpoint, args.task, args.documents, args.threads)
    net, net_used = ours[0] - start[0], ours[1] - start[1]
    print(f"hybridnorm   {len(texts)} requests {tokens} tokens {tokens / net:.0f} tokens/s {net_used:.1f} CPU s")
    print(f"speed-up {seconds / net:.2f}, of CPU time {used / net_used:.2f}; log-likelihoods {total:.3f} {ours[2]:.3f}")


main()
