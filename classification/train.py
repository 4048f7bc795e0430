"""Trains a timm model on one or more processes, with progressive tokenization and attention switching if asked.

    python classification/train.py --config classification/recipes/digits_demo.yaml
    torchrun --nproc-per-node 8 classification/train.py --config classification/recipes/as_vit_imagenet.yaml \
        --data-dir /data/imagenet --resume auto

A run's folder gets `last.pth.tar`, `best.pth.tar`, `summary.csv`, `args.yaml`, TensorBoard events, and at the end
`curves.png` and `export/`, which `timm.create_model("local-dir:.../export", pretrained=True)` reads.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed
import yaml
from assembly import in_last_phase, make_process, make_training
from checkpoints import (
    RunState,
    check_same_folder,
    check_same_run,
    find_resume,
    load_part,
    load_task_state,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from engine import Training, evaluate, start_epoch, train_one_epoch
from masks import draw_masks, measure_masks
from options import TrainOptions
from parsing import exit_with, parse_options
from processes import ending_together
from report import Reporter, best_epoch, closing_table, draw_curves, epoch_line
from supernet_training import measure_smallest, restore_supernet, settle_mode, start_supernet_epoch, supernet_state
from timm.models import get_model_args
from tqdm import tqdm

import asvit_plugin
from asvit_plugin.atomic import new_folder, write_atomically

History = list[dict[str, Any]]


def main(argv: list[str] | None = None) -> History:
    """Runs a training from the command line.

    Args:
        argv: Command line without the program; None takes it from the process.

    Returns:
        One dictionary per epoch. Mistakes of the user end the program with one sentence and exit status 2.
    """
    options = parse_options(TrainOptions, argv)
    try:
        process = make_process(options.device)
        folder = Path(options.output) / (options.experiment or timm.models.safe_model_name(options.model))
        checkpoint = find_resume(options.resume, folder)
        with ending_together():
            training = make_training(options, process)
        history = restore(training, checkpoint) if checkpoint else []
        if checkpoint:
            check_same_folder(checkpoint, folder)
        else:
            with ending_together():
                settle_mode(training)
        reporter = open_folder(training, folder, history) if process.rank == 0 else None
    except ValueError as error:
        exit_with(str(error))
    try:
        with ending_together():
            fit(training, folder, history, reporter)
    except FloatingPointError as error:
        exit_with(str(error))
    if torch.distributed.is_initialized():  # not after an error, for it may wait for processes that are gone
        torch.distributed.destroy_process_group()
    return history


def fit(training: Training, folder: Path, history: History, reporter: Reporter | None) -> None:
    """Trains the epochs that the history lacks, and adds them to it.

    Args:
        training: The run.
        folder: Where to write.
        history: Finished epochs; changed in place.
        reporter: Present in the process that writes.

    Raises:
        FloatingPointError: The loss is no longer finite.
    """
    for epoch in range(len(history), training.epochs):
        started = time.perf_counter()
        start_epoch(training, epoch)
        if training.architectures is not None:
            start_supernet_epoch(training, epoch)
        row = run_epoch(training, epoch)
        history.append(row | {"seconds": time.perf_counter() - started})
        if reporter is not None:
            save(training, folder, history)
            reporter.add(history)
            tqdm.write(epoch_line(history[-1]))
    if reporter is not None:
        reporter.close()
        finish(training, folder, history)


def run_epoch(training: Training, epoch: int) -> dict[str, Any]:
    """Trains and validates one epoch; gives its line of the history."""
    options, process, schedule = training.options, training.process, training.schedule
    # disable=None shows the bar on terminals only
    with tqdm(
        total=len(training.train_loader),
        desc=f"epoch {epoch + 1}/{training.epochs}",
        unit="batch",
        leave=False,
        disable=None if process.rank == 0 else True,
    ) as bar:
        trained = train_one_epoch(training, epoch, bar)
    lr = max(group["lr"] for group in training.optimizer.param_groups)
    model = training.task.get_eval_model() if training.ema is None else training.ema.module
    held_out = evaluate(model, training.eval_loader, process, training.autocast, options.channels_last)
    progress = epoch / training.epochs
    linear = training.switching is None or progress >= training.switching.linear_from
    state = None if training.switching is None else training.switching.state_at((epoch + 1) / training.epochs)
    return {
        "epoch": epoch,
        "stride": None if schedule is None else schedule.phase_at(progress).stride,
        "blend": None if state is None else state.blend,
        "threshold": None if state is None else state.threshold,
        "masks": measure_masks(training),
        "lr": lr,
        **trained,
        "eval_loss": held_out["loss"],
        "top1": held_out["top1"],
        "top5": held_out["top5"],
        "smallest_top1": measure_smallest(training),
        "final_state": in_last_phase(schedule, progress) and linear,
    }


def open_folder(training: Training, folder: Path, history: History) -> Reporter:
    """Makes the folder and writes down the options, as a file that `--config` reads.

    A run that comes from another folder saves its checkpoint here too, so that the folder is complete from the start.

    Raises:
        ValueError: The folder cannot be written to, or a package for the report is missing.
    """
    text = yaml.safe_dump(asdict(training.options), sort_keys=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "args.yaml", lambda file: file.write(text.encode()))
        reporter = Reporter(folder, history, training.options.tensorboard)
        if history and not (folder / "last.pth.tar").exists():
            save(training, folder, history)
        return reporter
    except OSError as error:
        raise ValueError(
            f"cannot write to --output and --experiment, {str(folder)!r}: {error.strerror or error}"
        ) from error


def save(training: Training, folder: Path, history: History) -> None:
    """Writes the checkpoint of the epoch that has just ended.

    `best` comes first: killed between the two, the run repeats the epoch and writes the same `best` again.
    """
    model = training.model
    state = vars(
        RunState(
            epoch=len(history) - 1,
            epochs=training.epochs,
            arch=model.pretrained_cfg["architecture"],
            metric=history[-1]["top1"],
            version=2,
            world_size=training.process.world_size,
            options=asdict(training.options),
            model_args=get_model_args(model),
            history=history,
            state_dict=model.state_dict(),
            optimizer=training.optimizer.state_dict(),
        )
    ) | supernet_state(training)
    if training.saved_fraction is not None:
        state["saved_macs"] = training.saved_fraction
    if task_state := training.task.get_task_state():
        state["task_state"] = task_state
    if training.ema is not None:
        state["state_dict_ema"] = training.ema.module.state_dict()
    if training.scaler is not None:
        state[training.scaler.state_dict_key] = training.scaler.state_dict()
    if best_epoch(history) is history[-1]:
        save_checkpoint(state, folder / "best.pth.tar")
    save_checkpoint(state, folder / "last.pth.tar")


def restore(training: Training, path: Path) -> History:
    """Puts a run into the state that a checkpoint holds.

    Returns:
        The checkpoint's history.

    Raises:
        ValueError: The checkpoint is damaged, foreign, or of a run with other options.
    """
    state = read_checkpoint(path)
    check_same_run(state, asdict(training.options), training.process.world_size, path)
    restore_supernet(training, state, path)
    load_weights(training.model, state["state_dict"], path)
    load_task_state(training.task, state, path)
    load_part(training.optimizer, state, "optimizer", path)
    if training.ema is not None:
        load_weights(training.ema.module, state.get("state_dict_ema", {}), path)
    if training.scaler is not None:
        load_part(training.scaler, state, training.scaler.state_dict_key, path)
    return state["history"]


def finish(training: Training, folder: Path, history: History) -> None:
    """Draws the curves, exports the best weights and prints the closing table."""
    img_size = training.data_config["input_size"][-1]
    draw_curves(history, img_size, folder / "curves.png")
    if training.switching is not None:
        draw_masks(history, folder / "masks.png")
    export(training, folder)
    print(closing_table(history, training.saved_fraction))
    print(f"\neverything is in {folder}")


def export(training: Training, folder: Path) -> None:
    """Writes the best weights (averaged ones, if the run has them) to `export/`, with what is needed to use them."""
    best = folder / "best.pth.tar"  # a run that was resumed into another folder after its best epoch has none
    path = best if best.exists() else folder / "last.pth.tar"
    state = read_checkpoint(path)
    model = timm.create_model(state["arch"], **state["model_args"])
    load_weights(model, state.get("state_dict_ema", state["state_dict"]), path)
    if training.switching is not None:
        asvit_plugin.finish(model)
    with new_folder(folder / "export") as place:
        timm.models.save_for_hf(model, str(place), safe_serialization=True, data_config=training.data_config)


if __name__ == "__main__":
    main()
