"""docs/results/rivals.md: PPO-ptx and its rivals, equally tuned: gold against KL, tokens sampled, paired differences.

    python benchmarks/rivals.py tune --store store --jobs 2      # every setting of rivals.yaml, on a seed of its own
    python benchmarks/rivals.py run --store store --jobs 2       # the recipe `rivals` on three seeds, and the page

`tune` measures each setting on validation prompts and says which is best; people write it into the recipe `rivals`, and
`run` refuses a recipe that has another. `run` measures on test prompts: the policies, the copies along their way
(`keep_every`), and further strengths of DPO and KTO, so that every method is a curve over the KL to the SFT model. What
is done already is not done again; the numbers are kept beside the page, without weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rivals_page
import yaml
from lives import notes
from rivals_measure import Measured, Question, measure_all

from gptlife.data.tokens import encode_text
from gptlife.pipelines import runner, schedule
from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.outputs import read_log
from gptlife.pipelines.planner import Planned, plan
from gptlife.pipelines.recipe import load
from gptlife.pipelines.store import Store
from gptlife.reward.statistics.best_of_n import best_of_n, best_of_n_kl
from gptlife.stages.modeling.loading import load_tokenizer

RECIPE = "rivals"
GRID: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
VALIDATION = "{village: {part: prompts, split: validation, count: 500}}"
Plan = dict[str, Planned]
Setting = dict[str, Any]


def main() -> None:
    """Tune, or run and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("tune", "run"))
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="steps at once, and processes that measure")
    parser.add_argument("--output", type=Path, default=Path("docs/results/rivals.md"))
    arguments = parser.parse_args()
    store, kept = Store(arguments.store), arguments.output.with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)
    if arguments.what == "tune":
        tuned = tune(store, arguments.jobs)
        (kept / "tuning.json").write_text(json.dumps(tuned, indent=1) + "\n", encoding="utf-8")
        print(rivals_page.tuning(tuned))
        return
    tuned = json.loads((kept / "tuning.json").read_text(encoding="utf-8"))
    refuse_other_settings(tuned, planned(store, arguments.seeds[0]))
    found = lives(store, arguments.seeds, arguments.jobs, kept)
    rivals_page.figure(found, kept / "gold-against-kl.svg")
    text = rivals_page.page(found, tuned, kept.name, notes(arguments.output))
    arguments.output.write_text(text, encoding="utf-8")
    print(arguments.output)


def settings(method: str) -> Iterator[Setting]:
    """Every setting of a method's grid."""
    grid = GRID["grid"][method]
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def planned(store: Store, seed: int, method: str = "", setting: Setting | None = None, *more: str) -> Plan:
    """The plan of a life, with one method's fields changed."""
    overrides = [f"{method}.{name}={value}" for name, value in (setting or {}).items()]
    return {step.name: step for step in plan(load(RECIPE, [f"seed={seed}", *overrides, *more], LIFECYCLE), store)}


def make(store: Store, jobs: int, wanted: Sequence[tuple[Plan, str]]) -> None:
    """Run the named step of every plan, and what it reads.

    Raises:
        SystemExit: when a step fails or a signal stops the work.
    """
    steps = schedule.order([runner.up_to(list(each.values()), name) for each, name in wanted])
    outcome = schedule.run(steps, store, jobs)
    if outcome.failed or outcome.stopped_by is not None:
        raise SystemExit(f"rivals: not finished ({outcome.failed or 'stopped'}); run the same command again")


def tune(store: Store, jobs: int) -> dict[str, Any]:
    """Every setting's gold score and KL on validation prompts: method -> rows, and the best row's `setting`."""
    seed = GRID["seed"]
    on_validation = (f"evaluation.prompts={VALIDATION}", f"best_of_n.prompts={VALIDATION}")
    runs = [
        (method, setting, planned(store, seed, method, setting, *on_validation))
        for method in GRID["grid"]
        for setting in settings(method)
    ]
    make(store, jobs, [(each, method) for method, _, each in runs])
    trained = [(method, each) for method, _, each in runs if method != "best_of_n"]
    answers = iter(measure_all([question(store, each, each[method].path) for method, each in trained], jobs))
    rows: dict[str, list[dict[str, Any]]] = {}
    for method, setting, each in runs:
        measured = chosen_of(each, setting["answer_n"]) if method == "best_of_n" else next(answers)
        row = {"setting": setting, "address": each[method].address, **rivals_page.means(measured)}
        rows.setdefault(method, []).append(row | {"sampled": sampled_in_training(each[method])})
    return {
        method: {"rows": of, "best": max(of, key=lambda row: row["gold"]["mean"])["setting"]}
        for method, of in rows.items()
    }


def refuse_other_settings(tuned: dict[str, Any], life: Plan) -> None:
    """Refuse a recipe that doesn't have what tuning found best.

    Raises:
        SystemExit: in one line.
    """
    for method, of in tuned.items():
        config = life[method].config
        for name, value in of["best"].items():
            if getattr(config, name) != value:
                raise SystemExit(
                    f"{RECIPE}.yaml: {method}.{name} is {getattr(config, name)}; tuning chose {value}: write it there"
                )


class Life(NamedTuple):
    """The plans of a seed."""

    whole: Plan
    strengths: dict[tuple[str, float], Plan]
    """(method, strength) -> the same life with that strength."""

    def addresses(self) -> dict[str, str]:
        """Of every step that the page reads."""
        others = {f"{method} {value}": each[method].address for (method, value), each in self.strengths.items()}
        return {name: step.address for name, step in self.whole.items()} | others


def lives(store: Store, seeds: Sequence[int], jobs: int, kept: Path) -> dict[int, dict[str, Any]]:
    """All that the page needs of each seed: curves, sampled tokens, pretraining loss; what is kept is read.

    What is kept of other addresses than today's recipe has is made again.
    """
    plans, found = {seed: life(store, seed) for seed in seeds}, {}
    for seed, each in plans.items():
        archive = kept / f"seed-{seed}.json.xz"
        if archive.is_file():
            result = json.loads(lzma.decompress(archive.read_bytes()))
            if result["addresses"] == each.addresses():
                found[seed] = result
    missing = {seed: each for seed, each in plans.items() if seed not in found}
    wanted = [(each.whole, "evaluation") for each in missing.values()]
    wanted += [(of, method) for each in missing.values() for (method, _), of in each.strengths.items()]
    make(store, jobs, wanted)
    for seed, each in missing.items():
        found[seed] = {"addresses": each.addresses(), **_measured(store, *each, jobs)}
        (kept / f"seed-{seed}.json.xz").write_bytes(lzma.compress(json.dumps(found[seed]).encode()))
    return {seed: found[seed] for seed in seeds}


def life(store: Store, seed: int) -> Life:
    """The recipe's plan for a seed, and those of further strengths."""
    strengths = {
        (method, value): planned(store, seed, method, {name: value})
        for method, of in GRID["curves"].items()
        for name, values in of.items()
        for value in values
    }
    return Life(planned(store, seed), strengths)


def _measured(store: Store, whole: Plan, strengths: dict[tuple[str, float], Plan], jobs: int) -> dict[str, Any]:
    """`curves`: method -> points, each with a name and what was measured; `methods`: the point that tuning chose."""
    points: list[tuple[str, str, Path]] = [("sft", "", whole["sft"].path)]
    for method in GRID["grid"]:
        copies = sorted((whole[method].path / "steps").glob("*"), key=lambda path: int(path.name))
        points += [(method, f"step {path.name}", path) for path in copies]
        points += [(method, f"{value}", each[method].path) for (of, value), each in strengths.items() if of == method]
        if method != "best_of_n":
            points.append((method, "chosen", whole[method].path))
    measured = measure_all([question(store, whole, path) for _, _, path in points], jobs)
    curves: dict[str, list[dict[str, Any]]] = {}
    for (method, name, _), each in zip(points, measured, strict=True):
        curves.setdefault(method, []).append({"name": name, **each})
    n_best = whole["best_of_n"].config.answer_n  # type: ignore[union-attr]
    curves["best_of_n"] = [
        {"name": "chosen" if n == n_best else f"n = {n}", "n": n, **chosen_of(whole, n)} for n in (2, 4, 8, 16)
    ]
    evaluated = json.loads((whole["evaluation"].path / "metrics.json").read_text(encoding="utf-8"))
    return {
        "curves": curves,
        "pretraining_loss": {name: of["validation_loss"] for name, of in evaluated["tax"].items()},
        "sampled": {method: sampled_in_training(whole[method]) for method in GRID["grid"]},
        "labelled": labelled_tokens(whole["comparisons"]),
    }


def question(store: Store, life: Plan, policy: Path) -> Question:
    """How a policy of a life is measured; the evaluation's prompts are those that it answers."""
    prompts = life["evaluation"].config.prompts  # type: ignore[union-attr]
    name = "-".join([*policy.relative_to(store.root).parts, prompts[0].village.split])
    return Question(
        policy, life["sft"].path, life["reward_model"].path, prompts, store.root / "rivals" / f"{name}.json"
    )


def chosen_of(life: Plan, n: int) -> Measured:
    """What best of n gives for each prompt, in expectation over the subsets of its samples; KL from the formula."""
    path = life["best_of_n"].path
    rows = [json.loads(line) for line in (path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = load_tokenizer(life["sft"].path)
    proxy_PN = [row["scores"]["reward"] for row in rows]
    tokens_PN = [_tokens(tokenizer, row) for row in rows]
    values = {"gold": [row["gold"] for row in rows], "proxy": proxy_PN, "tokens": tokens_PN}
    of_n = {name: best_of_n(proxy_PN, table_PN, [n])[:, 0].round(5).tolist() for name, table_PN in values.items()}
    of_n["sampled"] = [n * sum(tokens) / len(tokens) for tokens in tokens_PN]
    return {**of_n, "kl": [best_of_n_kl(n)] * len(rows)}


def sampled_in_training(step: Planned) -> float:
    """Tokens that a step sampled to learn from; 0 where it samples none."""
    rows = read_log(step.path)
    return sum(row["length"] for row in rows if "length" in row) * getattr(step.config, "batch_size", 0)


def labelled_tokens(comparisons: Planned) -> int:
    """Tokens of the answers that were sampled to be ranked; every method learns from them."""
    tokenizer = load_tokenizer(comparisons.inputs["policy"].path)
    rows = (json.loads(line) for line in (comparisons.path / "train.jsonl").read_text(encoding="utf-8").splitlines())
    return int(sum(sum(_tokens(tokenizer, row)) for row in rows))


def _tokens(tokenizer: Any, row: dict[str, Any]) -> list[float]:
    """Tokens of each answer, end-of-text included where it was reached."""
    pairs = zip(row["answers"], row["finished"], strict=True)
    return [float(len(encode_text(tokenizer, text)) + ended) for text, ended in pairs]


if __name__ == "__main__":
    main()
