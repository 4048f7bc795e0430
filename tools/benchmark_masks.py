"""What gates cost in training: time of a step, and what the backward pass keeps, beside the net without gates.

python tools/benchmark_masks.py deit_tiny_patch16_224 --threads 1 --clock cpu
python tools/benchmark_masks.py digits_vit_resnas --img-size 56 --batch-size 64 --threads 1 --clock cpu

A step is forward and backward pass with the expected cost, and AdamW; "saved" is of all tensors that autograd keeps of
the forward pass. All kinds of steps are timed in turn.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from arguments import MISTAKES, demand_positive
from result_files import machine_record, write_json
from torch import nn

from asvit_plugin.costs import LatencyProbe, LatencySetting, measure_in_turn, speed_ratio
from asvit_plugin.search import gate_network, gate_vit
from asvit_plugin.search.gated_net import GatedNet
from asvit_plugin.search.vit_space import DEFAULT_PARTS

PLAIN = "the net without gates"
HEADER = "| step | time over the plain net's | saved, MiB | over the plain net's |\n|---|---|---|---|"


class GatedStep(nn.Module):
    """A gated net as training uses it: what is computed is decided anew for each batch.

    Args:
        net: The net.
        how: "one option of each gate" or "mixture" of drawn gates, or "one net" that no gate learns from.
    """

    def __init__(self, net: GatedNet, how: str) -> None:
        super().__init__()
        self.net, self.how = net, how
        self.choice = net.space.sample(np.random.default_rng(0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images (B, C, H, W), with the expected cost in their graph where gates learn."""
        gates = self.net.gates
        if self.how == "one net":
            gates.fix(self.choice)
            return self.net(images)
        gates.draw(5.0, hard=self.how != "mixture")
        return self.net(images) + 0.0 * self.net.cost("macs").log().to(images)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", help="a plain ViT of timm, or a space of vit_resnas by name")
    parser.add_argument("--options", type=int, nargs="+", default=[3, 13, 97], help="of a plain ViT's widths")
    parser.add_argument("--token-strides", type=int, nargs="*", default=[2, 3], help="of a plain ViT, added one by one")
    parser.add_argument("--img-size", type=int, default=224, help="side of the square images in pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8, help="turns of every kind of step")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every turn, at least one step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time of one thread")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def gated_nets(args: argparse.Namespace) -> Iterator[tuple[str, GatedNet, tuple[str, ...]]]:
    """The gated nets with their names, and in which ways each is timed."""
    drawn = ("one option of each gate", "mixture")
    if not timm.is_model(args.net):
        for mode, ways in (("masks", (*drawn, "one net")), ("slices", ("one net",))):
            net = gate_network(args.net, img_size=args.img_size)
            net.network.mode = mode
            yield mode, net, ways
        return
    model = timm.create_model(args.net, img_size=args.img_size)
    parts = dict.fromkeys(DEFAULT_PARTS)
    yield "widths, heads, depth", gate_vit(model, parts), (*drawn, "one net")
    widths = {"embed_dim": model.embed_dim, "mlp_hidden": model.blocks[0].mlp.fc1.out_features}
    for count in args.options:
        grids = {name: np.linspace(most // 2, most, count).astype(int).tolist() for name, most in widths.items()}
        yield f"widths of {count} options", gate_vit(model, grids), drawn[1:]
    for number in range(1, len(args.token_strides) + 1):
        strides = (1, *args.token_strides[:number])
        text = ", ".join(map(str, strides))
        yield f"widths, heads, depth, token strides {text}", gate_vit(model, {**parts, "token_stride": strides}), drawn


def steps(args: argparse.Namespace) -> dict[str, nn.Module]:
    """What is timed, by name, the plain net first."""
    found: dict[str, nn.Module] = {}
    for name, net, ways in gated_nets(args):
        found.setdefault(PLAIN, net.extract(net.largest_choice()))
        found |= {f"{name}: {how}": GatedStep(net, how) for how in ways}
    return found


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes of all different tensors that the backward pass of a training step needs, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor comes to lie there
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(images)
    return sum(storage.nbytes() for storage in kept.values())


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of figures for every kind of step."""
    torch.manual_seed(0)
    models = {name: model.to(args.device) for name, model in steps(args).items()}
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)
    saved = {name: saved_bytes(model, images) for name, model in models.items()}
    setting = LatencySetting(device=args.device, threads=args.threads, clock=args.clock, step="training")
    probes = [LatencyProbe(model, images, setting) for model in models.values()]
    found = measure_in_turn(probes, args.seconds * args.rounds, args.rounds)
    return [
        {
            "step": name,
            "seconds": own.median,
            "time_ratio": dict(zip(("median", "p10", "p90"), speed_ratio(found[0], own))),
            "saved_bytes": saved[name],
            "saved_ratio": saved[name] / saved[PLAIN],
        }
        for name, own in zip(models, found)
    ]


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    ratio = row["time_ratio"]
    spread = f"{ratio['median']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})"
    return f"| {row['step']} | {spread} | {row['saved_bytes'] / 2**20:.1f} | {row['saved_ratio']:.2f} |"


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    demand_positive(parser, args, "batch_size", "rounds", "img_size", "threads")
    try:
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        rows = measure(args)
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))
    settings = {name: getattr(args, name) for name in ("net", "img_size", "batch_size", "rounds", "seconds", "clock")}
    print(f"{args.net}, batch of {args.batch_size}\n\n{HEADER}")
    print("\n".join(map(line, rows)))
    if args.json:
        write_json(args.json, {"machine": machine_record(args.device, args.threads), **settings, "steps": rows})


if __name__ == "__main__":
    main()
