"""Time softmax and linear-angular attention in turn over numbers of tokens, and keep what castle(blocks="auto") reads.

python tools/measure_attention.py --num-heads 6 --head-dim 64 --tokens 197 577 1025 4097
"""

import argparse
import copy
import os
import statistics
import time
from pathlib import Path

import torch
from arguments import demand_positive
from torch import nn

from asvit_plugin.costs import AttentionTiming, write_attention_timings
from asvit_plugin.layers import LinearAngularAttention


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64, help="channels per head")
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 577, 1025, 4097])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each, after two that are not timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="time the compiled blocks")
    parser.add_argument("--table", type=Path, help="file of measurements (in the user's cache by default)")
    args = parser.parse_args()
    demand_positive(parser, args, "num_heads", "head_dim", "batch_size", "rounds", "threads")
    if min(args.tokens) < 2:
        parser.error(f"argument --tokens holds {min(args.tokens)}; it must be at least 2")
    try:
        torch.zeros(1, device=args.device).item()
    except (AssertionError, RuntimeError) as error:
        parser.error(f"argument --device is {args.device!r}: {' '.join(str(error).split())}")
    return args


class WithoutProjections(nn.Module):
    """What a block does between its projections: queries, keys and values (B, N, 3 * dim) in, (B, N, dim) out."""

    def __init__(self, attention: LinearAngularAttention) -> None:
        super().__init__()
        self.attention = copy.deepcopy(attention)
        self.attention.qkv, self.attention.proj = nn.Identity(), nn.Identity()

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return self.attention(qkv)


def candidates(args: argparse.Namespace) -> dict[str, nn.Module]:
    """The whole block and its inner part, with softmax and in linear form."""
    modules: dict[str, nn.Module] = {}
    for mode in ("softmax", "linear"):
        block = LinearAngularAttention(
            args.num_heads * args.head_dim,
            args.num_heads,
            qkv_bias=True,
            mode=mode,
            num_prefix_tokens=1,
            output_gain=True,
        )
        modules[f"block {mode}"] = block.to(args.device).eval()
        modules[f"inner {mode}"] = WithoutProjections(block).to(args.device).eval()
    return {name: torch.compile(module) for name, module in modules.items()} if args.compile else modules


@torch.inference_mode()
def time_in_turn(modules: dict[str, nn.Module], tokens: int, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds per call of every module, one call of each per round."""
    dim = args.num_heads * args.head_dim
    inputs = {width: torch.randn(args.batch_size, tokens, width, device=args.device) for width in (dim, 3 * dim)}
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for timed in range(-2, args.rounds):
        for name, module in modules.items():
            x = inputs[3 * dim if name.startswith("inner") else dim]
            synchronize(args.device)
            start = time.perf_counter()
            module(x)
            synchronize(args.device)
            if timed >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    modules = candidates(args)
    runtime = "compile" if args.compile else "eager"
    print(f"{args.num_heads} heads of {args.head_dim}, batch {args.batch_size}, {args.device}, {runtime}, ms (ratio)")
    print("| tokens | softmax block | linear block | SDPA alone | linear without projections |\n|---|---|---|---|---|")
    timings = []
    for tokens in sorted(args.tokens):
        ms = {name: 1e3 * seconds for name, seconds in time_in_turn(modules, tokens, args).items()}
        cells = [f"{ms[f'{part} softmax']:.2f} | {ms[f'{part} linear']:.2f} ({ratio(ms, part):.2f})" for part in PARTS]
        print(f"| {tokens} | {' | '.join(cells)} |")
        softmax, linear = ms["block softmax"] / 1e3, ms["block linear"] / 1e3
        timings.append(AttentionTiming(args.num_heads, args.head_dim, tokens, softmax, linear))
    print("written to", write_attention_timings(timings, args.device, runtime, args.table))


PARTS = ("block", "inner")


def ratio(ms: dict[str, float], part: str) -> float:
    return ms[f"{part} softmax"] / ms[f"{part} linear"]


if __name__ == "__main__":
    main()
