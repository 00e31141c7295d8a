"""Measures latency and throughput of `hybridnorm serve` with one client and with many.

    cargo build --release
    target/release/hybridnorm serve CHECKPOINT --slots 64 &
    python3 bench/serve_load.py http://127.0.0.1:8080 --clients 64 --seconds 120

Each client completes prompts of 8 to 40 tokens by 64 tokens, one request after another. Prints requests, tokens per
second, latencies, and the server's resident memory after a warm-up and at the end. Any failed request ends the program.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
from urllib.parse import urlparse


class Client(threading.Thread):
    def __init__(self, host, index, end, max_tokens):
        super().__init__()
        self.connection = http.client.HTTPConnection(host, timeout=600)
        self.index, self.end, self.max_tokens = index, end, max_tokens
        self.latencies, self.tokens, self.error = [], 0, None

    def run(self):
        try:
            while time.monotonic() < self.end:
                n = 8 + (7 * self.index + 5 * len(self.latencies)) % 33
                body = {"prompt": [[(31 * i + self.index) % 200 for i in range(n)]], "max_tokens": self.max_tokens, "seed": n}
                start = time.monotonic()
                self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                response = self.connection.getresponse()
                document = json.loads(response.read())
                if response.status != 200:
                    raise RuntimeError(f"status {response.status}: {document}")
                self.latencies.append(time.monotonic() - start)
                self.tokens += document["usage"]["completion_tokens"]
        except Exception as error:  # Reported by the main thread.
            self.error = error


def load(host, clients, seconds, max_tokens):
    start = time.monotonic()
    threads = [Client(host, i, start + seconds, max_tokens) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    failed = [thread.error for thread in threads if thread.error]
    if failed:
        raise SystemExit(f"{len(failed)} clients failed, the first with: {failed[0]}")
    latencies = sorted(x for thread in threads for x in thread.latencies)
    tokens = sum(thread.tokens for thread in threads)
    quantile = lambda q: 1e3 * latencies[int(q * (len(latencies) - 1))]
    print(f"{clients} clients, {elapsed:.0f} s: {len(latencies)} requests, no error, {tokens / elapsed:.0f} tokens/s; "
          f"latency median {quantile(0.5):.0f} ms, 95 % {quantile(0.95):.0f} ms, longest {quantile(1):.0f} ms; "
          f"{1e3 * statistics.mean(latencies) * len(latencies) / tokens:.2f} ms per token; "
          f"resident memory {resident(host):.1f} MiB", flush=True)


def resident(host):
    connection = http.client.HTTPConnection(host)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return float(line.split()[1]) / 2**20
    return float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    host = urlparse(args.url).netloc
    load(host, 1, min(20, args.seconds), args.max_tokens)
    load(host, args.clients, min(15, args.seconds), args.max_tokens)  # warm-up
    load(host, args.clients, args.seconds, args.max_tokens)


if __name__ == "__main__":
    main()
