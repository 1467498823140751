"""The report: one HTML page about a life, from what its stages wrote; also of a life that stopped half way.

Every number comes from the outputs' metrics.json, manifest.json, log.jsonl and stage.yaml; nothing is computed here
but differences, sums, shares and the fits of over-optimisation. The page is self-contained: figures are SVG inside it,
there is no script, and its content security policy forbids loading anything. Text of models and data
is escaped by jinja2, control characters are replaced. A step that is not done leaves a sentence that says what would
make it.

The page is its `SECTIONS` in order. Each builds its tables and figures from the life and has a template beside it.
Steps may have any names, and what a step is comes from its stage's `title` and `family`: a section shows the first step
of a family whole (one that is called like its stage goes before others), and all others of the family in one table.

Left out: several runs on one page; `gptlife compare` compares two models, and `gptlife sweep` runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from gptlife.pipelines.planner import Planned
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.record import Record, read
from gptlife.pipelines.report.sections import (
    cost,
    honesty,
    lineage,
    losses,
    online,
    overoptimisation,
    policies,
    preference,
    reward_model,
    samples,
    tasks,
    tax,
)
from gptlife.pipelines.report.summary import summary
from gptlife.pipelines.report.templates import environment, style
from gptlife.stages.runtime import provenance
from gptlife.stages.runtime.files import write_text

SECTIONS = (
    preference.SECTION,
    honesty.SECTION,
    samples.SECTION,
    losses.SECTION,
    reward_model.SECTION,
    online.SECTION,
    policies.SECTION,
    overoptimisation.SECTION,
    tax.SECTION,
    tasks.SECTION,
    lineage.SECTION,
    cost.SECTION,
)
_UNSEEN = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}
"""Control characters, which HTML forbids or hides, as the replacement character."""


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
    life, templates = Life(name, records), environment()
    links, sections = [], []
    for section in SECTIONS:
        context = section.build(life)
        if context is not None:
            links.append({"anchor": section.anchor, "text": context.get("link", section.link)})
            template = templates.get_template(f"sections/{section.template}.html")
            sections.append(Markup(template.render(life=life, **context)))
    return templates.get_template("page.html").render(
        name=name,
        due=life.due,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        summary=summary(life),
        version=provenance.versions().get("gptlife", ""),
        records=records,
        fold=len(records) > cost.FOLD,
        links=links,
        sections=sections,
        style=style(),
    )
