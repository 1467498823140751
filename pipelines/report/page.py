"""The report: one HTML page about a life, from what its stages wrote; also of a life that stopped half way.

Every number comes from the outputs' metrics.json, manifest.json, log.jsonl and stage.yaml; nothing is computed here
but differences, sums, shares and the fits of over-optimisation. The page needs nothing else: figures are SVG inside
it, there is no script, and its content security policy forbids whatever would have to be fetched. Text of models and
data is escaped by jinja2, control characters are replaced. A stage that is not there leaves a sentence that says what
would make it.

Steps may have any names: each section shows the step that is called like its stage (or the first of that stage) whole,
and beside it all others of the stage in one table.

Left out: several runs on one page; `gptlife compare` sets two models side by side, and `gptlife sweep` runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FunctionLoader
from markupsafe import Markup

from gptlife.pipelines.planner import Planned
from gptlife.pipelines.report import findings, findings_online, findings_overoptimisation, findings_reward
from gptlife.pipelines.report.evaluation import View, views
from gptlife.pipelines.report.record import Record, Table, begun, of_stage, read
from gptlife.stages.runtime.files import write_text
from gptlife.stages.runtime.provenance import versions

_SAMPLED_STEPS = 6
_FOLD = 12
"""Steps from which on a table of all of them is folded."""
_UNSEEN = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}
"""Control characters, which HTML forbids or hides, as the replacement character."""
_FILTERS = ("num", "pct", "count", "span", "change", "duration", "far")


def write(planned: list[Planned], output: Path, name: str | None = None) -> Path:
    """Write the page of a plan to `output` (whole, or not at all) and return it; `name` is the recipe's.

    Raises:
        OSError: when the page can't be written.
    """
    page = _page([read(step) for step in planned], name or output.stem)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page.translate(_UNSEEN).encode("utf-8", "replace").decode("utf-8"))
    return output


def _page(records: Sequence[Record], name: str) -> str:
    stages = {stage: of_stage(records, stage) for stage in dict.fromkeys(record.stage for record in records)}
    online = of_stage(records, *findings_online.ONLINE)
    lead = {stage: own[0] for stage, own in stages.items()} | ({"ppo": online[0]} if online else {})
    of = {stage: record.metrics for stage, record in lead.items()}
    logs = {stage: record.log for stage, record in lead.items()}
    evaluations = views(records)
    labels = evaluations[0].labels if evaluations else {}
    curves = findings_overoptimisation.curves(of_stage(records, "best_of_n"), online)
    parts = {"reward_models": begun(stages.get("reward_model", [])), "online": begun(online)}

    def missing(stage: str) -> str:
        """Why a section has nothing to show, and what would change that."""
        if stage not in lead:
            return Markup("The recipe has no step {0}; give it a table <code>{0}:</code>.").format(stage)
        if lead[stage].step.adopted is not None:
            return f"The model was adopted ({lead[stage].step.adopted}), so nothing is known of how it was trained."
        text = Markup("The stage {} is {}; <code>gptlife run {}</code> makes this.")
        return text.format(lead[stage].name, lead[stage].standing, name)

    return (
        _environment()
        .get_template("report.html")
        .render(
            name=name,
            date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            summary=findings.summary(of, logs, labels),
            version=versions().get("gptlife", ""),
            records=records,
            fold=len(records) > _FOLD,
            of=of,
            stages=stages,
            missing=missing,
            figures=_figures(lead, evaluations, curves, parts),
            evaluations=evaluations,
            uniform=math.log(of.get("tokenizer", {}).get("vocabulary") or 1),
            **_reward(lead, parts["reward_models"]),
            **_online(lead.get("ppo"), online),
            curves=findings_overoptimisation.table(curves),
            best_of_n=begun(stages.get("best_of_n", [])),
            named=findings_overoptimisation.reward_of,
            machines=sorted({_machine(record.manifest) for record in records} - {""}),
            costs=_costs(stages),
            moved=[record.name for record in records if len(record.manifest.get("machines", [])) > 1],
            inexact=[record.name for record in records if record.manifest.get("same_bits") is False],
            total_seconds=_sum(records, "seconds"),
            total_tokens=_sum(records, "tokens"),
        )
    )


def _environment() -> Environment:
    def source(name: str) -> str:
        return resources.files("gptlife.pipelines.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(source),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {name: getattr(findings, name) for name in _FILTERS}
    environment.filters |= {"ensemble": findings_reward.ensemble, "quarters": findings_reward.quarters}
    return environment


def _reward(lead: Table, models: Sequence[Record]) -> Table:
    """What the section on comparisons and reward models shows."""
    comparisons, main = (lead[stage].metrics if stage in lead else {} for stage in ("comparisons", "reward_model"))
    return {
        "paper_reward": findings_reward.PAPER,
        "groups": findings_reward.groups(comparisons, main),
        "reward_models": models,
    }


def _online(main: Record | None, online: Sequence[Record]) -> Table:
    """What the section on the main online run, and on all of them, shows."""
    log = main.log if main else []
    return {
        "main_run": main,
        "policy": (main.metrics.get("algorithm") if main else None) or (main.stage.upper() if main else "PPO"),
        "first": next((row for row in log if "first_ratio" in row), None),
        "first_kl": next((row.get("kl") for row in log if row.get("step") == 1), None),
        "over_optimised": findings_online.over_optimised(log),
        "health": findings_online.health(log),
        "sampled": findings.spread([row for row in log if row.get("samples")], _SAMPLED_STEPS),
        "runs": findings_online.runs(online),
    }


def _machine(manifest: Table) -> str:
    host, platform = manifest.get("host"), manifest.get("platform")
    return f"{host} ({platform})" if host and platform else host or ""


def _costs(stages: dict[str, list[Record]]) -> list[Table]:
    """Steps, time and tokens by stage."""
    return [
        {"stage": stage, "steps": len(own), "seconds": _sum(own, "seconds"), "tokens": _sum(own, "tokens")}
        for stage, own in stages.items()
    ]


def _sum(records: Sequence[Record], key: str) -> float:
    return sum(record.manifest.get(key) or 0 for record in records)


def _figures(
    lead: dict[str, Record],
    evaluations: Sequence[View],
    curves: Sequence[findings_overoptimisation.Curve],
    parts: dict[str, list[Record]],
) -> Table:
    from gptlife.pipelines.report import figures, figures_evaluation, figures_online, figures_overoptimisation

    found: dict[str, str] = {}
    for view in evaluations:
        if view.groups:
            found[f"win_rates_{view.name}"] = figures_evaluation.win_rates(
                view.groups, view.labels, f"win_rates_{view.name}"
            )
        if view.sizes:
            found[f"sizes_{view.name}"] = figures_evaluation.by_size(
                view.sizes, view.labels[view.baseline or ""], f"sizes_{view.name}"
            )
    logs = {stage: record.log for stage, record in lead.items() if record.log}
    if "pretrain" in logs:
        found["pretrain"] = figures.pretrain(logs["pretrain"])
    if "sft" in logs:
        found["sft"] = figures.sft(logs["sft"], lead["sft"].metrics)
    if "reward_model" in logs:
        calibration = lead["reward_model"].metrics.get("calibration") or {}
        found["reward_model"] = figures.reward_model(logs["reward_model"], calibration)
    if lines := findings_reward.learning_curve(parts["reward_models"]):
        comparisons = lead["comparisons"].metrics if "comparisons" in lead else {}
        levels = findings_reward.levels(comparisons, lead["reward_model"].metrics)
        found["learning_curve"] = figures.learning_curve(lines, levels)
    if "ppo" in logs:
        found["ppo"] = figures_online.ppo(logs["ppo"])
    if len(parts["online"]) > 1:
        found["runs"] = figures_online.runs([(record.name, record.log) for record in parts["online"]])
    if curves:
        found["overoptimisation"] = figures_overoptimisation.overview(curves)
        if len({curve.reward for curve in curves}) > 1:
            found["overoptimisation_by_reward"] = figures_overoptimisation.by_reward(curves)
    return {key: Markup(svg) for key, svg in found.items()}
