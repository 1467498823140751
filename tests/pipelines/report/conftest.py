"""A life written by hand, and what reads its page; the tests compare with numbers worked out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.config import decode
from gptlife.pipelines.lifecycle import LIFECYCLE, Step
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report import page as report
from gptlife.pipelines.report.candidates import Candidate, Maker, candidates

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
MAKERS = {
    "base": Maker("base", "pretrain", "base"),
    "sft": Maker("SFT", "sft", "chat"),
    "ppo": Maker("PPO", "ppo", "online", mixed=True),
    "plain": Maker("PPO", "ppo", "online"),
    "best": Maker("best of n", "best_of_n", "answers"),
}


class Life:
    """A plan in a directory, and ways to put outputs there."""

    names = NAMES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: dict[str, Planned] = {}
        for step in LIFECYCLE:
            if step.name in CONFIGS:
                inputs = {name: upstream for name, upstream in step.inputs.items() if upstream in CONFIGS}
                self.add(step, step.name, CONFIGS[step.name], inputs)

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
    monkeypatch.setattr(drawing, "figure", lambda name, *_, **__: f'<svg id="{name}-figure_1"></svg>')


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


def _evaluation(**changes: Any) -> dict[str, Any]:
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


def _online_log(score: Callable[[int], float], gold: Callable[[int], float] | None, steps: int = 20) -> list[dict]:
    """An online run's log with scores as functions of the step; a little noise so that there is an error to beat."""
    rows = []
    for step in range(1, steps + 1):
        noise = 0.01 * (-1) ** step
        row = {"step": step, "score": score(step) + noise, "kl": 0.1 * (step - 1), "var_explained": -7.0}
        row |= {"first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0}
        rows.append(row | ({"gold": gold(step) + noise} if gold else {}))
    return rows


@pytest.fixture
def evaluation() -> Callable[..., dict[str, Any]]:
    """`evaluation(tax={})`: what a whole evaluation gives, but for these changes."""
    return _evaluation


@pytest.fixture
def online_log() -> Callable[..., list[dict]]:
    """`online_log(score, gold, steps)`: the log of an online run whose scores are functions of the step."""
    return _online_log


@pytest.fixture
def who() -> Callable[..., dict[str, Candidate]]:
    """`who(ppo_small=10)`: candidates of these sizes, whose names begin with what made them."""

    def of(**parameters: int | None) -> dict[str, Candidate]:
        models = {name: {"parameters": count} for name, count in parameters.items()}
        return candidates(models, {name: MAKERS[name.split("_")[0]] for name in models if "_prompted" not in name})

    return of


@pytest.fixture
def reader() -> type[Reader]:
    """`reader(page)`: its `text` and its `tags`."""
    return Reader


@pytest.fixture
def branched(half: Life) -> tuple[str, ...]:
    """Names of a life with a second size, a branch, RLOO, DPO, best of n and a second evaluation."""
    life = half
    life.branch("sft_small", "sft")
    life.branch("ppo", "ppo", {"pretraining": WEB})
    life.branch("plain", "ppo", {"kl_coef": 0.5})
    life.branch("reward_300", "reward_model", {"rankings": 300})
    life.branch("sweeps", "evaluation", {"baseline": "sft"}, plain="plain")
    life.branch("evaluation", "evaluation", {"baseline": "sft"}, sft_small="sft_small", plain="plain")
    life.branch("best_of_n", "best_of_n", reward_300="reward_300")
    life.done("ppo", {"algorithm": "PPO-ptx", "kl": 3.25}, _online_log(lambda i: 0.1 * i, lambda i: 0.2 + 0.01 * i))
    life.done("plain", {"algorithm": "PPO", "stopped_at": 19}, _online_log(lambda i: 0.2 * i, lambda i: 0.1))
    life.done("rloo", {"algorithm": "RLOO"}, _online_log(lambda i: 0.1 * i, None))
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
    found = _evaluation()
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
    life.done("sweeps", _evaluation(tax={}))
    return (*CONFIGS, "sft_small", "plain", "reward_300", "sweeps")
