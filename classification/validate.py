"""Measures a checkpoint on held-out images.

python classification/validate.py --checkpoint output/as_vit_small/best.pth.tar
python classification/validate.py --model local-dir:output/as_vit_small/export --data-dir /data/imagenet
python classification/validate.py --model vit_tiny_patch16_224 --pretrained --data-dir /data/imagenet
"""

import json
from typing import Any

import torch
from assembly import make_data_config, make_process, make_schedule, place_model
from checkpoints import load_weights, read_checkpoint, read_foreign
from data import count_classes, make_eval_loader, open_dataset
from engine import evaluate, make_autocast
from options import ValidateOptions
from parsing import exit_with, parse_options
from pretrained import make_model
from torch import nn

from asvit_plugin.atomic import write_atomically


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Measures a model from the command line.

    Args:
        argv: Command line without the program; None takes it from the process.

    Returns:
        `loss`, `top1`, `top5`, `images` and `images_per_second`. Mistakes of the user end the program with one
        sentence and exit status 2.
    """
    options = parse_options(ValidateOptions, argv)
    try:
        state = read_own(options.checkpoint) if options.checkpoint else None
        if state is not None:  # parsed again: what the command line gives wins over what the checkpoint knows
            options = parse_options(ValidateOptions, argv, defaults=known_options(state))
        result = validate(options, state)
        if options.results_file:
            write_atomically(options.results_file, lambda file: file.write(json.dumps(result).encode()))
    except ValueError as error:
        exit_with(str(error))
    print(
        f"top-1 {result['top1']:.3f} %   top-5 {result['top5']:.3f} %   loss {result['loss']:.5f}   "
        f"{result['images']} images   {result['images_per_second']:.1f} images/s"
    )
    return result


def validate(options: ValidateOptions, state: dict[str, Any] | None) -> dict[str, float]:
    """Measures the model that the options name, with the weights of a checkpoint.

    Args:
        options: Model and data.
        state: Checkpoint of train.py, if the weights come from one.

    Raises:
        ValueError: Model, data and weights do not fit together.
    """
    if not options.model:
        raise ValueError("give --model, or a --checkpoint that train.py wrote")
    process = make_process(options.device)
    dataset = open_dataset(options, training=False)
    own_classes = options.model.startswith(("local-dir:", "hf-hub:")) and options.num_classes is None
    model = make_model(options, None if own_classes else count_classes(options, dataset))
    load(model, options, state)
    data_config = make_data_config(options, model)
    place_model(model, options, process)
    model = torch.compile(model) if options.compile else model
    loader = make_eval_loader(dataset, data_config, options, process.device)
    autocast = make_autocast(process.device, options.amp, options.amp_dtype)
    return evaluate(model, loader, process, autocast, options.channels_last)


def load(model: nn.Module, options: ValidateOptions, state: dict[str, Any] | None) -> None:
    """Loads the checkpoint's weights, and tokenizes as the training did at that epoch."""
    if state is not None:
        ema = options.use_ema and "state_dict_ema" in state
        load_weights(model, state["state_dict_ema" if ema else "state_dict"], options.checkpoint)
        if state["options"]["progressive_tokenization"]:
            schedule = make_schedule(model, state["options"]["phases"], state["epochs"])
            schedule.step(state["epoch"] / state["epochs"])
    elif options.checkpoint:
        load_weights(model, read_foreign(options.checkpoint, options.use_ema), options.checkpoint)


def read_own(path: str) -> dict[str, Any] | None:
    """A checkpoint that train.py wrote; None if it is another readable file of weights.

    Raises:
        ValueError: There is no such file, or it cannot be read.
    """
    try:
        return read_checkpoint(path)
    except ValueError:
        read_foreign(path)
        return None


def known_options(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint knows about its model and its data, as options."""
    saved, arguments = state["options"], dict(state["model_args"])
    named = {name: arguments.pop(name, None) for name in ("num_classes", "in_chans")}
    if arguments.get("img_size") is not None:
        named["img_size"] = _side(arguments["img_size"])
        if named["img_size"]:
            del arguments["img_size"]
    return saved | {
        "model": state["arch"],
        "model_kwargs": arguments,
        **named,
        "pretrained": False,
        "pretrained_path": "",
        "gp": None,
        "drop": None,
        "drop_path": None,
        "compile": False,
        "device": "auto",
    }


def _side(size: int | tuple[int, int]) -> int | None:
    """Side of a square size; None for one that only `--model-kwargs.img_size` can say."""
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else None


if __name__ == "__main__":
    main()
