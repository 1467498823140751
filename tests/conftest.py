"""Fixtures for all rooms: the shared data folder, and a tiny model's life made once by the stages' own `run`."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from gptlife.data.config import sha256_of_file

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("gptlife", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gptlife")


def pytest_configure() -> None:
    """Hear Ctrl-C: a job started in the background ignores it, and so would every child that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


NAMES = ("Anna", "Bert", "Cleo", "Dora", "Emil", "Fred", "Gina", "Hugo")
THINGS = ("hat", "cup", "cat", "dog", "book", "boat")
COLOURS = ("red", "blue", "green", "grey")

FUNCTIONS = '''\
"""A labeler and rewards of the tests' own."""


def rank(prompt, answers, rng):
    """The more letters e the better; as many are a tie."""
    counts = sorted({-answer.count("e") for answer in answers})
    return [1 + counts.index(-answer.count("e")) for answer in answers]


def count_e(prompts, answers):
    return [float(answer.count("e")) for answer in answers]


def nothing(prompts, answers):
    return [0.0 for _ in answers]


def too_few(prompts, answers):
    return [0.0]


def not_a_number(prompts, answers):
    return [float("nan") for _ in answers]
'''


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that lies beside the checkout on some machines."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder (../shared/data beside the checkout) is not on this machine")
    return folder


class Life(NamedTuple):
    """A tiny life: data files, functions, and the outputs of every stage up to the reward model."""

    folder: Path
    text: Path
    held_out: Path
    conversations: Path
    prompts: Path
    functions: Path
    tokenizer: Path
    pretrain: Path
    sft: Path
    comparisons: Path
    reward_model: Path


def run_stage(stage: Any, fields: dict[str, Any], output: Path, **inputs: Path) -> dict[str, Any]:
    """The metrics of `stage.run` on decoded fields, in this process, on the CPU."""
    from gptlife.data.config import decode

    config = decode(stage.config, {"device": "cpu", "track": [], **fields}, stage.name)
    output.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = stage.run(config, output, **inputs)
    return metrics


@pytest.fixture(scope="session")
def run() -> Any:
    """`run(STAGE, fields, output, **inputs)`: see `run_stage`."""
    return run_stage


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(NAMES)} has a {rng.choice(COLOURS)} {rng.choice(THINGS)}."


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A tokenizer, a GPT-2 of 2 layers and width 32, its SFT, comparisons and a reward model: seconds."""
    from gptlife.stages import comparisons, pretrain, reward_model, sft, tokenizer

    folder, rng = tmp_path_factory.mktemp("life"), random.Random(0)
    documents = [{"text": " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))} for _ in range(160)]
    talks = [
        {"prompt": f"What does {name} have?", "completion": f"A {rng.choice(COLOURS)} {thing}."}
        for name in NAMES
        for thing in THINGS
    ]
    rng.shuffle(talks)
    questions = [{"prompt": f"What does {name} {verb}?"} for name in NAMES for verb in ("have", "see", "want")]
    (folder / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
    life = Life(
        folder,
        write_jsonl(folder / "text.jsonl", documents[:140]),
        write_jsonl(folder / "held_out.jsonl", documents[140:]),
        write_jsonl(folder / "conversations.jsonl", talks),
        write_jsonl(folder / "prompts.jsonl", questions),
        folder / "functions.py",
        *(folder / name for name in ("tokenizer", "pretrain", "sft", "comparisons", "reward_model")),
    )
    run_stage(tokenizer.STAGE, {"data": str(life.text), "vocabulary": 320}, life.tokenizer)
    run_stage(pretrain.STAGE, PRETRAIN | {"data": str(life.text), "validation": str(life.held_out)}, life.pretrain,
              tokenizer=life.tokenizer)  # fmt: skip
    run_stage(
        sft.STAGE,
        {"data": str(life.conversations), "learning_rate": 5e-3, "epochs": 4, "batch_size": 16},
        life.sft,
        base=life.pretrain,
    )
    run_stage(
        comparisons.STAGE,
        {
            "prompts": str(life.prompts),
            "validation": 0.25,
            "labelers": {"function": f"{life.functions}:rank"},
            "max_new_tokens": 12,
        },
        life.comparisons,
        policy=life.sft,
    )
    run_stage(
        reward_model.STAGE,
        {"learning_rate": 2e-3, "batch_size": 4, "demonstrations": str(life.conversations)},
        life.reward_model,
        base=life.sft,
        comparisons=life.comparisons,
    )
    return life


PRETRAIN = {
    "architecture": {"model_type": "gpt2", "fields": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}},
    "sequence_length": 32,
    "tokens": 16_384,
    "batch_tokens": 512,
    "ramp_tokens": 0,
    "warmup_tokens": 1024,
    "decay_tokens": 16_384,
    "learning_rate": 1e-2,
    "validate_every": 16,
}
"""A pretraining of 32 steps; lacks `data` and `validation`."""


TIMINGS = ("tokens_per_second", "seconds_sampling", "seconds_scoring", "seconds_updating")


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """`digests(output)`: sha256 of every weight file under it."""

    def of(output: Path) -> dict[str, str]:
        files = sorted(path for path in output.rglob("*.safetensors") if "checkpoints" not in path.parts)
        assert files
        return {str(path.relative_to(output)): sha256_of_file(str(path)) for path in files}

    return of


@pytest.fixture(scope="session")
def log_of() -> Callable[[Path], list[dict[str, Any]]]:
    """`log_of(output)`: the lines of its log.jsonl without what depends on the clock."""

    def of(output: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]

    return of
