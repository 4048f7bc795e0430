"""A timm ViT with its weights as a castled one: softmax attention that can become linear, in a folder that timm loads.

python tools/castle.py deit_tiny_patch16_224 --pretrained --output output/castled/deit_tiny
python tools/castle.py deit_small_patch16_224 --checkpoint mine.safetensors --blocks 0 1 2 --output output/castled/mine
python tools/castle.py local-dir:output/castled/tuned --finish --data-dir photos --output output/castled/finished
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import MISTAKES, key_value
from hub_folder import check_target, write_hub_folder
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch import nn
from weight_files import count_classes, pick_weights, read_checkpoint

import asvit_plugin
from asvit_plugin.costs import ATTENTION_RUNTIMES, macs, params
from asvit_plugin.layers import castled_attention, mask_statistics


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="timm's name of it, or local-dir:FOLDER or hf-hub:OWNER/NAME")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; new or empty")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="load the model's public weights")
    weights.add_argument("--checkpoint", type=Path, help="load this file of weights")
    parser.add_argument("--model-kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--blocks", nargs="+", default=["all"], help="all, auto, or names or numbers of blocks")
    parser.add_argument("--mode", default="softmax", help="softmax, masked or linear: the state that it starts in")
    parser.add_argument("--img-size", type=int, nargs="+", help="height [width] in pixels that auto counts tokens for")
    parser.add_argument(
        "--runtime", default="eager", choices=ATTENTION_RUNTIMES, help="whose measurements auto looks up"
    )
    parser.add_argument("--dwconv-kernel-size", type=int, help="taps of the convolution along the tokens (9)")
    parser.add_argument("--half-term", help="identity (as released) or mean (the kernel itself)")
    parser.add_argument("--data-dir", type=Path, help="folder of images on which the output gains are calibrated")
    parser.add_argument("--num-images", type=int, default=64, help="how many of them")
    parser.add_argument("--finish", action="store_true", help="of a castled model: drop the softmax branch")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="what --finish takes for empty on --data-dir")
    return parser


def build(args: argparse.Namespace) -> nn.Module:
    kwargs: dict[str, Any] = dict(args.model_kwargs)
    if args.checkpoint:
        _, weights = pick_weights(read_checkpoint(args.checkpoint), args.checkpoint)
        classes = count_classes(weights) or 0
        overlay = dict(file=str(args.checkpoint), state_dict=weights, num_classes=classes)
        kwargs.update(pretrained_cfg_overlay=overlay, num_classes=classes)  # of equal classes timm loads all or nothing
    loads = args.pretrained or args.checkpoint is not None or ":" in args.model
    if not loads:
        print("the weights are random: --pretrained loads the public ones, --checkpoint FILE your own")
    return timm.create_model(args.model, pretrained=loads, **kwargs).eval()


def blocks_of(args: argparse.Namespace) -> str | list[str | int]:
    if args.blocks in (["all"], ["auto"]):
        return args.blocks[0]
    return [int(block) if block.lstrip("-").isdigit() else block for block in args.blocks]


def load_images(model: nn.Module, args: argparse.Namespace) -> torch.Tensor | None:
    """The first images of the folder (with or without folders of classes), as the model takes them."""
    if args.data_dir is None:
        return None
    if not args.data_dir.is_dir():
        raise ValueError(f"argument --data-dir: there is no folder {args.data_dir}")
    transform = create_transform(**resolve_model_data_config(model))
    dataset = create_dataset("", root=str(args.data_dir), class_map={})
    dataset.transform = transform
    return torch.stack([dataset[i][0] for i in range(min(args.num_images, len(dataset)))])


def castle(args: argparse.Namespace) -> None:
    check_target(args.output)
    model = build(args)
    images = load_images(model, args)
    if args.finish:
        report_mask(model, images)
        asvit_plugin.finish(model, images, args.tolerance)
    else:
        options = dict(dwconv_kernel_size=args.dwconv_kernel_size, half_term=args.half_term)
        options = {name: value for name, value in options.items() if value is not None}
        size = tuple(args.img_size) * (2 if len(args.img_size) == 1 else 1) if args.img_size else None
        asvit_plugin.castle(model, blocks_of(args), args.mode, images, size, args.runtime, **options)
    castled = castled_attention(model)
    state = next(iter(castled.values()))
    print(f"castled: {', '.join(castled)}")
    print(f"blend {state.blend:g}, threshold {state.threshold:g}{', finished' if state.finished else ''}")
    print(f"{params(model):,} parameters, {macs(model) / 1e9:.3f} GMACs in this state")
    write_hub_folder(model, args.output)
    print(f"written: {args.output}; loaded again, it gives the same outputs bit for bit")


def report_mask(model: nn.Module, images: torch.Tensor | None) -> None:
    if images is not None:
        for name, each in mask_statistics(model, images).items():
            print(f"{name}: {each.density:.2%} of the softmax weights kept, {each.share:.2%} of the output")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        castle(args)
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
