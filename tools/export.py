"""A timm model as ONNX, torch.export program or TorchScript, compared with the model itself before it is kept.

python tools/export.py as_vit_small --checkpoint best.safetensors --output output/exported
python tools/export.py vit_resnas_tiny --task pyramid --format onnx program torchscript --output output/exported
python tools/export.py local-dir:output/as_vit_small/export --img-size 256 --output as_vit_small.onnx
python tools/export.py deit_tiny_patch16_224 --pretrained --dynamic batch --output output/exported
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import MISTAKES, key_value
from export_formats import (
    SUFFIXES,
    Shape,
    blamed,
    compare,
    read_back,
    record,
    shapes_to_compare,
    smallest_size,
    write_program,
    write_torchscript,
)
from timm.data import resolve_model_data_config
from torch import nn

import asvit_plugin  # noqa: F401  (registers the models)
from asvit_plugin.atomic import write_atomically
from asvit_plugin.exporting import DYNAMIC_AXES, first_line, trace, write_onnx

ONNX_LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="timm's name of it, or local-dir:FOLDER or hf-hub:OWNER/NAME")
    parser.add_argument("--output", type=Path, required=True, help="folder, or for one format a file of its suffix")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="load the model's public weights")
    weights.add_argument("--checkpoint", type=Path, help="load this file of weights")
    parser.add_argument("--format", nargs="+", default=["onnx"], choices=list(SUFFIXES))
    parser.add_argument("--task", default="classifier", choices=("classifier", "pyramid"))
    parser.add_argument("--out-indices", type=int, nargs="+", help="levels of the pyramid (those of the model)")
    parser.add_argument("--img-size", type=int, nargs="+", metavar="PIXELS", help="height [width] (the model's own)")
    parser.add_argument("--num-classes", type=int, help="classes of the model, and of --checkpoint")
    parser.add_argument("--model-kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dynamic", default="size", choices=list(DYNAMIC_AXES), help="size: batch, height and width")
    parser.add_argument("--batch-size", type=int, default=2, help="images that it is exported and compared with")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference that is kept")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is built."""
    if "onnx" in args.format and not all(importlib.util.find_spec(name) for name in ONNX_LIBRARIES):
        raise ValueError(f"ONNX needs {', '.join(ONNX_LIBRARIES)}: pip install 'asvit-plugin[export]'")
    args.format = list(dict.fromkeys(args.format))
    least = 1 if args.dynamic == "none" else 2  # torch.export takes a batch of one for a constant
    if args.batch_size < least:
        raise ValueError(
            f"argument --batch-size is {args.batch_size}; with --dynamic {args.dynamic} it must be at least {least}"
        )
    if args.img_size and (len(args.img_size) > 2 or min(args.img_size) < 1):
        raise ValueError(f"argument --img-size is {args.img_size}; it must be a height and a width of at least 1")
    if not args.tolerance >= 0:
        raise ValueError(f"argument --tolerance is {args.tolerance}; it must be at least 0")
    if args.out_indices and args.task != "pyramid":
        raise ValueError("argument --out-indices: a classifier has none; use --task pyramid")
    if args.checkpoint and not args.checkpoint.is_file():
        raise ValueError(f"argument --checkpoint: there is no file {args.checkpoint}")
    if args.output.suffix in SUFFIXES.values() and [args.output.suffix] != [SUFFIXES[name] for name in args.format]:
        raise ValueError(f"argument --output: {args.output.name} does not fit --format {' '.join(args.format)}")


def build(args: argparse.Namespace, task: str) -> nn.Module:
    kwargs: dict[str, Any] = dict(args.model_kwargs)
    if args.num_classes is not None:
        kwargs["num_classes"] = args.num_classes
    if args.checkpoint:
        overlay: dict[str, Any] = dict(file=str(args.checkpoint))
        if args.num_classes is not None:
            overlay["num_classes"] = args.num_classes  # else timm would take a file of other classes without a word
        kwargs["pretrained_cfg_overlay"] = overlay
    if task == "pyramid":
        kwargs.update(features_only=True, **({"out_indices": tuple(args.out_indices)} if args.out_indices else {}))
    kwargs["pretrained"] = args.pretrained or args.checkpoint is not None or ":" in args.model
    size = args.img_size and tuple(args.img_size * 2)[:2]
    torch.manual_seed(0)
    try:
        return timm.create_model(args.model, **kwargs, **({"img_size": size} if size else {})).eval()
    except TypeError:
        if not size:
            raise
        return timm.create_model(args.model, **kwargs).eval()  # models such as ResNet have no such argument


def load(args: argparse.Namespace) -> nn.Module:
    if args.checkpoint and args.task == "pyramid":
        build(args, "classifier")  # timm itself loads a pyramid from any file and leaves what is missing random
    return build(args, args.task)


def shape_of(model: nn.Module, args: argparse.Namespace) -> Shape:
    channels, *size = resolve_model_data_config(model)["input_size"]
    size = args.img_size or dict(args.model_kwargs).get("img_size") or size
    height, width = (tuple(size) * 2)[:2] if isinstance(size, Sequence) else (size, size)
    return args.batch_size, dict(args.model_kwargs).get("in_chans", channels), height, width


def check_sizes(model: nn.Module, shapes: list[Shape], args: argparse.Namespace) -> None:
    """Refuse images that the eager model does not take."""
    _, _, height, width = shapes[0]
    for shape in shapes:
        try:
            with torch.no_grad():
                model(torch.zeros(1, *shape[1:]))
        except (AssertionError, RuntimeError, ValueError) as error:
            if shape == shapes[0]:
                raise ValueError(f"{args.model} takes no images of {height} x {width}: {first_line(error)}") from error
            raise ValueError(
                f"--dynamic size: {args.model} takes images of {height} x {width} and none of {shape[2]} x {shape[3]} "
                f"({first_line(error)}); use --dynamic batch"
            ) from error


def outputs_of(model: nn.Module, task: str) -> list[dict[str, Any]]:
    """Names of the outputs; a level of the pyramid has the same whichever others are asked for."""
    if task == "classifier":
        return [{"name": "logits", "classes": model.num_classes}]
    info = model.feature_info
    return [
        {"name": f"p{index}", "stride": stride, "channels": channels}
        for index, stride, channels in zip(info.out_indices, info.reduction(), info.channels())
    ]


def describe(model: nn.Module, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """What a user of the files must know: what goes in, how it was scaled, and what comes out."""
    data = resolve_model_data_config(model)
    axes = [DYNAMIC_AXES[args.dynamic].get(i, length) for i, length in enumerate(shape)]
    return {
        "model": args.model,
        "task": args.task,
        "input": {"name": "images", "type": "float32", "shape": axes},
        "input_size": list(shape[1:]),
        **{name: data[name] for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")},
        "num_classes": model.num_classes if args.task == "classifier" else 0,
        "outputs": outputs_of(model, args.task),
        "random_weights": not (args.pretrained or args.checkpoint or ":" in args.model),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def write(model: nn.Module, folder: Path, stem: str, shapes: list[Shape], args: argparse.Namespace) -> dict[str, Any]:
    """Write every format into ``folder`` and compare each with the model; returns what is known of the files."""
    about = describe(model, shapes[0], args)
    if set(args.format) - {"torchscript"}:
        with blamed(f"torch.export cannot trace {args.model} with --dynamic {args.dynamic}"):
            program = trace(model, shapes[0], args.dynamic)
        about["smallest_size"] = smallest_size(program)
    about["files"] = {}
    for name in args.format:
        path = folder / f"{stem}{SUFFIXES[name]}"
        with blamed(f"{args.model} cannot be written as {name}"):
            if name == "onnx":
                about["opset"] = write_onnx(program, path, [each["name"] for each in about["outputs"]], args.dynamic)
            elif name == "program":
                write_program(program, path)
            else:
                write_torchscript(model, path)
        with blamed(f"the {name} file is not kept"):
            differences = compare(model, read_back(name, path), shapes)
            worst = math.nan if any(map(math.isnan, differences.values())) else max(differences.values())
            if not worst <= args.tolerance:
                raise RuntimeError(f"it differs by {worst:.3g}, more than {args.tolerance:g}")
        about["files"][name] = record(path, differences)
    return about


def export(model: nn.Module, shapes: list[Shape], args: argparse.Namespace) -> dict[str, Any]:
    """Write, read back, compare, and only then give the files their names."""
    one_file = args.output.suffix in SUFFIXES.values()
    target = args.output.parent if one_file else args.output
    stem = args.output.stem if one_file else f"{Path(args.model.rpartition(':')[2]).name}_{args.task}"
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as temporary:
        about = write(model, Path(temporary), stem, shapes, args)
        for each in about["files"].values():
            os.replace(Path(temporary, each["file"]), target / each["file"])
    text = json.dumps(about, indent=2) + "\n"
    write_atomically(target / f"{stem}.json", lambda file: file.write(text.encode()))
    for name, each in about["files"].items():
        opset = f", opset {about['opset']}" if name == "onnx" else ""
        figures = ", ".join(f"{shape} {value:.1e}" for shape, value in each["largest_differences"].items())
        print(f"{target / each['file']}: {each['bytes'] / 1e6:.1f} MB{opset}; largest differences: {figures}")
    print(f"{target / stem}.json: sizes, normalisation and outputs")
    return about


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
        model = load(args)
        shapes = shapes_to_compare(shape_of(model, args), args.dynamic)
        check_sizes(model, shapes, args)
        folder = args.output.parent if args.output.suffix in SUFFIXES.values() else args.output
        folder.mkdir(parents=True, exist_ok=True)
    except (*MISTAKES, NotImplementedError) as error:
        parser.error(" ".join(str(error).split()))
    try:
        export(model, shapes, args)
    except (OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    main()
