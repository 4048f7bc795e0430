"""Files of tools/benchmark.py as pages: for each NAME.json a NAME.md and a NAME.png beside it.

python tools/benchmark_report.py docs/benchmarks/suite_*.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from arguments import MISTAKES
from benchmark_record import read_benchmark
from benchmark_suite import GROUPS

from asvit_plugin import list_models
from asvit_plugin.atomic import write_atomically

_MARKERS = "osD^vP*X"


def page(content: dict[str, Any], name: str) -> str:
    """The Markdown of a file called ``name``.json."""
    where, how = content["machine"], content["settings"]
    parts = [
        f"# Speed on {where['device']}",
        "Made by `python tools/benchmark_report.py`; [docs/benchmarks.md](../benchmarks.md) says what is measured.",
        _sentence(where, how),
        f"```sh\n{where['command']}\n```",
        f"![Images per second over MACs]({name}.png)",
    ]
    for step, runtime in _ways(content):
        parts.append(f"## {step.capitalize()}, {runtime}")
        for group in _values(content, "group"):
            found = _cells(content, group=group, step=step, runtime=runtime)
            if found:
                parts += [f"### {group}: ratio to {_peer(found)}", ratio_table(found), figure_table(found)]
    return "\n\n".join(parts) + "\n"


def ratio_table(found: Sequence[dict[str, Any]]) -> str:
    """Images per second over those of the peer: models by image sizes, with the spread over turns."""
    lines = [
        "| model | " + " | ".join(f"{cell['img_size']} px" for cell in found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    notes: list[str] = []
    for name in _models(found):
        cells = []
        for row in (_row(cell, name) for cell in found):
            if row and "reason" in row:
                notes += [row["reason"]] if row["reason"] not in notes else []
                cells.append(f"[{notes.index(row['reason']) + 1}]")
            else:
                cells.append(_ratio(row))
        lines.append(f"| {_shown(name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n[{number}] {note}" for number, note in enumerate(notes, 1))])


def figure_table(found: Sequence[dict[str, Any]]) -> str:
    """Millions of parameters, and for every size GMACs, images per second and peak memory."""
    sizes = " | ".join(f"{cell['img_size']} px: GMACs, images/s, MiB" for cell in found)
    lines = [f"| model | M parameters | {sizes} |", "|---" * (len(found) + 2) + "|"]
    for name in _models(found):
        rows = [_row(cell, name) for cell in found]
        params = next((f"{row['params'] / 1e6:.2f}" for row in rows if row and "params" in row), "")
        lines.append(f"| {_shown(name)} | {params} | {' | '.join(map(_figures, rows))} |")
    return "\n".join(lines)


def draw(content: dict[str, Any]) -> plt.Figure:
    """Images per second over GMACs: a panel for each size and way, this package's models filled."""
    ways, sizes, groups = _ways(content), _values(content, "img_size"), _values(content, "group")
    figure, axes = plt.subplots(
        len(ways), len(sizes), figsize=(1 + 4.5 * len(sizes), 4 * len(ways)), squeeze=False, layout="constrained"
    )
    ours = set(list_models())
    for line, (step, runtime) in zip(axes, ways):
        for axis, size in zip(line, sizes):
            for number, group in enumerate(groups):
                for cell in _cells(content, group=group, step=step, runtime=runtime, img_size=size):
                    _dots(axis, cell["models"], f"C{number}", _MARKERS[number % len(_MARKERS)], ours)
            axis.set_visible(axis.has_data())
            axis.set(xscale="log", yscale="log", title=f"{size} px, {step}, {runtime}", xlabel="GMACs")
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_formatter("{x:g}")
                ticks.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
            axis.grid(alpha=0.3)
        line[0].set(ylabel="images/s")
    for number, group in enumerate(groups):
        axes[0][0].plot([], [], _MARKERS[number % len(_MARKERS)], color=f"C{number}", label=group)
    axes[0][0].legend(title="filled: this package", fontsize=7, title_fontsize=7)
    return figure


def _dots(axis: plt.Axes, rows: Sequence[dict[str, Any]], color: str, marker: str, ours: set[str]) -> None:
    for row in rows:
        if "median" in row:
            fill = color if row["model"] in ours else "none"
            x, y = row["macs"] / 1e9, row["images_per_s"]
            axis.plot(x, y, marker, color=color, markerfacecolor=fill)
            if row["model"] in ours:
                short = row["model"].removesuffix("_224").removesuffix("_patch16")
                axis.annotate(short, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=5)


def _sentence(where: dict[str, Any], how: dict[str, Any]) -> str:
    clock = {"wall": "wall time", "cpu": "processor time"}[how["clock"]]
    threads = f"{where['threads']} thread" + "s" * (where["threads"] > 1)
    return (
        f"{threads} on {where['cores']} cores ({where['instructions']}), torch {where['torch']}, "
        f"timm {where['timm']}, asvit-plugin {where['asvit-plugin']}, {how['dtype']}, {clock}. "
        f"Each model: {how['seconds']:g} s in {how['rounds']} turns with the others of its group."
    )


def _ways(content: dict[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((cell["step"], cell["runtime"]) for cell in content["cells"]))


def _values(content: dict[str, Any], field: str) -> list[Any]:
    values = dict.fromkeys(cell[field] for cell in content["cells"])
    known = list(GROUPS)
    if field == "group":
        return sorted(values, key=lambda name: known.index(name) if name in known else len(known))
    return sorted(values)


def _cells(content: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """Cells of these fields, from small images to large ones."""
    found = [cell for cell in content["cells"] if all(cell[name] == value for name, value in wanted.items())]
    return sorted(found, key=lambda cell: cell["img_size"])


def _models(found: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["model"] for cell in found for row in cell["models"]))


def _row(cell: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((row for row in cell["models"] if row["model"] == name), None)


def _peer(found: Sequence[dict[str, Any]]) -> str:
    return _shown(found[0]["models"][-1]["model"])


def _shown(name: str) -> str:
    return f"`{name}`"


def _ratio(row: dict[str, Any] | None) -> str:
    if row is None or row["speed_ratio"] is None:
        return ""
    return f"{row['speed_ratio']:.2f} ({row['speed_ratio_p10']:.2f} to {row['speed_ratio_p90']:.2f})"


def _figures(row: dict[str, Any] | None) -> str:
    if row is None or "median" not in row:
        return ""
    memory = "" if row["peak_memory"] is None else f", {row['peak_memory'] / 2**20:.0f}"
    return f"{row['macs'] / 1e9:.2f}, {row['images_per_s']:.3g}{memory}"


def write(path: Path) -> None:
    """Writes the page and the picture of a file beside it."""
    content = read_benchmark(path)
    if not content["cells"]:
        raise ValueError(f"{path} has no cells yet")
    text = page(content, path.stem)
    write_atomically(path.with_suffix(".md"), lambda file: file.write(text.encode()))
    figure = draw(content)
    write_atomically(path.with_suffix(".png"), lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="files that tools/benchmark.py --json wrote")
    args = parser.parse_args(argv)
    try:
        for path in args.files:
            write(path)
    except (KeyError, *MISTAKES) as error:
        parser.error(" ".join(f"{path}: {error}".split()))


if __name__ == "__main__":
    main()
