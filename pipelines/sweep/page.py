"""A sweep's files: sweep.csv, sweep.json, sweep.md, the plot as SVG and PNG, and all of it on one page, sweep.html.

The page has the report's style and is as self-contained. Each file is written atomically.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from gptlife.data.yaml_tables import parse_yaml
from gptlife.pipelines.report.drawing import embedded
from gptlife.pipelines.report.templates import style
from gptlife.pipelines.sweep import figure as sweep_figure
from gptlife.pipelines.sweep import table as sweep_table
from gptlife.pipelines.sweep.grid import Combination, Sweep
from gptlife.stages.runtime.files import write_json, write_text
from gptlife.stages.runtime.provenance import versions


def write(sweep: Sweep, table: sweep_table.Table, folder: Path) -> Path:
    """Write all files into the existing `folder`; returns the page's path."""
    write_json(folder / "sweep.json", as_json(sweep, table))
    write_text(folder / "sweep.csv", sweep_table.as_csv(table))
    write_text(folder / "sweep.md", f"`{sweep.command}`\n\n{sweep_table.as_markdown(table)}")
    plot = ""
    if figure := sweep_figure.draw(table):
        drawn = sweep_figure.svg(figure)
        write_text(folder / "sweep.svg", drawn)
        _write_bytes(folder / "sweep.png", sweep_figure.png(figure))
        plot = embedded(drawn, "sweep", f"{', '.join(table.metrics)} over {sweep_figure.scale(table).name}")
    write_text(folder / "sweep.html", _page(sweep, table, plot))
    return folder / "sweep.html"


def as_json(sweep: Sweep, table: sweep_table.Table) -> dict[str, Any]:
    """Everything: the grid, every combination with its addresses and metrics, and the groups over seeds."""
    by_values = {tuple(result.values.items()): result for result in table.results}
    return {
        "recipe": sweep.source,
        "command": sweep.command,
        "axes": {name: [_plain(text) for text in texts] for name, texts in sweep.axes.items()},
        "seeds": list(table.seeds),
        "metrics": list(table.metrics),
        "combinations": [
            _combination(combination, by_values[tuple(combination.values.items())])
            for combination in sweep.combinations
        ],
        "groups": [
            {
                "values": _values(group.values),
                "runs": len(group.results),
                "finished": group.finished,
                "metrics": {metric: _fields(group.summary(metric)) for metric in table.metrics},
            }
            for group in table.groups
        ],
    }


def _combination(combination: Combination, result: sweep_table.Result) -> dict[str, Any]:
    return {
        "values": _values(combination.values),
        "equal": [_values(values) for values in combination.equals],
        "overrides": combination.overrides,
        "state": result.state,
        "outputs": {step.name: step.address for step in combination.plan},
        "metrics": {metric: _fields(value) for metric, value in result.measured.items()},
    }


def _values(values: Mapping[str, str]) -> dict[str, Any]:
    return {name: _plain(text) for name, text in values.items()}


def _plain(text: str) -> Any:
    """A value as the recipe reads it if JSON can express it, else as it was written."""
    value = parse_yaml(text, text)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return text
    return value


def _fields(of: sweep_table.Measured | sweep_table.Summary | None) -> dict[str, Any] | None:
    return None if of is None else {name: value for name, value in vars(of).items() if value is not None}


def _write_bytes(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(content)
    os.replace(beside, path)


def _page(sweep: Sweep, table: sweep_table.Table, plot: str) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False)
    environment.filters["short"] = sweep_table.short
    states = {tuple(result.values.items()): result for result in table.results}
    template = resources.files("gptlife.pipelines.sweep").joinpath("sweep.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        sweep=sweep,
        table=table,
        style=Markup(style()),
        plot=Markup(plot),
        header=sweep_table.header(table),
        lines=sweep_table.lines(table),
        caption=sweep_table.caption(table),
        runs=[(each, states[tuple(each.values.items())]) for each in sweep.combinations],
        finished=sum(result.state == "done" for result in table.results),
        outputs=len({step.address for each in sweep.combinations for step in each.plan}),
        asked=sum(len(each.plan) for each in sweep.combinations),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=versions().get("gptlife", ""),
    )
