"""The best net within a budget, by gates that learn beside the weights (DMaskingNAS).

    python tools/mask_search.py --config classification/recipes/digits_supernet.yaml --macs 3.5e6 --experiment masks
    python tools/mask_search.py --supernet sr_tiny_mh --data-dir /data/imagenet --macs 1.8e9 --epochs 120
    python tools/mask_search.py --model deit_small_patch16_224 --pretrained --data-dir /data/imagenet --macs 2e9

Nets are those of a space (--supernet), or what is inside a plain ViT (--model). Options are those of
classification/train.py, --config files too, and those of gates. The same command again goes on where it was stopped or
killed. Finished, the folder has result.json, result.png, gates.png, best.yaml (options of train.py that train the best
net from scratch) and best/ (the net with the weights that it has here). docs/mask_search.md tells more.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import MISTAKES
from mask_epochs import find_checkpoint, restore, run_epoch, save, start
from mask_options import MaskSearchOptions
from mask_run import MaskRun, latency_setting, make_run
from mask_search_report import print_answer, write_report
from parsing import exit_with, parse_options
from tqdm import tqdm

from asvit_plugin.costs import LatencyProbe, measure_in_turn
from asvit_plugin.search.mask_choice import judged_nets

History = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(MaskSearchOptions, argv)
    folder, started = options.folder, time.perf_counter()
    unit = "" if options.latency is None else " (--latency and --budget-low are in milliseconds)"
    try:
        checkpoint = find_checkpoint(options.resume, folder)
        run = make_run(options)
        history = restore(run, checkpoint) if checkpoint else start(run)
        folder.mkdir(parents=True, exist_ok=True)
    except MISTAKES as error:
        exit_with(f"{error}{unit if 'budget' in str(error) else ''}")
    if not checkpoint:
        run.setup_seconds = time.perf_counter() - started
    try:
        search(run, folder, history)
        started = time.perf_counter()
        nets = choose(run)
        judging = time.perf_counter() - started
    except (FloatingPointError, ValueError) as error:
        exit_with(str(error))
    write_report(run, history, nets, judging, folder)
    print_answer(nets, run, folder)


def search(run: MaskRun, folder: Path, history: History) -> None:
    """Trains the epochs that the history lacks, and adds them to it.

    Raises:
        FloatingPointError: A loss is no longer finite.
    """
    for epoch in range(len(history), run.training.epochs):
        started = time.perf_counter()
        row = run_epoch(run, epoch)
        history.append(row | {"seconds": time.perf_counter() - started})
        save(run, history, folder / "last.pth.tar")
        tqdm.write(epoch_line(history[-1], run))


def choose(run: MaskRun) -> list[dict[str, Any]]:
    """The most probable net within the budget and some that gates draw, with what they are worth, the best one first.

    Raises:
        ValueError: No net is found within the budget.
    """
    net, nets = run.net, []
    for how, choice in judged_nets(net.gates, run.search.budget, run.options.samples, run.options.seed):
        model = net.extract(choice).eval()
        name, arguments = run.arguments(choice)
        nets.append(
            {
                "how": how,
                "choice": choice,
                "model": name,
                "arguments": arguments,
                **{cost: net.cost_of(cost, choice) for cost in net.costs},
                "log_probability": net.gates.log_probability(choice),
                "top1": run.judge(model)["top1"],
            }
        )
    nets.sort(key=lambda each: (-each["top1"], -each["log_probability"]))
    if run.options.latency is not None:  # the table is a sum of parts; this is the net itself
        shape, setting = (1, *run.training.data_config["input_size"]), latency_setting(run.training.process)
        model = net.extract(nets[0]["choice"]).eval()
        (found,) = measure_in_turn([LatencyProbe(model, shape, setting)])
        nets[0]["measured_latency"] = found.median
    return nets


def epoch_line(row: dict[str, Any], run: MaskRun) -> str:
    """A finished epoch on one line."""
    start = f"epoch {row['epoch'] + 1:3d}   loss {row['train_loss']:.4f}   "
    cost, top1 = run.search.settings.cost, f"top-1 {row['top1']:.2f} %"
    if row["gate_loss"] is None:  # options are alike, and the largest net comes first
        return f"{start}largest net: {row['argmax_cost']:.4g} {cost}, {top1}"
    return (
        f"{start}gates {row['gate_loss']:.4f}   expected {cost} {row['expected_cost']:.4g}   most probable net "
        f"{row['argmax_cost']:.4g}, {top1}"
    )


if __name__ == "__main__":
    main()
