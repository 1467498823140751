"""What the report says of an evaluation: who is who, who is preferred to whom, and how honest and polite they are.

Answerers have any names. A label begins with the kind (what their training says of itself, or the beginning of the
name) and ends with what is left of the name: `sft_small` is "SFT, small", `plain` that PPO made is "PPO". Pure
functions from metrics to tables; the alignment tax has its own, in `findings_tax.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlife.pipelines.report.findings import Table, is_number

PAPER: dict[str, Any] = {
    "win_rates": {("aligned", "base"): "85 ± 3", ("aligned", "base, prompted"): "71 ± 4"},
    "hallucination": {"base": "41", "PPO": "21", "PPO-ptx": "21"},
}
"""InstructGPT's numbers in percent (Ouyang et al. 2022, sections 4.1 and 4.2); win rates of 175B policies."""

_KINDS = {
    "base": "base",
    "sft": "SFT",
    "ppo": "PPO",
    "plain": "PPO",
    "rloo": "RLOO",
    "dpo": "DPO",
    "best_of_n": "best of n",
}
"""By the beginning of a name; `plain` is PPO without the pretraining mix, as the shipped recipes call it."""
_PROMPTED = "_prompted"
_ALIGNED = ("PPO-ptx", "PPO", "RLOO", "DPO")
_ALIKE = 1.1
"""Parameter counts within this factor are one size: a resized vocabulary makes no other model."""


@dataclass(frozen=True)
class Answerer:
    """One who answers in an evaluation."""

    name: str
    label: str
    kind: str
    """What training made it: "base, prompted", "SFT", "PPO-ptx"."""
    parameters: int | None
    size: int | None
    """The least parameters among those of about its size; None where unknown."""


def answerers(models: Mapping[str, Table], algorithms: Mapping[str, Any]) -> dict[str, Answerer]:
    """By name, smaller models first and else in the evaluation's order; `algorithms` are what made them, by name."""
    known = ((name, model.get("parameters")) for name, model in models.items())
    counts = {name: int(count) for name, count in known if is_number(count)}
    sizes = _sizes(counts.values())
    found: dict[str, Answerer] = {}
    used: set[str] = set()
    for name, model in models.items():
        kind, rest = _kind(name, algorithms.get(name) or model.get("algorithm"))
        label = f"{kind}, {rest}" if rest else kind
        if label in used:
            label = f"{label} ({name})"
        used.add(label)
        count = counts.get(name)
        found[name] = Answerer(name, label, kind, count, None if count is None else sizes[count])
    return {each.name: each for _, members in in_sizes(found) for each in members}


def _kind(name: str, algorithm: Any) -> tuple[str, str]:
    """(kind, what the name says beyond it)."""
    bare = name.removesuffix(_PROMPTED)
    head = next((head for head in _KINDS if bare == head or bare.startswith(f"{head}_")), None)
    prompted = head == "base" and bare != name
    rest = (bare if prompted else name)[len(head) :].strip("_") if head else name
    kind = str(algorithm) if algorithm and head != "base" else _KINDS[head] if head else None
    if kind is None:
        return name.replace("_", " "), ""
    return (f"{kind}, prompted" if prompted else kind), rest.replace("_", " ")


def _sizes(counts: Iterable[int]) -> dict[int, int]:
    """Every count with the least one of those that are about as large."""
    found: dict[int, int] = {}
    least = 0
    for count in sorted(set(counts)):
        if count > _ALIKE * least:
            least = count
        found[count] = least
    return found


def sized(who: Mapping[str, Answerer]) -> bool:
    """Whether models of several sizes answer."""
    return len({each.size for each in who.values()} - {None}) > 1


def in_sizes(who: Mapping[str, Answerer]) -> list[tuple[int | None, list[Answerer]]]:
    """The answerers of each size, smallest first, those of unknown size last; all together where there is one size."""
    if not sized(who):
        return [(None, list(who.values()))]
    order = sorted({each.size for each in who.values()}, key=lambda size: (size is None, size or 0))
    return [(size, [each for each in who.values() if each.size == size]) for size in order]


def rate(rows: Sequence[Table], a: str, b: str) -> Table | None:
    """The win rate of a over b, turned round where only b over a was written."""
    for row in rows:
        if (row["a"], row["b"]) == (a, b):
            return row
    for row in rows:
        if (row["a"], row["b"]) == (b, a):
            return _turned(row)
    return None


def _turned(row: Table) -> Table:
    def flipped(part: Table) -> Table:
        return {"rate": 1 - part["rate"], "low": 1 - part["high"], "high": 1 - part["low"]}

    counts = {"wins": row.get("losses"), "ties": row.get("ties"), "losses": row.get("wins"), "n": row.get("n")}
    controlled = row.get("length_controlled")
    return {
        "a": row["b"],
        "b": row["a"],
        **flipped(row),
        **counts,
        **({"length_controlled": flipped(controlled)} if controlled else {}),
    }


def baseline(wanted: Any, models: Iterable[str]) -> str | None:
    """The answerer that the others are compared with: the config's, or else the first one."""
    names = list(models)
    return wanted if wanted in names else names[0] if names else None


def against(rows: Sequence[Table], who: Mapping[str, Answerer], against: str | None) -> list[tuple[int | None, list]]:
    """Size by size, the win rates of all others over one."""
    found = []
    for size, members in in_sizes(who):
        own = [row for each in members if against and (row := rate(rows, each.name, against)) is not None]
        if own:
            found.append((size, own))
    return found


def curves_by_size(rows: Sequence[Table], who: Mapping[str, Answerer], to: str | None) -> list[Table]:
    """Figure 1 of Ouyang et al. 2022: a line a kind of answerer, its win rate over `to` by parameters.

    A second answerer of a kind and size (another round, say) is a line of its own. `to` itself stands at one half.
    """
    found: dict[str, dict[int, Table]] = {}
    for each in who.values():
        row = {"rate": 0.5, "low": 0.5, "high": 0.5} if each.name == to else rate(rows, each.name, to or "")
        if row is not None and each.parameters is not None and each.size is not None:
            line = found.setdefault(each.kind, {})
            if each.size in line:
                line = found.setdefault(each.label, {})
            line[each.size] = {"parameters": each.parameters, **{key: row[key] for key in ("rate", "low", "high")}}
    return [{"name": name, "points": [line[size] for size in sorted(line)]} for name, line in _in_reading_order(found)]


def _in_reading_order(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    order = ["base", "base, prompted", "SFT", "PPO", "PPO-ptx"]
    return sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def paper_pairs(rows: Sequence[Table], who: Mapping[str, Answerer]) -> list[Table]:
    """Aligned models over base models of their size, with InstructGPT's number; and the smallest over the largest."""
    found = []
    for _, members in in_sizes(who):
        aligned = _first(members, _ALIGNED)
        for kind in ("base", "base, prompted"):
            other = _first(members, (kind,))
            if aligned and other and (row := rate(rows, aligned.name, other.name)):
                found.append({**row, "paper": PAPER["win_rates"]["aligned", kind] + " (175B)"})
    if sized(who):
        known = [each for each in who.values() if each.size is not None]
        order = sorted(known, key=lambda each: each.size or 0)
        small, large = _first(order, _ALIGNED), _first(order[::-1], ("base",))
        if small and large and small.size != large.size and (row := rate(rows, small.name, large.name)):
            found.append({**row, "paper": "preferred (1.3B over 175B)"})
    return found


def _first(members: Sequence[Answerer], kinds: Sequence[str]) -> Answerer | None:
    return next((each for kind in kinds for each in members if each.kind == kind), None)


def honesty(found: Mapping[str, Table], who: Mapping[str, Answerer]) -> list[Table]:
    """A row an answerer: truthful, truthful and informative, hallucination, and InstructGPT's number."""
    return [
        {**found[name], "label": each.label, "paper": PAPER["hallucination"].get(each.kind)}
        for name, each in who.items()
        if found.get(name)
    ]


def honesty_gain(found: Mapping[str, Table], who: Mapping[str, Answerer]) -> Table | None:
    """Base and aligned model of the largest size that has both, for a sentence beside InstructGPT's."""
    for _, members in in_sizes(who)[::-1]:
        pair = _first(members, ("base",)), _first(members, _ALIGNED)
        if pair[0] and pair[1] and all(each and found.get(each.name) for each in pair):
            before, after = found[pair[0].name], found[pair[1].name]
            values = [(table.get("truthful_informative") or {}).get("mean") for table in (before, after)]
            known = [value for value in values if is_number(value) and value > 0]
            times = known[1] / known[0] if len(known) == 2 else None
            return {"base": pair[0].label, "aligned": pair[1].label, "before": before, "after": after, "times": times}
    return None


def manners(evaluation: Table, who: Mapping[str, Answerer]) -> Table:
    """How often answers are rude on the main prompts and on every further set; scores where no verdict is known."""
    sets = {"all prompts": evaluation.get("models") or {}, **(evaluation.get("further") or {})}
    if len(sets) == 1:
        return {}
    judged = any((model.get("verdicts") or {}).get("rude") for table in sets.values() for model in table.values())
    cells = {
        name: {
            key: (table.get(name, {}).get("verdicts") or {}).get("rude") if judged else table.get(name, {}).get("score")
            for key, table in sets.items()
        }
        for name in who
    }
    return {"sets": list(sets), "rude": judged, "rows": {name: row for name, row in cells.items() if any(row.values())}}


def judging(usage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What an LLM's verdicts took, in words; shares are of the pairs or the replies that they happened to."""
    pairs, calls = usage.get("pairs"), usage.get("calls")

    def share(key: str, whole: Any) -> Any:
        return usage[key] / whole if is_number(usage.get(key)) and is_number(whole) and whole else None

    return [
        ("pairs of answers compared", pairs),
        ("ties", share("ties", pairs)),
        ("of them: the verdict turned with the order (position flips)", share("position_flips", pairs)),
        ("of them: equal answers, not asked about", share("identical", pairs)),
        ("replies without a verdict (ties)", share("unparseable", calls)),
        ("replies", calls),
        ("of them from an earlier run", usage.get("cached")),
        ("tries that failed before a reply", usage.get("retries")),
        ("tokens read", usage.get("prompt_tokens")),
        ("tokens written", usage.get("completion_tokens")),
    ]
