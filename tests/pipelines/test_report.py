"""The report, on a life written by hand: what is in the page is compared with numbers worked out here."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.config import decode
from gptlife.pipelines.lifecycle import LIFECYCLE, Step
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.recipe import Adopted
from gptlife.pipelines.report import figures, figures_evaluation, figures_online, figures_overoptimisation, findings
from gptlife.pipelines.report import page as report
from gptlife.pipelines.report.findings_online import over_optimised

WEB = {"village": {"part": "web", "count": 10}}
CHAT = {"village": {"part": "demonstrations", "count": 10}}
PROMPTS = {"village": {"part": "prompts", "count": 10}}
CONFIGS: dict[str, dict[str, Any]] = {
    "tokenizer": {"data": WEB},
    "pretrain": {"data": WEB, "validation": WEB},
    "sft": {"data": CHAT, "seed": 41},
    "comparisons": {"prompts": PROMPTS, "labelers": {"village": "training"}},
    "reward_model": {},
    "ppo": {"prompts": PROMPTS, "steps": 500},
    "evaluation": {"prompts": PROMPTS, "judge": {"village": True}},
    "best_of_n": {"prompts": PROMPTS, "samples": 4, "answer_n": 4},
    "rloo": {"prompts": PROMPTS, "steps": 20, "kl_coef": 0.25},
    "dpo": {},
}
NAMES = tuple(CONFIGS)[:7]
"""The steps of a plain life."""


class Life:
    """A plan in a directory, and ways to put outputs there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: dict[str, Planned] = {}
        for step in LIFECYCLE:
            self.add(step, step.name, CONFIGS[step.name], step.inputs)

    def add(self, step: Step, name: str, config: dict[str, Any], inputs: Mapping[str, str]) -> None:
        """One more step of the stage, reading the steps `inputs`."""
        address = f"{name}-0123456789ab"
        self.steps[name] = Planned(
            name=name,
            stage=step.stage,
            module=step.module,
            config=decode(step.stage.config, config, name),
            adopted=None,
            launcher=(),
            inputs={key: self.steps[upstream] for key, upstream in inputs.items()},
            address=address,
            path=self.root / address,
        )

    def branch(self, name: str, like: str, config: dict[str, Any] | None = None, **inputs: str) -> None:
        """A step of the recipe's own that is like another one."""
        [step] = [step for step in LIFECYCLE if step.name == like]
        own = {key: value for key, value in {**step.inputs, **inputs}.items() if value in self.steps}
        self.add(step, name, {**CONFIGS[like], **(config or {})}, own)

    def done(self, name: str, metrics: Any, log: Any = (), **manifest: Any) -> None:
        folder = self.steps[name].path
        folder.mkdir(exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "manifest.json").write_text(json.dumps({"versions": {"torch": "9.8.7"}, **manifest}))
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        (folder / "stage.yaml").write_text(f"stage: {name}\nidentity: {{hidden: twice}}\nlearning_rate: 0.0625\n")

    def begun(self, name: str, log_text: str) -> None:
        folder = self.steps[name].path.with_name(self.steps[name].path.name + ".partial")
        folder.mkdir()
        (folder / "log.jsonl").write_text(log_text)

    def page(self, names: tuple[str, ...] = NAMES, name: str = "toy") -> str:
        planned = [self.steps[step] for step in names]
        return report.write(planned, self.root / "reports" / "page.html", name).read_text(encoding="utf-8")


def artifact_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What a manifest says of a folder's numbers."""
    paths = [folder / name for name in ("metrics.json", "log.jsonl")]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return {path.name: {"bytes": path.stat().st_size, "sha256": digests[path.name]} for path in paths}


class Reader(HTMLParser):
    """Tags with their attributes, and the text that a person sees, blanks run together."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "style":
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """An empty plan."""
    return Life(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, for tests that read the text; `monkeypatch.undo()` draws them again."""
    for module in (figures, figures_evaluation, figures_online, figures_overoptimisation):
        monkeypatch.setattr(module, "figure", lambda name, *_, **__: f'<svg id="{name}-figure_1"></svg>')


@pytest.fixture
def half(life: Life, undrawn: None) -> Life:
    """Tokenizer and pretraining done, fine-tuning stopped while it wrote a line of its log."""
    life.done("tokenizer", {"vocabulary": 1024, "bytes_per_token": 3.5}, seconds=1.5, tokens=None, host="box")
    life.done(
        "pretrain",
        {
            "validation_loss": 1.2344,
            "bits_per_byte": 0.8765,
            "tokens": 3000000,
            "parameters": 965376,
            "tokens_per_second": 6345.4,
            "mfu": 0.3625,
            "checkpoint_seconds": 2.0,
        },
        [{"step": i, "tokens": 1000 * i, "loss": 5 - i / 10, "grad_norm": 1.0} for i in range(1, 11)],
        seconds=90.0,
        tokens=3000000,
        peak_memory_mb=858,
        host="box",
        platform="Plan-9",
        commit="feedbeef+",
    )
    life.begun("sft", '{"step": 6, "loss": 3.0}\n{"step": 7, "loss": 2.9}\n{"step": 8, "lo')
    return life


def evaluation(**changes: Any) -> dict[str, Any]:
    """What a whole evaluation gives."""

    def mean(value: float) -> dict[str, float]:
        return {"mean": value, "low": value - 0.02, "high": value + 0.03, "n": 500}

    def rate(a: str, b: str, value: float, low: float, high: float) -> dict[str, Any]:
        counts = {"wins": 341, "ties": 30, "losses": 129, "n": 500}
        controlled = {"rate": value - 0.1, "low": low - 0.1, "high": high - 0.1}
        return {"a": a, "b": b, "rate": value, "low": low, "high": high, **counts, "length_controlled": controlled}

    def model(score: float) -> dict[str, Any]:
        verdicts = {name: mean(value) for name, value in zip(("follows", "true"), (score, 0.9), strict=True)}
        return {"score": mean(score), "words": 12.34, "verdicts": verdicts}

    return {
        "prompts": 500,
        "judge": "the Village's gold judge",
        "models": {name: model(score) for name, score in (("base", 0.1), ("sft", 0.4), ("ppo", 0.6))},
        "win_rates": [
            rate("sft", "base", 0.80, 0.77, 0.83),
            rate("ppo", "base", 0.853, 0.82, 0.88),
            rate("ppo", "sft", 0.712, 0.67, 0.751),
            rate("base", "sft", 0.201, 0.17, 0.23),
        ],
        "tax": {
            "base": {
                "validation_loss": 2.0,
                "few_shot": {"facts": 0.25, "counting": 0.5},
                "few_shot_loss": {"facts": 1.0, "counting": 0.5},
            },
            "ppo": {
                "validation_loss": 2.3,
                "few_shot": {"facts": 0.35, "counting": 0.45},
                "few_shot_loss": {"facts": 1.25, "counting": 0.75},
            },
        },
        "use_cases": {"open_qa": {"prompts": 50, "base": 0.111, "sft": 0.222, "ppo": 0.333}},
        "samples": [{"prompt": "Say hi.", "answers": {"base": "moo", "sft": "Hi.", "ppo": "Hello there."}}],
        **changes,
    }


def ppo_log(score: Callable[[int], float], gold: Callable[[int], float] | None, steps: int = 20) -> list[dict]:
    """PPO's log with scores as functions of the step; a little noise so that there is an error to beat."""
    rows = []
    for step in range(1, steps + 1):
        noise = 0.01 * (-1) ** step
        row = {"step": step, "score": score(step) + noise, "kl": 0.1 * (step - 1), "var_explained": -7.0}
        row |= {"first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0}
        rows.append(row | ({"gold": gold(step) + noise} if gold else {}))
    return rows


def test_a_life_that_stopped_half_way(half, monkeypatch):
    monkeypatch.undo()
    page = half.page()
    text = Reader(page).text
    assert "SFT" not in Reader(page).text.split("stage state")[0]  # the summary speaks of what is done
    assert "Pretrained to a validation loss of 1.234 nats a token; not aligned yet." in text
    assert "sft unfinished, at step 7 sft-0123456789ab" in text
    assert "ppo not started ppo-0123456789ab" in text
    assert (
        "Validation loss 1.234 nats a token, 0.876 bits per byte, after 3,000,000 tokens; 965,376 parameters." in text
    )
    assert "ln(vocabulary) = 6.93" in text  # ln 1024 = 10 ln 2
    assert 'id="pretrain-figure_1"' in page
    assert 'id="sft-figure_1"' in page  # drawn as far as it goes
    assert 'id="ppo-figure_1"' not in page
    for section in (
        "No win rates.",
        "No samples.",
        "No reward model curve.",
        "No PPO yet.",
        "Not measured.",
        "Not judged.",
    ):
        assert section in text
    assert "The stage ppo is not started; gptlife run toy makes this." in text


@pytest.mark.parametrize("name", ["metrics.json", "log.jsonl"])
def test_numbers_that_are_not_the_manifests_are_not_shown(half, name):
    folder, log = half.steps["sft"].path, [{"step": 1, "loss": 1.5}]
    half.done("sft", {"validation_loss": 1.125}, log)
    half.done("sft", {"validation_loss": 1.125}, log, files=artifact_files(folder))
    assert "1.125" in Reader(half.page()).text
    (folder / name).write_text((folder / name).read_text().replace("5}", "6}"))
    text = Reader(half.page()).text
    assert "1.125" not in text
    assert f"{name}: damaged (not the bytes that its manifest lists); make it again" in text


def test_cost_and_lineage(half):
    text = Reader(half.page()).text
    assert "pretrain 90.0 s 3,000,000 6,345 36.2 % 858 – 2.0 s – box" in text
    assert "total 91.5 s 3,000,000" in text
    assert "Machines: box; box (Plan-9)." in text
    assert "other bits" not in text
    assert "pretrain pretrain-0123456789ab from tokenizer tokenizer-0123456789ab" in text
    assert "commit feedbeef+" in text
    assert "torch 9.8.7" in text
    assert "seed 41" in text
    assert "learning_rate: 0.0625" in text  # stage.yaml of what has one
    assert "ptx_coef: 27.8" in text  # the plan's config of what has none yet
    assert "hidden: twice" not in text


def test_preference_and_tax(half):
    half.done("evaluation", evaluation())
    half.done("ppo", {"algorithm": "PPO-ptx"}, ppo_log(lambda i: 0.1 * i, None))
    text = Reader(half.page()).text
    assert (
        "PPO-ptx preferred to SFT in 71.2 % [67.0, 75.1] of 500 unseen prompts, judged by the Village's gold judge."
        in text
    )
    # Over SFT: as written for base, and PPO; the other way round it would be 1 - .8 and 129 wins.
    assert "base 20.1 [17.0, 23.0] 10.1 [7.0, 13.0] 341 30 129" in text
    assert "PPO-ptx 71.2 [67.0, 75.1] 61.2 [57.0, 65.1] 341 30 129" in text
    assert "PPO-ptx base 85.3 [82.0, 88.0] 75.3 [72.0, 78.0] 85 ± 3 (175B)" in text
    # The matrix: base over PPO-ptx is what is left of 85.3.
    assert "base · 20.1 [17, 23] 14.7 [12, 18]" in text
    assert "SFT 0.400 [0.380, 0.430] 40.0 [38.0, 43.0] 90.0 [88.0, 93.0]" in text
    assert "open_qa 50 0.111 0.222 0.333" in text
    assert "Say hi. moo Hi. Hello there." in text
    # counting, facts, mean of tasks, mean loss of the right choice; differences to base
    assert "base 2.000 50.0 25.0 37.5 0.750" in text
    assert "PPO-ptx 2.300 +0.300 45.0 −5.0 35.0 +10.0 40.0 +2.5 1.000 +0.250" in text


def test_labelers_beside_the_reward_model(half):
    half.done(
        "comparisons",
        {
            "train_rankings": 2400,
            "train_pairs": 51234,
            "train_tie_share": 0.0862,
            "ceiling_training": 0.874,
            "agreement_training": 0.731,
            "ceiling_heldout": 0.868,
        },
    )
    half.done(
        "reward_model",
        {
            "validation_accuracy": 0.7044,
            "validation_accuracy_training": 0.7101,
            "validation_accuracy_heldout": 0.6987,
            "longer_baseline": 0.5512,
            "validation_pairs": 4000,
            "calibration": {
                "ece": 0.0421,
                "counts": [3, 0, 1],
                "confidence": [0.6, None, 0.9],
                "accuracy": [0.5, None, 1],
            },
        },
        [{"step": 1, "loss": 0.69, "accuracy": 0.5}],
    )
    page = half.page()
    text = Reader(page).text
    assert "training 73.1 % 87.4 % 71.0 % 72.6 ± 1.5 72.4 ± 0.4" in text
    assert "heldout – 86.8 % 69.9 % 77.3 ± 1.3 69.6 ± 0.9" in text
    assert "right on 70.4 % ; always choosing the longer answer is right on 55.1 %" in text
    assert "Expected calibration error 0.042 :" in text
    assert "train 2,400 – 51,234 8.6 % –" in text
    assert 'id="reward_model-figure_1"' in page
    assert "The reward model is right on 70.4 % of held-out pairs; no policy yet." in text


def test_exact_and_inexact_first_updates(half):
    log = ppo_log(lambda i: 0.1 * i, None)
    half.begun("ppo", "".join(json.dumps(row) + "\n" for row in log))
    text = Reader(half.page()).text
    assert "ppo unfinished, at step 20 of 500" in text
    assert "PPO moved the score from 0.090 to 2.010 in 20 steps." in text
    exact = "Exactly 1, 0, 0 and 0, as it must be"
    assert exact in text
    log[0]["first_ratio"] = 1.0002
    partial = half.steps["ppo"].path.with_name("ppo-0123456789ab.partial")
    (partial / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    text = Reader(half.page()).text
    assert exact not in text
    assert "ratio 1.0002" in text
    assert "are not of one distribution" in text


def test_health_marks_what_is_alarming(half):
    half.done("ppo", {}, ppo_log(lambda i: 0.1 * i, None))
    page = half.page()
    assert "value: explained variance −7.0000 −7.0000 rises above 0.5 (alarming)" in Reader(page).text
    assert page.count('<tr class="bad">') == 1
    assert "KL to the reference, nats an answer 0.0000 1.9000" in Reader(page).text


def test_samples_over_time_are_spread_over_the_run(half):
    log = ppo_log(lambda i: 0.1 * i, None)
    for row in log:
        row["samples"] = [{"prompt": "Who?", "answer": f"answer of {row['step']}", "score": 0.5}]
    half.done("ppo", {}, log)
    shown = re.findall(r"answer of (\d+)", half.page())
    assert (shown[0], shown[-1], len(shown)) == ("1", "20", 6)


def branched(life: Life) -> tuple[str, ...]:
    """A life with a second size, a branch, RLOO, DPO, best of n and a second evaluation; their names."""
    life.branch("sft_small", "sft")
    life.branch("plain", "ppo", {"kl_coef": 0.5})
    life.branch("reward_300", "reward_model", {"rankings": 300})
    life.branch("sweeps", "evaluation", {"baseline": "sft"}, plain="plain")
    life.branch("evaluation", "evaluation", {"baseline": "sft"}, sft_small="sft_small", plain="plain")
    life.branch("best_of_n", "best_of_n", reward_300="reward_300")
    life.done("ppo", {"algorithm": "PPO-ptx", "kl": 3.25}, ppo_log(lambda i: 0.1 * i, lambda i: 0.2 + 0.01 * i))
    life.done("plain", {"algorithm": "PPO", "stopped_at": 19}, ppo_log(lambda i: 0.2 * i, lambda i: 0.1))
    life.done("rloo", {"algorithm": "RLOO"}, ppo_log(lambda i: 0.1 * i, None))
    life.done("dpo", {"pairs": 1234, "steps": 77, "validation_accuracy": 0.671, "validation_margin": 0.25})
    more = {"validation_gold_spearman": 0.512, "members": 2, "validation_member_accuracies": [0.61, 0.63]}
    more |= {"validation_mean_accuracy": 0.641, "validation_by_confidence": [0.51, 0.6, 0.7, 0.811]}
    life.done("reward_model", {"rankings": 2400, "validation_accuracy": 0.65, **more}, [{"step": 1, "loss": 0.6}])
    life.done("reward_300", {"rankings": 300, "validation_accuracy": 0.6}, [{"step": 1, "loss": 0.7}])
    points = [
        {
            "n": n,
            "kl": kl,
            "d": kl**0.5,
            **{key: {"mean": at, "low": at - 0.1, "high": at + 0.1} for key, at in (("proxy", 2 * kl), ("gold", 0.3))},
        }
        for n, kl in ((1, 0.0), (2, 0.19), (4, 0.64))
    ]
    life.done("best_of_n", {"samples": 4, "answer_n": 4, "prompts": 50, "curves": {"reward_300": points}, "fits": {}})
    found = evaluation()
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    small, large, chosen = (
        {**found["models"]["sft"], "parameters": parameters} for parameters in (207000, 924000, None)
    )
    found["models"] = {"sft": large, "ppo": large, "best_of_n": chosen, "sft_small": small, "plain": large}
    found["models"] = {name: {**model, "reward": estimate} for name, model in found["models"].items()}
    found["win_rates"] = [
        {"a": a, "b": b, "rate": 0.6, "low": 0.55, "high": 0.65, "wins": 6, "ties": 0, "losses": 4, "n": 10}
        for a, b in (("ppo", "sft"), ("best_of_n", "sft"), ("sft_small", "sft"), ("plain", "sft"), ("plain", "ppo"))
    ]
    found["honesty"] = {"sft": {"truthful": estimate}, "ppo": {"truthful": estimate, "hallucination": estimate}}
    found["further"] = {"polite": {"ppo": {"verdicts": {"rude": {"mean": 0.125, "low": 0.1, "high": 0.15, "n": 9}}}}}
    found["tax"] = {name: {"validation_loss": loss} for name, loss in (("sft", 2.0), ("ppo", 2.1), ("plain", 2.5))}
    life.done("evaluation", found)
    life.done("sweeps", evaluation(tax={}))
    return (*CONFIGS, "sft_small", "plain", "reward_300", "sweeps")


def test_branches_baselines_and_second_evaluations(half):
    names = branched(half)
    page = half.page(names)
    text = Reader(page).text
    # Size by size, and what is no model of its own at the end.
    assert "207,000 parameters SFT, small 60.0 [55.0, 65.0] – 6 0 4 924,000 parameters PPO-ptx 60.0" in text
    assert "no model of its own best of 4 60.0" in text
    assert 'id="sizes_evaluation-figure_1"' in page
    assert 'id="sizes_sweeps-figure_1"' not in page  # one size
    assert "sweeps : 3 models compared with SFT" in text
    assert "PPO-ptx 50.0 [40.0, 60.0] – 50.0 [40.0, 60.0] 21" in text  # truthful, and informative, hallucination, paper
    assert "PPO-ptx – 12.5 [10.0, 15.0]" in text  # rude on all prompts, on polite ones
    # PPO pays .5 nats more than SFT, PPO-ptx .1: four fifths given back.
    assert "from SFT; PPO pays 0.500 PPO-ptx 2.100 0.100 80.0 % 0.400 PPO 2.500 0.500 – 0.400" in text
    assert "plain PPO sft reward_model 0.5 – 20 1.90 4.010 0.110 – – stopped at step 19 by its KL" in text
    assert "rloo RLOO sft reward_model 0.25 – 20 1.90 2.010 – – –" in text
    assert "dpo sft 1,234 77 – 67.1 % 0.250" in text
    assert "reward_300 1 0.00 0.000 [−0.100, 0.100] 0.300 [0.200, 0.400] –" in text
    assert "reward_model sft 2,400 2 65.0 %" in text
    assert "its members are right on 61.0 %, 63.0 %; together 64.1 % by their mean, – by mean" in text
    assert "reward_model 51.0 % 60.0 % 70.0 % 81.1 %" in text
    for figure in ("runs", "learning_curve", "overoptimisation", "overoptimisation_by_reward"):
        assert f'id="{figure}-figure_1"' in page


def test_many_steps_are_folded(half):
    names = branched(half)
    assert "of 14 steps are done; each with its state and address" in Reader(half.page(names)).text
    assert "ppo 2 0.0 s 0 reward_model 2" not in Reader(half.page()).text
    assert "steps are done" not in Reader(half.page()).text
    assert "evaluation evaluation-0123456789ab from 9 others" in Reader(half.page(names)).text


def test_every_figure_of_branches_is_drawn_and_ids_are_one_each(half, monkeypatch):
    monkeypatch.undo()
    tags = Reader(half.page(branched(half))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for figure in ("sizes_evaluation", "win_rates_sweeps", "runs", "learning_curve", "overoptimisation_by_reward"):
        assert f"{figure}-figure_1" in ids


def test_an_llm_judge_has_no_scores_but_a_cost(half):
    found = evaluation(judge="the language model x", use_cases={})
    for model in found["models"].values():
        del model["score"], model["verdicts"]
    found["judging"] = {"pairs": 200, "ties": 20, "position_flips": 10, "calls": 400, "unparseable": 2, "cost": 1.5}
    half.done("evaluation", found)
    text = Reader(half.page()).text
    assert "Of 500 prompts, judged by the language model x." in text
    assert "model words base 12.3" in text
    assert "pairs of answers compared 200 ties 10.0 %" in text
    assert "(position flips) 5.0 %" in text
    assert "replies without a verdict (ties) 0.5 % replies 400" in text
    assert "cost, in the currency of the prices 1.5000" in text


def test_without_a_gold_judge_there_is_no_over_optimisation(half):
    half.done("ppo", {}, ppo_log(lambda i: 0.1 * i, None))
    page = half.page()
    assert "overoptimisation-figure" not in page
    assert "Not measured: a judge that knows the truth must watch" in Reader(page).text


def test_over_optimisation_is_said():
    # Gold rises to step 12 and falls by as much again; the score rises all the way.
    said = over_optimised(ppo_log(lambda i: 0.1 * i, lambda i: 0.1 * (12 - abs(i - 12))))
    assert said is not None
    # Fifths of four steps: the best is 9 to 12 (mean gold 1.05, score 1.05), the last 17 to 20 (gold 0.55, score 1.85).
    assert "from steps 9 to 12 to the last fifth of the run the score rose from 1.050 to 1.850" in said
    assert "fell from 1.050 to 0.550" in said


@pytest.mark.parametrize(
    ("score", "gold", "steps"),
    [
        (lambda i: 0.1 * i, lambda i: 0.1 * i, 20),  # both rise
        (lambda i: 1.0, lambda i: -0.1 * i, 20),  # the score doesn't rise
        (lambda i: 0.1 * i, lambda i: -1e-4 * i, 20),  # gold falls within its noise
        (lambda i: 0.1 * i, lambda i: -0.1 * i, 9),  # too short to tell
        (lambda i: 0.1 * i, None, 20),  # nobody watched
    ],
)
def test_over_optimisation_is_not_said_without_cause(score, gold, steps):
    assert over_optimised(ppo_log(score, gold, steps)) is None


def test_a_device_that_gives_other_bits_is_told(half):
    half.done("evaluation", evaluation(), device="cpu", threads=2, same_bits=True)
    half.done("ppo", {}, device="cuda (A Big One)", threads=8, same_bits=False)
    text = Reader(half.page()).text
    assert "The same run may end with other bits on the device of ppo: a GPU adds in no fixed order" in text
    assert "device cuda (A Big One), 8 threads" in text
    assert "device cpu, 2 threads" in text


def test_a_step_that_was_begun_elsewhere_is_told(half):
    half.done("evaluation", evaluation())
    assert "Begun on one machine" not in Reader(half.page()).text
    half.done("ppo", {}, machines=[{"threads": 2}, {"threads": 1}])
    assert "size of a micro-batch) and finished on another: ppo. Its rows" in Reader(half.page()).text


def test_what_models_and_data_say_is_escaped(half):
    evil = '<script>alert("x")</script>'
    sample = {"prompt": evil, "answers": {"base": f"a{evil}", "sft": "bell\x07\x00\x9b", "ppo": "\ud800 half"}}
    half.done("evaluation", evaluation(samples=[sample], judge=evil, use_cases={evil: {"prompts": 1, "base": 1.0}}))
    page = half.page(name=f"toy{evil}")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "bell\ufffd\ufffd\ufffd" in page
    assert Reader(page).text.count(evil) >= 5  # and reads as it was written


def test_the_page_needs_nothing_else(half, monkeypatch):
    monkeypatch.undo()
    half.done("evaluation", evaluation())
    half.done("ppo", {}, ppo_log(lambda i: 0.1 * i, lambda i: 0.2))
    tags = Reader(half.page()).tags
    policy = next(
        attributes["content"] for tag, attributes in tags if "content-security-policy" in str(attributes).lower()
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    targets = [a[key] for _, a in tags for key in ("href", "xlink:href", "src") if key in a]
    assert targets
    assert all(str(target).startswith("#") for target in targets)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(target)[1:] for target in targets} <= set(ids)


def test_no_nan_on_the_page(half, monkeypatch):
    monkeypatch.undo()
    log = [{"step": 1, "score": float("nan"), "kl": None}, {"step": 2, "score": float("inf"), "kl": True}]
    half.done("ppo", {"score": float("nan")}, log, seconds=float("nan"))
    half.done("reward_model", {"validation_accuracy": float("nan"), "calibration": {"ece": None}}, log)
    half.done("evaluation", {"win_rates": [], "models": {"ppo": {"score": {"mean": float("nan")}}}, "tax": {"ppo": {}}})
    text = Reader(half.page()).text.lower()
    assert not re.search(r"\bnan\b|\binf\b|none of|undefined", text)
    assert "ppo – – –" in text


def test_every_stage_done_but_silent(life):
    for name in NAMES:
        life.done(name, {})
    text = Reader(life.page()).text
    assert "No model of this life is finished yet." in text
    assert "Not measured." in text


def test_nothing_done_and_nothing_planned(life):
    assert "tokenizer not started" in Reader(life.page()).text
    only = Reader(life.page(("tokenizer",))).text
    assert "The recipe has no step evaluation; give it a table evaluation: ." in only
    assert "No model of this life is finished yet." in Reader(life.page(())).text


def test_adopted_models_have_no_curve(life):
    own = life.root / "mine"
    own.mkdir()
    step = life.steps["pretrain"]
    life.steps["pretrain"] = Planned(
        **{**step.__dict__, "config": None, "adopted": Adopted(directory=own), "path": own}
    )
    text = Reader(life.page()).text
    assert f"pretrain adopted from {own}" in text
    assert f"The model was adopted ({own}), so nothing is known of how it was trained." in text


def test_a_damaged_file_is_named_and_the_rest_is_shown(half):
    (half.steps["pretrain"].path / "metrics.json").write_text('{"validation_loss": 1.2')
    (half.steps["pretrain"].path / "stage.yaml").write_text("a: [")
    text = Reader(half.page()).text
    assert "metrics.json:1: damaged" in text
    assert "stage.yaml is damaged" in text
    assert "sft unfinished, at step 7" in text


def test_a_page_is_there_whole_or_not_at_all(half, monkeypatch):
    before = half.page()

    def fail(*_: Any) -> str:
        raise RuntimeError("no summary")

    monkeypatch.setattr(findings, "summary", fail)
    with pytest.raises(RuntimeError, match="no summary"):
        half.page()
    assert [path.name for path in (half.root / "reports").iterdir()] == ["page.html"]
    assert (half.root / "reports" / "page.html").read_text(encoding="utf-8") == before


def test_a_report_loads_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from gptlife.pipelines.report import figures, page as report\n"
        f"report.write([], Path({str(tmp_path / 'page.html')!r}))\n"
        "figures.sft([{'step': 1, 'loss': 2.0}], {})\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def places(svg: str, text: str) -> list[tuple[float, float]]:
    """x, y of every text of a figure that begins so."""
    found = re.findall(rf'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(text)}', svg)
    found += re.findall(rf"<text[^>]*translate\(([\d.]+) ([\d.]+)\)[^>]*>{re.escape(text)}", svg)
    return [(float(x), float(y)) for x, y in found]


def test_gold_is_drawn_right_beneath_the_score():
    svg = figures_online.ppo(ppo_log(lambda i: 0.1 * i, lambda i: 0.2))
    [(score_x, score_y)], [(gold_x, gold_y)] = places(svg, "score, as trained on"), places(svg, "gold judge's score")
    assert gold_x == score_x
    assert gold_y > score_y
    assert [y for x, y in places(svg, "step") if score_y < y < gold_y]  # next row: one axis label between them
    assert "no judge watched" not in svg
    assert "no judge watched" in figures_online.ppo(ppo_log(lambda i: 0.1 * i, None))


def test_a_low_value_does_not_flatten_the_panel():
    svg = figures_online.ppo(ppo_log(lambda i: 0.1 * i, None))  # explained variance -7
    assert "value: explained variance, at least −1" in svg
    assert places(svg, "-1")
    assert not places(svg, "-6") + places(svg, "-7")  # the axis doesn't go there
    fine = [row | {"var_explained": 0.5} for row in ppo_log(lambda i: 0.1 * i, None)]
    assert "at least" not in figures_online.ppo(fine)


def test_long_logs_stay_small_and_keep_their_spikes():
    def log(spike: float) -> list[dict[str, Any]]:
        return [{"step": i, "tokens": i, "loss": spike if i == 7000 else 1.0} for i in range(20000)]

    svg = figures.pretrain(log(9.0))
    assert len(svg) < 150_000
    assert places(svg, "8")  # a tick near the spike: the axis reaches it
    assert not places(figures.pretrain(log(1.0)), "8")


def test_a_line_leaves_out_what_is_no_number():
    log = [
        {"step": 1, "a": 1},
        {"step": 2, "a": float("nan")},
        {"step": 3},
        {"step": 4, "a": True},
        {"step": 5, "a": 2},
    ]
    assert figures.line(log, "a", "name") == ("name", [1.0, 5.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (findings.num(-1234.5678), "−1,234.568"),
        (findings.num(-0.0001), "0.000"),
        (findings.num(float("nan")), "–"),
        (findings.num(None), "–"),
        (findings.num(True), "–"),
        (findings.pct(0.7125), "71.2\u00a0%"),
        (findings.count(3002155), "3,002,155"),
        (findings.span({"low": 0.67, "high": 0.751}, 100), "[67.0, 75.1]"),
        (findings.span({"low": -0.5}), ""),
        (findings.change(2.3, 2.0), "+0.300"),
        (findings.change(0.45, 0.5, 100, 1), "−5.0"),
        (findings.change(1.0, None), ""),
        (findings.far(-2.504), "−2.50"),
        (findings.far(1000), "far"),
        (findings.far(None), "–"),
        (findings.duration(119.94), "119.9 s"),
        (findings.duration(125), "2 min"),
        (findings.duration(7199), "2 h 00 min"),
        (findings.duration(3 * 3600 + 5 * 60), "3 h 05 min"),
        (findings.duration(None), "–"),
    ],
)
def test_numbers_as_written(written, expected):
    assert written == expected
