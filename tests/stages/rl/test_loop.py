"""The loop that the online stages share: stopping on KL, ensembles of reward models, copies along the way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.stages import cispo, grpo, ppo, rloo
from gptlife.stages.runtime.artifact import is_complete

FIELDS = {
    "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 10, "learning_rate": 2e-3, "warmup_steps": 0,
    "sample_every": 1, "ema": 0.9,
}  # fmt: skip
EXACT = {"kl": 0.0, "kl_k3": 0.0, "first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0}
RISING = {"steps": 4, "learning_rate": 3e-4, "batch_size": 16}


class Groups(grpo.GRPOConfig):
    """GRPO on groups as small as these tests' batches."""

    answers_per_prompt: int = 4


class Weights(cispo.CISPOConfig):
    """CISPO on such groups."""

    answers_per_prompt: int = 4


STAGES = [ppo.STAGE, rloo.STAGE, replace(grpo.STAGE, config=Groups), replace(cispo.STAGE, config=Weights)]
every = pytest.mark.parametrize("stage", STAGES, ids=["ppo", "rloo", "grpo", "cispo"])


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "prompts": str(tiny.prompts), **changes}


def players(tiny: Any) -> dict[str, Path]:
    return {"policy": tiny.sft, "reward": tiny.reward_model}


@every
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_tokens": 60, "inner_epochs": 2},
        {"gradient_checkpointing": True, "micro_batch_tokens": 60},
        {"lora": {"rank": 4}, "micro_batch_tokens": 60},
        {"temperature": 0.7, "pretraining": "text", "ptx_rows_per_episode": 0.5, "ptx_length": 16},
    ],
    ids=["plain", "micro", "checkpointing", "lora", "ptx"],
)
def test_the_first_minibatch_is_exact(
    changes: dict[str, Any], stage: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any
) -> None:
    if "pretraining" in changes:
        changes = {**changes, "pretraining": str(tiny.text)}
    metrics = run(stage, fields(tiny, steps=2, ema=None, **changes), tmp_path / "one", **players(tiny))
    first, second = log_of(tmp_path / "one")
    assert {name: first[name] for name in EXACT} == EXACT
    # Every step begins with ratio 1; the KL to the reference is 0 in the first one only.
    assert {name: second[name] for name in list(EXACT)[2:]} == {name: EXACT[name] for name in list(EXACT)[2:]}
    assert second["kl_k3"] > 0.0
    assert first["approx_kl"] > 0.0  # the second minibatch has an update before it
    assert first["sampling_mismatch"] < 1e-4
    assert metrics["algorithm"] == stage.name.upper() + ("-ptx" if "pretraining" in changes else "")
    valued = [name for name in first if name.startswith("value_") and name != "value_mean"]
    assert bool(valued) == (tmp_path / "one" / "value").exists() == (stage is ppo.STAGE)


def rising(stage: Any, tiny: Any, run: Any, log_of: Any, output: Path) -> tuple[list[dict[str, Any]], int, float]:
    """(log of a run, its place with the highest KL, a limit that only this one and later ones are above)."""
    run(stage, fields(tiny, **RISING), output, **players(tiny))
    log = log_of(output)
    kls = [line["kl"] for line in log]
    peak = kls.index(max(kls))
    assert peak > 1
    return log, peak, (max(kls[:peak]) + kls[peak]) / 2


@every
def test_stop_on_kl(stage: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any, digests: Any, capsys: Any) -> None:
    whole, peak, limit = rising(stage, tiny, run, log_of, tmp_path / "whole")
    capsys.readouterr()
    metrics = run(stage, fields(tiny, **RISING, target_kl=limit), tmp_path / "stopped", **players(tiny))
    stopped = log_of(tmp_path / "stopped")
    assert stopped[:peak] == whole[:peak]
    # The step was sampled and measured as it would have been, and not learnt from.
    last, kl = stopped[peak], whole[peak]["kl"]
    assert len(stopped) == peak + 1
    assert not last.keys() & {"policy_loss", "value_loss", "first_ratio"}
    assert last.pop("stopped_at") == metrics["stopped_at"] == metrics["steps"] == peak + 1
    assert {name: whole[peak][name] for name in last} == last
    assert (metrics["kl"], metrics["episodes"]) == (kl, 16 * (peak + 1))
    assert f"{stage.name}: stopped at step {peak + 1}: KL {kl:.2f} is above target_kl" in capsys.readouterr().err
    # All weights, the averaged ones too, are those of the steps before it; without the stop they would not be.
    run(stage, fields(tiny, **{**RISING, "steps": peak}), tmp_path / "short", **players(tiny))
    assert digests(tmp_path / "stopped") == digests(tmp_path / "short")
    assert digests(tmp_path / "whole") != digests(tmp_path / "short")


def test_a_limit_that_is_never_met(tiny: Any, run: Any, tmp_path: Path, digests: Any) -> None:
    run(ppo.STAGE, fields(tiny, steps=2), tmp_path / "one", **players(tiny))
    metrics = run(ppo.STAGE, fields(tiny, steps=2, target_kl=1e3), tmp_path / "two", **players(tiny))
    assert "stopped_at" not in metrics
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@every
def test_stopped_is_complete(stage: Any, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = {**fields(tiny, steps=9, target_kl=1e-6), "device": "cpu", "track": [], "output": str(tmp_path / "one")}
    raw["inputs"] = {name: str(path) for name, path in players(tiny).items()}
    raw["adaptive_kl"] = {"target": 1.0, "horizon": 100}
    for _ in range(2):
        stage.execute(raw, "stage.yaml")
        assert is_complete(tmp_path / "one")
    assert capsys.readouterr().out.endswith("one is complete already\n")


@every
def test_adaptive_kl(stage: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, steps=3, kl_coef=0.1, adaptive_kl={"target": 0.5, "horizon": 100})
    run(stage, options, tmp_path / "one", **players(tiny))
    kl_coef = 0.1
    for line in log_of(tmp_path / "one"):
        assert line["kl_coef"] == pytest.approx(kl_coef)
        kl_coef *= 1 + min(max(line["kl"] / 0.5 - 1, -0.2), 0.2) * 16 / 100


@every
def test_stopping_after_an_interruption(
    stage: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any, digests: Any, cut_short: Any
) -> None:
    _, peak, limit = rising(stage, tiny, run, log_of, tmp_path / "unlimited")
    options = fields(tiny, **RISING, target_kl=limit)
    metrics = run(stage, options, tmp_path / "whole", **players(tiny))
    parts = tmp_path / "parts"
    for step in (peak, peak + 1):  # before the stop, and between its line in the log and the saved weights
        cut_short(step, lambda: run(stage, options, parts, **players(tiny)))
        assert len(log_of(parts)) == step
    again = run(stage, options, parts, **players(tiny))
    assert again["stopped_at"] == metrics["stopped_at"] == peak + 1
    assert digests(parts) == digests(tmp_path / "whole")
    assert log_of(parts) == log_of(tmp_path / "whole")


def ensemble_of(tiny: Any, folder: Path) -> Path:
    """The tiny reward model and a second member whose every score is -3 times the first one's."""
    shutil.copytree(tiny.reward_model, folder)
    shutil.copytree(tiny.reward_model, folder / "members" / "1")
    path = folder / "members" / "1" / "model.safetensors"
    tensors = load_file(str(path))
    save_file({**tensors, "score.weight": -3.0 * tensors["score.weight"]}, str(path), metadata={"format": "pt"})
    return folder


@every
def test_ensembles(stage: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    reward = ensemble_of(tiny, tmp_path / "reward")
    options = {"steps": 1, "batch_size": 4, "minibatch_size": 4, "learning_rate": 0.0}
    run(stage, fields(tiny, **options), tmp_path / "alone", **players(tiny))
    alone = [sample["score"] for sample in log_of(tmp_path / "alone")[0]["samples"]]
    # Of s and -3 s the mean is -s and the (biased) standard deviation 2 |s|.
    expected = {
        "mean": [-s for s in alone],
        "mean_std": [-s - 0.5 * 2 * abs(s) for s in alone],
        "worst": [min(s, -3 * s) for s in alone],
    }
    for rule, scores in expected.items():
        changes = fields(tiny, **options, ensemble={"rule": rule, "coef": 0.5})
        run(stage, changes, tmp_path / rule, policy=tiny.sft, reward=reward)
        (line,) = log_of(tmp_path / rule)
        found = [sample["score"] for sample in line["samples"]]
        assert found == pytest.approx(scores, abs=1e-5)
        assert line["score"] == pytest.approx(sum(scores) / 4, abs=1e-5)
        with pytest.raises(AssertionError):  # twin: the first member alone
            assert found == pytest.approx(alone, abs=1e-5)


def test_value_network_begins_as_the_first_member(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    reward = ensemble_of(tiny, tmp_path / "reward")
    options = fields(tiny, steps=1, learning_rate=0.0, value_learning_rate=0.0)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=reward)
    assert_close(weights(tmp_path / "one" / "value"), weights(reward), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(weights(tmp_path / "one" / "value"), weights(reward / "members" / "1"), rtol=0, atol=0)


@every
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_copies_along_the_way(
    stage: Any, lora: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any, digests: Any, weights: Any
) -> None:
    run(stage, fields(tiny, steps=4, keep_every=2, lora=lora), tmp_path / "kept", **players(tiny))
    run(stage, fields(tiny, steps=4, lora=lora), tmp_path / "plain", **players(tiny))
    run(stage, fields(tiny, steps=2, lora=lora), tmp_path / "two", **players(tiny))
    # The last step has none: it is the output. What is trained doesn't notice that it was copied.
    assert sorted(path.name for path in (tmp_path / "kept" / "steps").iterdir()) == ["2"]
    kept = digests(tmp_path / "kept")
    assert kept.pop("steps/2/model.safetensors") == digests(tmp_path / "two")["model.safetensors"]
    assert kept == digests(tmp_path / "plain")
    assert kept["model.safetensors"] != digests(tmp_path / "two")["model.safetensors"]
    assert log_of(tmp_path / "kept") == log_of(tmp_path / "plain")
    copied = tmp_path / "kept" / "steps" / "2"
    assert not list(copied.glob("adapter*"))
    tokenizer, model = (kind.from_pretrained(str(copied)) for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@every
def test_copies_after_an_interruption(
    stage: Any, tiny: Any, run: Any, tmp_path: Path, digests: Any, log_of: Any, cut_short: Any
) -> None:
    options = fields(tiny, steps=5, keep_every=2)
    run(stage, options, tmp_path / "whole", **players(tiny))
    parts = tmp_path / "parts"
    cut_short(4, lambda: run(stage, options, parts, **players(tiny)))  # the checkpoint is of step 3
    # As a kill leaves them: a copy half-written, and one whose step has to be taken again.
    shutil.copytree(parts / "steps" / "2", parts / "steps" / "4.partial")
    (parts / "steps" / "4.partial" / "model.safetensors").write_bytes(b"half")
    shutil.copytree(parts / "steps" / "2", parts / "steps" / "4")
    run(stage, options, parts, **players(tiny))
    assert sorted(path.name for path in (parts / "steps").iterdir()) == ["2", "4"]
    assert digests(parts) == digests(tmp_path / "whole")
    assert log_of(parts) == log_of(tmp_path / "whole")


@every
def test_the_log_has_what_curves_need(stage: Any, tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    judge = {"function": f"{tiny.functions}:count_e"}
    run(stage, fields(tiny, steps=2, judge=judge), tmp_path / "one", **players(tiny))
    for line in log_of(tmp_path / "one"):
        names = {"step", "kl", "kl_k3", "score", "score_se", "gold", "gold_se", "length"}
        assert names <= line.keys()
        assert min(line["score_se"], line["gold_se"]) > 0.0
