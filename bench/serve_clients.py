"""Runs the `openai` client and `lm_eval --model local-completions` against `hybridnorm serve`, offline.

    cargo build --release
    pip install openai "lm_eval[api,hf]"    # torch, transformers
    python3 bench/serve_clients.py

Imports a random Llama model with a byte tokenizer, and evaluates it with lm-eval twice: with transformers in the same
process, and through the server, with prompts as token ids and as text. Prints the largest difference of a log-likelihood.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OPENAI_API_KEY", "unused")

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/hybridnorm"
CONTEXT = 256
CONFIG = """
[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
placement = "pre-norm"
[data]
train = ["stories:20"]
tokenizer = "bytes"
[train]
steps = 1
batch_size = 1
seq_len = 16
eval_sequences = 0
"""
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}<assistant>"


def program(*args):
    return subprocess.run([PROGRAM, "--quiet", *map(str, args)], check=True, capture_output=True, text=True).stdout


def write_model(folder):
    """Writes a random model in Hugging Face's format, with the tokenizer of a run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    (folder / "tiny.toml").write_text(CONFIG)
    program("train", folder / "tiny.toml", "--run", folder / "run")
    tokenizer = next((folder / "run/checkpoints").iterdir()) / "tokenizer"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=257, max_position_embeddings=CONTEXT, tie_word_embeddings=False, initializer_range=0.3,
        bos_token_id=256, eos_token_id=256,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "their")
    (folder / "their/tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "their/tokenizer_config.json").write_text(json.dumps(settings))
    program("import", folder / "their", "--out", folder / "model")


def write_tasks(folder):
    """Writes a multiple-choice task, and one with generated text."""
    rows = [
        {"question": f"What is {a} plus {b}?", "choices": [str(a + b + k) for k in range(4)], "answer": (a * b) % 4}
        for a in range(6) for b in range(5)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test", "doc_to_text": "{{question}} Answer:"}
    choice = data | {
        "task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    text = data | {
        "task": "text", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n", "zz"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    }
    return [choice, text]


def evaluate(tasks, model, args):
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=[dict(task) for task in tasks], task_manager=TaskManager(include_defaults=False),
        log_samples=True, bootstrap_iters=0, batch_size=args.pop("batch_size", 1),
    )
    samples = {name: [sample["resps"] for sample in rows] for name, rows in results["samples"].items()}
    return {name: {k: v for k, v in row.items() if isinstance(v, float)} for name, row in results["results"].items()}, samples


def check_lm_eval(folder, url):
    tasks, their = write_tasks(folder), str(folder / "their")
    expected, expected_samples = evaluate(tasks, "hf", {"pretrained": their, "dtype": "float32", "device": "cpu"})
    print("lm-eval with transformers:", expected)
    base = {"model": "model", "base_url": f"{url}/v1/completions", "tokenizer": their, "tokenizer_backend": "huggingface",
            "max_length": CONTEXT}
    for name, more in [
        ("token ids, one by one", {}),
        ("token ids, batches of 8, 4 at once", {"batch_size": 8, "num_concurrent": 4}),
        ("text", {"tokenized_requests": False}),
    ]:
        found, samples = evaluate(tasks, "local-completions", base | more)
        assert found == expected, (name, found)
        differences = [
            abs(float(a[0][0]) - float(b[0][0]))
            for rows in zip(samples["choice"], expected_samples["choice"]) for a, b in zip(*rows)
        ]
        greedy = [a[0][1] == b[0][1] for rows in zip(samples["choice"], expected_samples["choice"]) for a, b in zip(*rows)]
        assert all(greedy) and samples["text"] == expected_samples["text"], name
        print(f"lm-eval through the server, {name}: same metrics and texts; {len(differences)} log-likelihoods, "
              f"largest difference {max(differences):.1e}")


def check_openai(url):
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    print("openai: models", [model.id for model in client.models.list()])
    args = {"model": "model", "prompt": "One day", "max_tokens": 12, "seed": 1, "logprobs": 2}
    whole = client.completions.create(**args)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**args, stream=True))
    assert streamed == whole.choices[0].text and len(whole.choices[0].logprobs.top_logprobs) == 12
    several = client.completions.create(model="model", prompt=["a", "b"], n=2, max_tokens=3, echo=True)
    assert [choice.text[0] for choice in several.choices] == ["a", "a", "b", "b"]
    chat = {"model": "model", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 8, "temperature": 0,
            "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**chat)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3
    stream = client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content and chunks[-1].usage == answer.usage
    for name, call in {
        "logit_bias": lambda: client.completions.create(model="model", prompt="a", logit_bias={"5": 1}),
        "tools": lambda: client.chat.completions.create(**chat, tools=[{"type": "function", "function": {"name": "f"}}]),
        "n": lambda: client.completions.create(model="model", prompt="a", n=100),
    }.items():
        try:
            call()
        except openai.BadRequestError as error:
            assert error.param == name, error
        else:
            raise AssertionError(name)
    print("openai: completions, chats, streams, log-probabilities and errors as expected")


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        server = subprocess.Popen([PROGRAM, "serve", folder / "model", "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            url = server.stdout.readline().split()[-1]
            check_openai(url)
            check_lm_eval(folder, url)
        finally:
            server.terminate()
            print("server: exit code", server.wait(60))


if __name__ == "__main__":
    sys.exit(main())
