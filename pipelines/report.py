"""The report: one HTML page about a life, from what its stages wrote; also of a life that stopped half way.

Every number comes from the outputs' metrics.json, manifest.json, log.jsonl and stage.yaml; nothing is computed here
but differences and sums. The page needs nothing else: figures are SVG inside it, there is no script, and its content
security policy forbids whatever would have to be fetched. Text of models and data is escaped by jinja2, control
characters are replaced. A stage that is not there leaves a sentence that says what would make it.

Left out: several runs on one page; `gptlife compare` sets two models side by side.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup

from gptlife.data.config import UserError
from gptlife.pipelines import findings
from gptlife.pipelines.planner import Planned
from gptlife.stages import artifact

Table = dict[str, Any]

_SAMPLED_STEPS = 6
_UNSEEN = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}
"""Control characters, which HTML forbids or hides, as the replacement character."""


@dataclass(frozen=True)
class Record:
    """What lies on disk of one step; everything is empty where nothing does."""

    step: Planned
    state: str
    metrics: Table
    manifest: Table
    log: list[Table]
    config: str
    """stage.yaml as text, or what it will say."""
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The step's name in the recipe."""
        return self.step.name

    @property
    def standing(self) -> str:
        """The state in words, with how far an unfinished stage has come."""
        if self.step.adopted is not None and self.state == "done":
            return f"adopted from {self.step.adopted}"
        if self.state != "partial":
            return {"done": "done", "to do": "not started"}[self.state]
        if not self.log:
            return "unfinished"
        total = getattr(self.step.config, "steps", None)
        return f"unfinished, at step {self.log[-1].get('step')}" + (f" of {total}" if total else "")


def write(planned: list[Planned], output: Path, name: str | None = None) -> Path:
    """Write the page of a plan to `output` (whole, or not at all) and return it; `name` is the recipe's.

    Raises:
        OSError: when the page can't be written.
    """
    page = _page([_read(step) for step in planned], name or output.stem)
    output.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_text(output, page.translate(_UNSEEN).encode("utf-8", "replace").decode("utf-8"))
    return output


def _read(step: Planned) -> Record:
    state, problems = step.state, []
    folder = artifact.partial_of(step.path) if state == "partial" else step.path

    def table(name: str) -> Table:
        try:
            found = artifact.read_json(folder / name) if (folder / name).is_file() else {}
            return found if isinstance(found, dict) else {}
        except (UserError, OSError, UnicodeDecodeError) as error:
            problems.append(str(error))
            return {}

    log = []
    if (folder / artifact.LOG).is_file():
        # Written line by line while a stage works: the last one may be half there.
        for line in (folder / artifact.LOG).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                log.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
    metrics, manifest = table(artifact.METRICS), table(artifact.MANIFEST)
    return Record(step, state, metrics, manifest, log, _config_of(step, folder), tuple(problems))


def _config_of(step: Planned, folder: Path) -> str:
    """The step's stage.yaml without `identity` and `input_addresses`, which say the same again."""
    path, known = folder / artifact.STAGE_FILE, None
    if path.is_file():
        try:
            known = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        except yaml.YAMLError:
            return f"{path.name} is damaged"
    if not isinstance(known, dict):
        known = step.config.model_dump(mode="json") if step.config else {"adopt": str(step.adopted)}
    kept = {key: value for key, value in known.items() if key not in ("identity", "input_addresses")}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _page(records: Sequence[Record], name: str) -> str:
    by_name = {record.name: record for record in records}
    of = {key: record.metrics for key, record in by_name.items()}
    logs = {key: record.log for key, record in by_name.items()}
    evaluation = of.get("evaluation", {})
    rows = findings.without_mirrors(evaluation.get("win_rates") or [])
    labels = {**findings.LABELS, "ppo": of.get("ppo", {}).get("algorithm") or "PPO"}

    def missing(stage: str) -> str:
        """Why a section has nothing to show, and what would change that."""
        if stage not in by_name:
            return Markup("The recipe has no step {0}; give it a table <code>{0}:</code>.").format(stage)
        if by_name[stage].step.adopted is not None:
            return f"The model was adopted ({by_name[stage].step.adopted}), so nothing is known of how it was trained."
        text = Markup("The stage {} is {}; <code>gptlife run {}</code> makes this.")
        return text.format(stage, by_name[stage].standing, name)

    environment = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters |= {
        name: getattr(findings, name) for name in ("num", "pct", "count", "span", "change", "duration")
    }
    template = resources.files("gptlife.pipelines").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        name=name,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        summary=findings.summary(of, logs, labels),
        version=artifact.versions().get("gptlife", ""),
        records=records,
        of=of,
        missing=missing,
        figures=_figures(of, logs, rows, labels),
        labels=labels,
        models=[key for key in findings.LABELS if key in (evaluation.get("models") or {})],
        win_rates=rows,
        paper=findings.PAPER,
        uniform=math.log(of.get("tokenizer", {}).get("vocabulary") or 1),
        groups=findings.groups(of.get("comparisons", {}), of.get("reward_model", {})),
        first=next((row for row in logs.get("ppo", []) if "first_ratio" in row), None),
        first_kl=next((row.get("kl") for row in logs.get("ppo", []) if row.get("step") == 1), None),
        over_optimised=findings.over_optimised(logs.get("ppo", [])),
        health=findings.health(logs.get("ppo", [])),
        sampled=findings.spread([row for row in logs.get("ppo", []) if row.get("samples")], _SAMPLED_STEPS),
        tax=findings.tax(evaluation),
        machines=sorted({_machine(record.manifest) for record in records} - {""}),
        total_seconds=sum(record.manifest.get("seconds") or 0.0 for record in records),
        total_tokens=sum(record.manifest.get("tokens") or 0 for record in records),
    )


def _machine(manifest: Table) -> str:
    host, platform = manifest.get("host"), manifest.get("platform")
    return f"{host} ({platform})" if host and platform else host or ""


def _figures(of: Mapping[str, Table], logs: Mapping[str, list[Table]], rows: list[Table], labels: Table) -> Table:
    from gptlife.pipelines import figures

    found: dict[str, str] = {}
    if rows:
        found["win_rates"] = figures.win_rates(rows, labels)
    if logs.get("pretrain"):
        found["pretrain"] = figures.pretrain(logs["pretrain"])
    if logs.get("sft"):
        found["sft"] = figures.sft(logs["sft"], of["sft"])
    if logs.get("reward_model"):
        calibration = of["reward_model"].get("calibration") or {}
        found["reward_model"] = figures.reward_model(logs["reward_model"], calibration)
    if logs.get("ppo"):
        found["ppo"] = figures.ppo(logs["ppo"])
    return {key: Markup(svg) for key, svg in found.items()}
