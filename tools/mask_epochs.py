"""The epochs of a search by masks, and its checkpoint after each."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm.models
from tqdm import tqdm

from asvit_plugin.search.gated_net import GatedResNAS

sys.path.append(str(Path(__file__).resolve().parents[1] / "classification"))

from checkpoints import (
    RunState,
    check_same_folder,
    check_same_run,
    find_resume,
    load_part,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from engine import order_images, start_epoch, train_one_epoch
from mask_run import MaskRun
from supernet_training import restore_supernet, settle_mode, supernet_state


def start(run: MaskRun) -> list[dict[str, Any]]:
    """Settles how a space's nets are computed, and gives the history of a search that begins."""
    settle_mode(run.training, [run.net.space.sample(np.random.default_rng(run.options.seed))])
    return []


def run_epoch(run: MaskRun, epoch: int) -> dict[str, Any]:
    """Weights learn for an epoch, and then gates; gives its line of the history."""
    training, search, net = run.training, run.search, run.net
    busy = time.process_time()
    start_epoch(training, epoch)
    search.start_epoch(epoch)
    if epoch == 0 or not search.gates_learn:  # while options of a gate are alike, what is important comes first
        net.reorder(training.optimizer)
    total = len(training.train_loader) + search.gates_learn * run.options.gate_passes * len(run.gate_loader)
    name = f"epoch {epoch + 1}/{training.epochs}"
    with tqdm(total=total, desc=name, unit="batch", leave=False, disable=None) as bar:
        trained = train_one_epoch(training, epoch, bar)
        taught = teach_gates(run, epoch, bar) if search.gates_learn else {}
    likely = net.gates.argmax()
    net.gates.fix(likely)
    found = run.judge(net)
    return {
        "epoch": epoch,
        "stride": None,
        "lr": max(group["lr"] for group in training.optimizer.param_groups),
        **trained,
        **{name: found[each] for name, each in (("eval_loss", "loss"), ("top1", "top1"), ("top5", "top5"))},
        "final_state": True,
        "argmax_cost": search.budget.cost(likely),
        "expected_cost": net.cost(search.settings.cost).item(),
        "temperature": search.temperature if search.gates_learn else None,
        "gates": {decision: odds.tolist() for decision, odds in net.gates.probabilities().items()},
        "gate_loss": taught.get("task_loss"),
        "processor_seconds": time.process_time() - busy,
    }


def teach_gates(run: MaskRun, epoch: int, bar: tqdm) -> dict[str, float]:
    """Gates learn from their own images, as often as asked; gives the means over the batches."""
    run.net.eval()  # gates judge nets as those are judged in the end: without dropout and stochastic depth
    rows = []
    for number in range(run.options.gate_passes):
        order_images(run.gate_loader, run.options.seed, epoch * run.options.gate_passes + number)
        for images, labels in run.gate_loader:
            rows.append(run.search.step(images, labels, run.training.autocast))
            bar.update()
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Checkpoint to continue, or None to start afresh.

    Raises:
        ValueError: The folder holds another search already.
    """
    checkpoint = find_resume(resume, folder)
    if checkpoint:
        check_same_folder(checkpoint, folder)
    return checkpoint


def save(run: MaskRun, history: list[dict[str, Any]], path: Path) -> None:
    """Writes the checkpoint of the epoch that has just ended; one of a space is also one of its supernet."""
    model = run.training.model
    state = RunState(
        epoch=len(history) - 1,
        epochs=run.training.epochs,
        arch=model.pretrained_cfg["architecture"],
        metric=history[-1]["top1"],
        version=2,
        world_size=1,
        options=run.options.training(),
        model_args=timm.models.get_model_args(model),
        history=history,
        state_dict=model.state_dict(),
        optimizer=run.training.optimizer.state_dict(),
    )
    masks = {"options": run.options.learning(), "setup_seconds": run.setup_seconds, **run.search.state_dict()}
    more = {"space": run.net.space.fingerprint, **supernet_state(run.training), "mask_search": masks}
    save_checkpoint(vars(state) | more, path)


def restore(run: MaskRun, path: Path) -> list[dict[str, Any]]:
    """Puts the search into the state of a checkpoint, and gives its history.

    Raises:
        ValueError: The checkpoint is damaged, foreign, or of a search with other options.
    """
    state = read_checkpoint(path)
    masks = state.get("mask_search")
    if not isinstance(masks, dict) or not isinstance(masks.get("options"), dict):
        raise ValueError(f"the checkpoint {str(path)!r} is of no search by masks; name another --experiment")
    options = run.options.training() | run.options.learning()
    check_same_run(state | {"options": state["options"] | masks["options"]}, options, 1, path)
    if state.get("space") != run.net.space.fingerprint:
        raise ValueError(f"{str(path)!r} belongs to a different run: its space was another one")
    if isinstance(run.net, GatedResNAS):
        restore_supernet(run.training, state, path)
    load_weights(run.training.model, state["state_dict"], path)
    load_part(run.training.optimizer, state, "optimizer", path)
    load_part(run.search, state, "mask_search", path)
    run.setup_seconds = masks.get("setup_seconds", 0.0)
    return state["history"]
