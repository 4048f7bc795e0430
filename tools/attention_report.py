"""The table of a measurement of attention: how linear-angular attention stands against softmax, and against memory.

python tools/attention_report.py docs/benchmarks/attention_amd_epyc.json
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arguments import MISTAKES

HEADER = (
    "| tokens | batch | runtime | SDPA, ms | linear core, ms | ratio | share of bandwidth | block, softmax, ms "
    "| block, linear, ms | ratio |\n|---|---|---|---|---|---|---|---|---|---|"
)


def table(results: Mapping[str, Any]) -> str:
    """All rows of a measurement as Markdown, by runtime and then by tokens."""
    rows = sorted(results["rows"], key=lambda row: (row["runtime"] != "eager", row["tokens"]))
    return "\n".join([HEADER, *map(line, rows)])


def line(row: Mapping[str, Any]) -> str:
    """One row: milliseconds, ratios (tenth to ninetieth percentile over the rounds), and the cores' share."""
    core, block = row["core"], row["block"]
    share = f"{100 * bandwidth_share(row, 'softmax'):.2g} % / {100 * bandwidth_share(row, 'linear'):.2g} %"
    cells = [f"{row['tokens']:,}", str(row["batch_size"]), row["runtime"], *_times(core), share, *_times(block)]
    return f"| {' | '.join(cells)} |"


def bandwidth_share(row: Mapping[str, Any], mode: str) -> float:
    """Seconds in which a copy moves what a core must move at least, over the core's seconds."""
    return row["bytes"] / row["bandwidth"] / row["core"][mode]


def caption(results: Mapping[str, Any]) -> str:
    """What was measured, where and how, in one line."""
    where, setting = results["machine"], results["setting"]
    threads = f"{setting['threads']} CPU thread{'s' if setting['threads'] > 1 else ''}"
    heads = f"{setting['num_heads']} heads of {setting['head_dim']}"
    kernels = ", ".join(sorted({row["sdpa"] for row in results["rows"]}))
    speeds = [row["bandwidth"] / 1e9 for row in results["rows"]]
    return (
        f"{where['hardware']}, {threads}, torch {where['torch']}, {heads}, {setting['dtype']}, "
        f"{setting['clock']} time; SDPA by its {kernels} kernel; "
        f"a copy moves {min(speeds):.3g} to {max(speeds):.3g} GB/s"
    )


def _times(part: Mapping[str, Any]) -> list[str]:
    median, low, high = part["ratio"]
    return [_ms(part["softmax"]), _ms(part["linear"]), f"{median:.2f} ({low:.2f} to {high:.2f})"]


def _ms(seconds: float) -> str:
    """Three digits, and all those before the point."""
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file of tools/measure_attention.py")
    args = parser.parse_args(argv)
    try:
        results = json.loads(args.results.read_text())
        text = f"{caption(results)}\n\n{table(results)}"
    except (KeyError, *MISTAKES) as error:
        parser.error(f"argument results is {args.results}, which cannot be shown: {' '.join(repr(error).split())}")
    print(text)


if __name__ == "__main__":
    main()
