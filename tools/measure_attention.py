"""Time softmax and linear-angular attention in turn over numbers of tokens, and keep what castle(blocks="auto") reads.

python tools/measure_attention.py --num-heads 6 --head-dim 64 --runtime eager compile
python tools/measure_attention.py --threads 1 --clock cpu --json docs/benchmarks/attention_amd_epyc.json

Timed are whole blocks, and their cores, which lie between the projections; a copy of a large tensor in the same turns
says how fast this device moves memory.
"""

import argparse
import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import MISTAKES, demand_positive
from attention_report import HEADER, caption, line
from result_files import machine_record, write_json
from torch import nn
from torch.nn.attention import SDPBackend

from asvit_plugin.costs import (
    ATTENTION_RUNTIMES,
    DTYPES,
    AttentionTiming,
    Latency,
    LatencyProbe,
    LatencySetting,
    bandwidth,
    copy_probe,
    measure_in_turn,
    read_attention_timings,
    speed_ratio,
    write_attention_timings,
)
from asvit_plugin.costs.attention_table import attention_table_path
from asvit_plugin.costs.latency_record import hardware_name
from asvit_plugin.layers import LinearAngularAttention

MODES = ("softmax", "linear")
MOST_TOKENS = 4 * 4097  # of a batch whose size is not given
LARGEST_WEIGHTS = 4 * 2**30  # bytes of N x N weights that a kernel may hold


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64, help="channels per head")
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 577, 1025, 4097, 16385])
    parser.add_argument("--batch-size", type=int, help=f"4, or fewer where that is more than {MOST_TOKENS:,} tokens")
    parser.add_argument("--runtime", nargs="+", default=["eager"], choices=ATTENTION_RUNTIMES)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time of one thread")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each is timed, in all rounds together")
    parser.add_argument("--rounds", type=int, default=7, help="turns that these seconds are split into")
    parser.add_argument("--table", type=Path, help="file for castle(blocks='auto') (in the user's cache by default)")
    parser.add_argument("--json", type=Path, help="also write all figures here, after every number of tokens")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is timed."""
    if min(args.tokens) < 2:
        raise ValueError(f"argument --tokens holds {min(args.tokens)}; it must be at least 2")
    if not args.seconds > 0:
        raise ValueError(f"argument --seconds is {args.seconds}; it must be positive")
    for tokens in args.tokens:
        batch, weights = batch_size(tokens, args), 0
        if softmax_kernel(tokens, args) == "math":
            weights = batch * args.num_heads * tokens**2 * DTYPES[args.dtype].itemsize
        if weights > LARGEST_WEIGHTS:
            raise ValueError(
                f"argument --tokens holds {tokens}; softmax attention of these heads is not fused on '{args.device}' "
                f"and would hold weights of {weights / 2**30:.1f} GiB"
            )
    if (args.table or attention_table_path()).exists():  # a broken file is refused before anything is timed
        for runtime in args.runtime:
            read_attention_timings(args.device, runtime, args.table, args.dtype)


def batch_size(tokens: int, args: argparse.Namespace) -> int:
    return args.batch_size or max(1, min(4, MOST_TOKENS // tokens))


def softmax_kernel(tokens: int, args: argparse.Namespace) -> str:
    """Name of the kernel by which PyTorch's attention, or timm where it is told not to use that, runs on such heads."""
    if not block(args, "softmax").fused_attn:
        return "math"
    shape = batch_size(tokens, args), args.num_heads, tokens, args.head_dim
    x = torch.empty(shape, device=args.device, dtype=DTYPES[args.dtype])
    return SDPBackend(torch._fused_sdp_choice(x, x, x)).name.lower()


def block(args: argparse.Namespace, mode: str) -> LinearAngularAttention:
    dim = args.num_heads * args.head_dim
    return LinearAngularAttention(dim, args.num_heads, qkv_bias=True, mode=mode, num_prefix_tokens=1, output_gain=True)


class Core(nn.Module):
    """What a block does between its projections: queries, keys and values (B, N, 3 * dim) in, (B, N, dim) out."""

    def __init__(self, attention: LinearAngularAttention) -> None:
        super().__init__()
        self.attention = copy.deepcopy(attention)
        self.attention.qkv, self.attention.proj = nn.Identity(), nn.Identity()

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return self.attention(qkv)


def measure(tokens: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all runtimes at one number of tokens: blocks, cores and a copy, all in turn."""
    batch, dim = batch_size(tokens, args), args.num_heads * args.head_dim
    how = args.device, args.dtype, args.threads, args.clock
    probes: dict[tuple[str, ...], LatencyProbe] = {("copy",): copy_probe(LatencySetting("eager", *how))}
    for runtime in dict.fromkeys(args.runtime):
        for mode in MODES:
            attention = block(args, mode)
            for part, module, width in (("block", attention, dim), ("core", Core(attention), 3 * dim)):
                x = torch.randn(batch, tokens, width)
                probes[runtime, part, mode] = LatencyProbe(module, x, LatencySetting(runtime, *how))
    timed = dict(zip(probes, measure_in_turn(list(probes.values()), args.seconds, args.rounds)))
    shared = {
        "tokens": tokens,
        "batch_size": batch,
        "sdpa": softmax_kernel(tokens, args),
        "bandwidth": bandwidth(timed["copy",]),
        "bytes": 4 * batch * tokens * dim * DTYPES[args.dtype].itemsize,  # read q, k and v once, write the output once
    }
    return [
        {"runtime": runtime, **shared, **{part: compare(timed, runtime, part) for part in ("block", "core")}}
        for runtime in dict.fromkeys(args.runtime)
    ]


def compare(timed: dict[tuple[str, ...], Latency], runtime: str, part: str) -> dict[str, Any]:
    """Seconds of both modes, and the ratio's median, tenth and ninetieth percentile over the rounds."""
    softmax, linear = (timed[runtime, part, mode] for mode in MODES)
    return {"softmax": softmax.median, "linear": linear.median, "ratio": speed_ratio(linear, softmax)}


def keep(row: dict[str, Any], args: argparse.Namespace) -> Path:
    """Put a row where ``castle(blocks="auto")`` finds it."""
    part = row["block"]
    shape = args.num_heads, args.head_dim, row["tokens"], part["softmax"], part["linear"]
    timing = AttentionTiming(*shape, row["batch_size"], args.threads, part["ratio"][1])
    return write_attention_timings([timing], args.device, row["runtime"], args.table, args.dtype)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    demand_positive(parser, args, "num_heads", "head_dim", "batch_size", "rounds", "threads")
    fields = ("num_heads", "head_dim", "dtype", "threads", "clock", "seconds", "rounds")
    try:
        LatencySetting("eager", args.device, args.dtype, args.threads, args.clock)
        check(args)
        torch.manual_seed(0)
        where = {**machine_record(args.device, args.threads), "hardware": hardware_name(args.device)}
        results = {"machine": where, "setting": {name: getattr(args, name) for name in fields}, "rows": []}
        print(HEADER)
        for tokens in sorted(set(args.tokens)):
            for row in measure(tokens, args):
                results["rows"].append(row)
                print(line(row), flush=True)
                table = keep(row, args)
            if args.json:
                write_json(args.json, results)
        print(f"{caption(results)}\nwritten to {table}")
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
