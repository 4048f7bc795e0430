"""A checkpoint, the authors' or our own, as a folder that timm loads: safetensors, config.json and a model card.

python tools/convert.py epoch@289_checkpoint.pth.tar --model vit_resnas_small --output output/converted
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from arguments import MISTAKES, key_value
from hub_folder import check_outputs, check_target, write_hub_folder
from model_card import licence_of, model_card
from timm.layers import to_2tuple
from torch import nn
from weight_files import Weights, count_classes, describe, pick_weights, read_checkpoint

from asvit_plugin import NetworkDef, list_models
from asvit_plugin.atomic import new_folder
from asvit_plugin.costs import params


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="file of torch.save or safetensors; no code in it is run")
    parser.add_argument("--model", required=True, help=f"one of {', '.join(list_models())}")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; new or empty")
    parser.add_argument("--model-kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--num-classes", type=int, help="as the file has (read from it), or 0 to drop its classifier")
    parser.add_argument("--licence", type=spdx, help="SPDX identifier, for weights that do not bring a licence")
    parser.add_argument(
        "--safetensors-only", action="store_true", help="no config.json and no card; the metadata names the licence"
    )
    return parser


def spdx(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SPDX identifier such as apache-2.0")
    return text.lower()


def convert(args: argparse.Namespace) -> None:
    if args.model not in list_models():
        raise ValueError(f"argument --model: {args.model!r} is none of {', '.join(list_models())}")
    target = args.output.resolve()
    check_target(args.output)
    checkpoint = read_checkpoint(args.checkpoint)
    entry, weights = pick_weights(checkpoint, args.checkpoint)
    licence = licence_of(weights, args.licence)
    kwargs = net_arguments(checkpoint, args)
    model = build(args, weights, kwargs)
    check_definition(model, checkpoint, args.checkpoint)

    source = f"{args.checkpoint.name}, its entry {entry}" if entry else args.checkpoint.name
    print(f"read: {source}: {len(weights)} tensors")
    report(model, weights, trace(args, weights, kwargs))
    others = [describe(name, value) for name, value in checkpoint.items() if entry and name != entry]
    print(f"dropped of the rest of the file: {', '.join(others) or 'nothing'}")
    print(f"licence: {licence[0]}. {licence[1]}")
    if args.safetensors_only:
        write_safetensors(model, kwargs, licence[0], target)
    else:
        write_hub_folder(model, target, model_card(model, licence, source, target), {"license": licence[0]})
    print(f"written: {target}; loaded again, it gives the same outputs bit for bit")


def net_arguments(checkpoint: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the model: the user's, and those that the file holds."""
    saved = checkpoint.get("model_args") if checkpoint.get("arch") == args.model else None  # of classification/train.py
    kwargs = {**(saved if isinstance(saved, dict) else {}), **dict(args.model_kwargs)}
    kwargs.pop("num_classes", None)
    if args.model == "vit_resnas" and "network_def" not in kwargs:
        kwargs["network_def"] = getattr(checkpoint.get("args"), "network_def", None)
        if kwargs["network_def"] is None:
            raise ValueError(f"{args.checkpoint} does not say which net it holds: pass --model-kwargs network_def=...")
    return kwargs


def build(args: argparse.Namespace, weights: Weights, kwargs: dict[str, Any]) -> nn.Module:
    """The model with the weights, which must cover it; there is never a new classifier."""
    classes = count_classes(weights)
    if classes and args.num_classes not in (None, 0, classes):
        raise ValueError(
            f"argument --num-classes is {args.num_classes}; {args.checkpoint} has {classes} classes, and only 0, which "
            f"drops its classifier, leaves nothing random"
        )
    overlay = dict(file=str(args.checkpoint), state_dict=weights, num_classes=classes or args.num_classes or 1000)
    if "in_chans" in kwargs or "img_size" in kwargs:  # they are said of the file too: its channels are not adapted
        _, *own = timm.get_pretrained_cfg(args.model).input_size
        overlay["input_size"] = (kwargs.get("in_chans", 3), *to_2tuple(kwargs.get("img_size", own)))
    kept = overlay["num_classes"] if args.num_classes is None else args.num_classes
    model = timm.create_model(args.model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=kept, **kwargs)
    return model.eval()


def check_definition(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse another net of equal shapes: tensors show only the product of heads and their width."""
    definition = getattr(checkpoint.get("args"), "network_def", None)
    if definition is None or not hasattr(model, "network_def"):
        return
    held, built = (replace(NetworkDef.parse(each), num_classes=0) for each in (definition, model.network_def))
    if held != built:
        raise ValueError(
            f"{path} holds another net, by network_def in its args; --model vit_resnas without network_def builds it"
        )


def trace(args: argparse.Namespace, weights: Weights, kwargs: dict[str, Any]) -> dict[str, str]:
    """The tensor of the file that each tensor of the model comes from: numbers are loaded in the place of weights."""
    names, numbered = list(weights), {}
    for number, name in enumerate(names):
        dtype = torch.float32 if weights[name].is_floating_point() else weights[name].dtype
        numbered[name] = torch.full((1,) * weights[name].ndim, number, dtype=dtype).expand(weights[name].shape)
    loaded = build(args, numbered, kwargs).state_dict()
    return {name: names[round(tensor.flatten()[0].item())] for name, tensor in loaded.items()}


def report(model: nn.Module, weights: Weights, origins: dict[str, str]) -> None:
    """Print what entered the model and what did not, all of it by following the tensors."""
    renamed = sum(name != origin for name, origin in origins.items())
    print(f"kept: {len(origins)} tensors, {params(model):,} parameters, {model.num_classes} classes; {renamed} renamed")
    sizes = dict.fromkeys(origins.values(), 0)
    for name, tensor in model.state_dict().items():
        sizes[origins[name]] += tensor.numel()
    adapted = [name for name, size in sizes.items() if size != weights[name].numel()]
    if adapted:
        print(f"resampled to the model's img_size, which is not the file's: {', '.join(adapted)}")
    dropped = [f"{name} {tuple(weights[name].shape)}" for name in weights if name not in sizes]
    print(f"dropped of the weights ({len(dropped)} tensors): {', '.join(dropped) or 'nothing'}")


def write_safetensors(model: nn.Module, kwargs: dict[str, Any], licence: str, target: Path) -> None:
    """A folder with the weights alone; their metadata names the licence."""
    cfg, classes = model.pretrained_cfg, model.num_classes
    with new_folder(target) as folder:
        path = folder / "model.safetensors"
        safetensors.torch.save_file(model.state_dict(), path, {"format": "pt", "license": licence})
        overlay = dict(file=str(path), num_classes=classes, input_size=cfg["input_size"])
        source = dict(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
        check_outputs(model, lambda: timm.create_model(cfg["architecture"], **source, **kwargs))


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        convert(args)
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
