"""Do scores without training predict anything? Ranks trained nets by every proxy and compares with their accuracy.

    python tools/rank_proxies.py                                # 100 PiTs of ViT-Bench-101
    python tools/rank_proxies.py my_nets.json --img-size 64 --repeats 1 --picture ranks.png

Prints, per label of the table, how each proxy agrees with the accuracy: over all nets, and beyond what their size says,
in parameters or MACs. Scores are kept as they come; the same command again goes on where it was stopped or killed.
tools/trained_nets.py says what a table looks like, docs/proxies.md what came out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from arguments import MISTAKES
from filelock import FileLock, Timeout
from rank_report import draw, print_tables
from rank_statistics import Agreement, Comparison
from result_files import run_record, write_json
from tqdm import tqdm
from trained_nets import TrainedNet, TrainedTable, read_table

from asvit_plugin.search import PROXIES, Score, rank_sum

PIT_TABLE = Path(__file__).parent / "data" / "vit_bench_101_pit.json"
COUNTED = ("parameters", "macs")  # of the net for images as it was trained on: they cost nothing and have no repeats


@dataclass(frozen=True)
class Column:
    """One proxy of all nets: a number each, the mean seconds it took, and whether more is better."""

    values: list[float]
    seconds: float
    maximize: bool


class Scores:
    """Scores by what they are of, in a file that is whole after every one of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                rows = json.loads(path.read_text())["scores"]
                self._rows = {_key(row["of"]): row for row in rows if row["values"] and row["seconds"] >= 0}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"scores is {str(path)!r}, which is no file of scores: {error!r}") from error

    def find(self, of: Mapping[str, Any]) -> tuple[Score, float] | None:
        """A score and the seconds that it took, if it is there."""
        row = self._rows.get(_key(of))
        return row and (Score(tuple(float("nan") if v is None else v for v in row["values"])), row["seconds"])

    def add(self, of: Mapping[str, Any], score: Score, seconds: float) -> None:
        self._rows[_key(of)] = {"of": dict(of), "values": score.values, "seconds": seconds}
        write_json(self._path, {"scores": list(self._rows.values())})


def _key(of: Mapping[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, default=PIT_TABLE, help="JSON file of trained nets")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="accuracies to compare with (all)")
    parser.add_argument("--proxies", nargs="+", default=list(PROXIES), choices=PROXIES, metavar="NAME", help="(all)")
    parser.add_argument("--sums", nargs="+", default=[], metavar="NAME+NAME", help="sums of ranks to compare as well")
    parser.add_argument("--img-size", type=int, help="image side in pixels for the proxies (what the nets trained at)")
    parser.add_argument("--repeats", type=int, default=5, help="draws of weights per net and proxy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--size", default=COUNTED[0], choices=COUNTED, help="what proxies shall say something beyond")
    parser.add_argument("--bands", type=int, default=4, help="bands of nets of like size")
    parser.add_argument("--resamples", type=int, default=1000, help="of the nets, for the intervals")
    parser.add_argument("--scores", type=Path, help="file that keeps the scores (output/rank_TABLE.json)")
    parser.add_argument("--json", type=Path, help="also write all results here")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    return parser


def check(args: argparse.Namespace, table: TrainedTable) -> None:
    """Fills in what the table decides, and refuses what it does not have."""
    args.img_size = table.input_size if args.img_size is None else args.img_size
    args.scores = args.scores or Path("output") / f"rank_{args.table.stem}.json"
    args.labels = list(dict.fromkeys(args.labels or table.labels))
    summed = [name for each in args.sums for name in each.split("+")]
    args.proxies = list(dict.fromkeys([*args.proxies, *summed, args.size]))
    for name in summed:
        if name not in PROXIES:
            raise ValueError(f"sums has {name!r}; it must be among {', '.join(PROXIES)}")
    for label in args.labels:
        if label not in table.labels:
            raise ValueError(f"labels has {label!r}; it must be among {', '.join(table.labels)}")
    for field in ("img_size", "repeats", "bands", "resamples"):
        if getattr(args, field) < 1:
            raise ValueError(f"{field} is {getattr(args, field)}; it must be at least 1")
    torch.zeros(1, device=args.device)


def measure(table: TrainedTable, args: argparse.Namespace, scores: Scores) -> dict[str, Column]:
    """Every proxy of every net, as far as possible from those measured before."""
    columns = {}
    with tqdm(total=len(args.proxies) * len(table.nets), unit="score") as bar:
        for proxy in args.proxies:
            bar.set_description(proxy)
            found = []
            for net in table.nets:
                found.append(measure_net(net, proxy, args, table.input_size, scores))
                bar.update()
            values = [score.value for score, _ in found]
            columns[proxy] = Column(values, statistics.fmean(each for _, each in found), PROXIES[proxy].maximize)
    return columns


def sum_of_ranks(columns: Mapping[str, Column]) -> Column:
    """Several proxies as one, the way the searches choose."""
    values = {name: column.values for name, column in columns.items()}
    ranks = rank_sum(values, {name: column.maximize for name, column in columns.items()})
    return Column([float(each) for each in ranks], sum(column.seconds for column in columns.values()), maximize=False)


def measure_net(
    net: TrainedNet, proxy: str, args: argparse.Namespace, trained_at: int, scores: Scores
) -> tuple[Score, float]:
    """One proxy of one net, and the seconds it took without building the net."""
    settings = {"img_size": trained_at}
    if proxy not in COUNTED:
        settings = {name: getattr(args, name) for name in ("img_size", "repeats", "seed", "device")}
    of = {"model": net.model, "arguments": net.arguments, "proxy": proxy, **settings}
    if (known := scores.find(of)) is None:
        model = net.build(settings["img_size"])
        start = time.perf_counter()
        try:
            score = PROXIES[proxy].measure(model, **settings)
        except ValueError as error:
            raise ValueError(f"nets[{net.number}]: {error}") from error
        known = score, time.perf_counter() - start
        scores.add(of, *known)
    return known


def compare(
    table: TrainedTable, args: argparse.Namespace, columns: Mapping[str, Column]
) -> dict[str, dict[str, Agreement]]:
    """By label and proxy."""
    agreements = {}
    for label in args.labels:
        accuracy = [net.accuracy[label] for net in table.nets]
        comparison = Comparison(accuracy, columns[args.size].values, args.bands, args.resamples, args.seed)
        agreements[label] = {
            proxy: comparison.agreement(column.values, column.maximize) for proxy, column in columns.items()
        }
    return agreements


def rank(args: argparse.Namespace) -> None:
    table = read_table(args.table)
    check(args, table)
    args.scores.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{args.scores}.lock", timeout=0):
            columns = measure(table, args, Scores(args.scores))
    except Timeout:
        raise ValueError(f"scores is {str(args.scores)!r}, which another run is writing; name another file") from None
    columns |= {each: sum_of_ranks({name: columns[name] for name in each.split("+")}) for each in args.sums}
    agreements = compare(table, args, columns)
    print_tables(agreements, {proxy: column.seconds for proxy, column in columns.items()}, len(table.nets), args.size)
    if args.json:
        write_json(args.json, results(table, args, columns, agreements))
    if args.picture:
        draw(agreements, args.size, args.picture)


def results(
    table: TrainedTable,
    args: argparse.Namespace,
    columns: Mapping[str, Column],
    agreements: Mapping[str, Mapping[str, Agreement]],
) -> dict[str, Any]:
    """All that was found, and what repeats it; scores are in the order of the table's nets."""
    names = ("img_size", "repeats", "seed", "device", "size", "bands", "resamples")
    return {
        "source": table.source,
        "nets": len(table.nets),
        "settings": {name: getattr(args, name) for name in names} | {"threads": torch.get_num_threads()},
        **run_record(),
        "seconds_per_net": {proxy: column.seconds for proxy, column in columns.items()},
        "agreement": {
            label: {proxy: asdict(each) for proxy, each in by_proxy.items()} for label, by_proxy in agreements.items()
        },
        "scores": {proxy: columns[proxy].values for proxy in args.proxies},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        rank(args)
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on from {args.scores}")


if __name__ == "__main__":
    main()
