"""Measures training steps of a decoder in idiomatic PyTorch.

Fused QKV and gate/up projections, `scaled_dot_product_attention`, `nn.RMSNorm`, `fused=True` AdamW,
gradient clipping, eager or `torch.compile`, in single precision or with autocast to bfloat16. Prints one
JSON line. Run it through `compare.py`.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Attention(nn.Module):
    def __init__(self, d, heads, kv_heads, qkv_norm):
        super().__init__()
        self.heads, self.kv_heads, self.k = heads, kv_heads, d // heads
        self.qkv = nn.Linear(d, (heads + 2 * kv_heads) * self.k, bias=False)
        self.out = nn.Linear(heads * self.k, d, bias=False)
        names = "qkv" if qkv_norm else ""
        self.norms = nn.ModuleDict({n: nn.RMSNorm(self.k, eps=1e-5) for n in names})

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h, g, k = self.heads, self.kv_heads, self.k
        q, key, v = self.qkv(x).view(b, t, h + 2 * g, k).transpose(1, 2).split([h, g, g], dim=1)
        if self.norms:
            q, key, v = self.norms["q"](q), self.norms["k"](key), self.norms["v"](v)
        q, key = rotate(q, cos, sin), rotate(key, cos, sin)
        o = F.scaled_dot_product_attention(q, key, v, is_causal=True, enable_gqa=h != g)
        return self.out(o.transpose(1, 2).reshape(b, t, h * k))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class FeedForward(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.up = nn.Linear(d, 2 * f, bias=False)
        self.down = nn.Linear(f, d, bias=False)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    """Dropless top-k experts with hidden width f: rows sorted by expert, one matmul per expert."""

    def __init__(self, d, f, experts, top_k):
        super().__init__()
        self.top_k, self.experts = top_k, experts
        self.router = nn.Linear(d, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, 2 * f, d))
        self.down = nn.Parameter(torch.empty(experts, d, f))
        self.losses = 0.0

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        logits = self.router(flat)
        p = logits.softmax(dim=-1)
        weights, expert_indices = p.topk(self.top_k, dim=-1)
        expert_indices = expert_indices.flatten()
        load = torch.bincount(expert_indices, minlength=self.experts)
        load_balancing_loss = self.experts * (load / expert_indices.numel() * p.mean(dim=0)).sum()
        self.losses = 0.01 * load_balancing_loss + 0.001 * logits.logsumexp(dim=-1).square().mean()
        order = expert_indices.argsort(stable=True)
        token = order // self.top_k
        parts = flat.index_select(0, token).split(load.tolist())
        outputs = []
        for rows, up, down in zip(parts, self.up, self.down):
            gate, inner = F.linear(rows, up).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * inner, down))
        weighted = torch.cat(outputs) * weights.flatten().index_select(0, order).unsqueeze(-1)
        return torch.zeros_like(flat, dtype=weighted.dtype).index_add(0, token, weighted).view_as(x)


class Block(nn.Module):
    def __init__(self, d, heads, kv_heads, f, placement, experts, top_k):
        super().__init__()
        self.hybrid = placement == "hybridnorm"
        self.attn = Attention(d, heads, kv_heads, qkv_norm=self.hybrid)
        self.ffn = Experts(d, f, experts, top_k) if experts else FeedForward(d, f)
        self.attn_norm = nn.Identity() if self.hybrid else nn.RMSNorm(d, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(d, eps=1e-5)

    def forward(self, x, cos, sin):
        y = x + self.attn(self.attn_norm(x), cos, sin)
        z = self.ffn_norm(y)
        return (z if self.hybrid else y) + self.ffn(z)


class Decoder(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embed = nn.Embedding(a.vocab, a.d)
        self.blocks = nn.ModuleList(
            Block(a.d, a.heads, a.kv_heads or a.heads, a.ff, a.placement, a.experts, a.top_k)
            for _ in range(a.layers)
        )
        self.norm = nn.RMSNorm(a.d, eps=1e-5)
        self.head = nn.Linear(a.d, a.vocab, bias=False)
        k = a.d // a.heads
        angles = torch.outer(torch.arange(a.seq), 10000 ** (-torch.arange(0, k, 2) / k))
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.dim() >= 2:
                nn.init.normal_(p, std=(2.5 * a.d) ** -0.5)

    def forward(self, ids, targets):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        router_losses = [block.ffn.losses for block in self.blocks if isinstance(block.ffn, Experts)]
        return loss + sum(router_losses) / len(router_losses) if router_losses else loss


def main():
    parser = argparse.ArgumentParser()
    for name, value in [("d", 128), ("layers", 4), ("heads", 4), ("kv-heads", 0), ("ff", 344),
                        ("vocab", 4096), ("seq", 128), ("batch", 16), ("threads", 2),
                        ("experts", 0), ("top-k", 2)]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--placement", choices=["hybridnorm", "pre-norm"], default="hybridnorm")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32",
                        help="bf16: torch.autocast")
    parser.add_argument("--seconds", type=float, default=10)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    model = Decoder(a)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=True)
    run = torch.compile(model) if a.compile else model
    tokens = torch.randint(a.vocab, (a.batch, a.seq + 1))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
            loss = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    first = step().item()
    for _ in range(2):
        step()
    times, end = [], time.monotonic() + a.seconds
    while len(times) < 5 or time.monotonic() < end:
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    print(json.dumps({
        "name": f"pytorch {'compile' if a.compile else 'eager'} {a.precision}",
        "version": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [first, loss.item()],
        "steps": len(times),
        "step_seconds": seconds,
        "tokens_per_second": a.batch * a.seq / seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


main()
