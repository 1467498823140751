"""The whole page: of a life that stopped half way, of damaged files, and of text that must be escaped."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from gptlife.pipelines.planner import Planned
from gptlife.pipelines.recipe import Adopted
from gptlife.pipelines.report import page as report


def test_a_life_that_stopped_half_way(half, monkeypatch, reader):
    monkeypatch.undo()
    page = half.page()
    text = reader(page).text
    assert "SFT" not in reader(page).text.split("stage state")[0]  # the summary speaks of what is done
    assert "Pretrained to a validation loss of 1.234 nats per token; not aligned yet." in text
    assert "sft unfinished, at step 7 sft-0123456789ab" in text
    assert "ppo not started ppo-0123456789ab" in text
    assert (
        "Validation loss 1.234 nats per token, 0.876 bits per byte, after 3,000,000 tokens; 965,376 parameters." in text
    )
    assert "ln(vocabulary) = 6.93" in text  # ln 1024 = 10 ln 2
    assert 'id="pretraining-figure_1"' in page
    assert 'id="fine_tuning-figure_1"' in page  # drawn as far as it goes
    assert 'id="online-figure_1"' not in page
    for section in (
        "No win rates.",
        "No samples.",
        "No reward model curve.",
        "No PPO yet.",
        "Not measured.",
        "Not judged.",
    ):
        assert section in text
    assert "The step ppo is not started; gptlife run toy makes this." in text


def test_an_evaluation_that_only_itself_misses_is_told_with_its_command(life, undrawn, reader):
    said = "The tables of evaluation are missing: all that it reads is done"
    command = "gptlife run toy --until evaluation"
    for name in {step.name for step in life.steps["evaluation"].inputs.values()}:
        assert said not in reader(life.page()).text
        life.done(name, {"steps": 1})
    text = reader(life.page()).text
    assert said in text
    assert command in text
    life.done("evaluation", {"prompts": 500, "models": {}, "win_rates": [], "tax": {}, "samples": []})
    assert command not in reader(life.page()).text


def test_many_steps_are_folded(half, reader, branched):
    assert "of 14 steps are done; states and addresses" in reader(half.page(branched)).text
    assert "ppo 2 0.0 s 0 reward_model 2" not in reader(half.page()).text
    assert "steps are done" not in reader(half.page()).text
    assert "evaluation evaluation-0123456789ab from 9 others" in reader(half.page(branched)).text


def test_every_figure_of_branches_is_drawn_and_ids_are_one_each(half, monkeypatch, reader, branched):
    monkeypatch.undo()
    tags = reader(half.page(branched)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for figure in ("sizes_evaluation", "win_rates_sweeps", "runs", "learning_curve", "overoptimisation_by_reward"):
        assert f"{figure}-figure_1" in ids


def test_what_models_and_data_say_is_escaped(half, reader, evaluation):
    evil = '<script>alert("x")</script>'
    sample = {"prompt": evil, "answers": {"base": f"a{evil}", "sft": "bell\x07\x00\x9b", "ppo": "\ud800 half"}}
    half.done("evaluation", evaluation(samples=[sample], judge=evil, use_cases={evil: {"prompts": 1, "base": 1.0}}))
    page = half.page(name=f"toy{evil}")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "bell\ufffd\ufffd\ufffd" in page
    assert reader(page).text.count(evil) >= 5  # and reads as it was written


def test_the_page_needs_nothing_else(half, monkeypatch, reader, evaluation, online_log):
    monkeypatch.undo()
    half.done("evaluation", evaluation())
    half.done("ppo", {}, online_log(lambda i: 0.1 * i, lambda i: 0.2))
    tags = reader(half.page()).tags
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


def test_no_nan_on_the_page(half, monkeypatch, reader):
    monkeypatch.undo()
    log = [{"step": 1, "score": float("nan"), "kl": None}, {"step": 2, "score": float("inf"), "kl": True}]
    half.done("ppo", {"score": float("nan")}, log, seconds=float("nan"))
    half.done("reward_model", {"validation_accuracy": float("nan"), "calibration": {"ece": None}}, log)
    half.done("evaluation", {"win_rates": [], "models": {"ppo": {"score": {"mean": float("nan")}}}, "tax": {"ppo": {}}})
    text = reader(half.page()).text.lower()
    assert not re.search(r"\bnan\b|\binf\b|none of|undefined", text)
    assert "ppo – – –" in text


def test_every_stage_done_but_silent(life, reader):
    for name in life.names:
        life.done(name, {})
    text = reader(life.page()).text
    assert "No model of this life is finished yet." in text
    assert "Not measured." in text


def test_nothing_done_and_nothing_planned(life, reader):
    assert "tokenizer not started" in reader(life.page()).text
    only = reader(life.page(("tokenizer",))).text
    assert "The recipe has no step evaluation; give it a table evaluation: ." in only
    assert "No model of this life is finished yet." in reader(life.page(())).text


def test_adopted_models_have_no_curve(life, reader):
    own = life.root / "mine"
    own.mkdir()
    step = life.steps["pretrain"]
    life.steps["pretrain"] = Planned(
        **{**step.__dict__, "config": None, "adopted": Adopted(directory=own), "path": own}
    )
    text = reader(life.page()).text
    assert f"pretrain adopted from {own}" in text
    assert f"The model was adopted ({own}), so it has no training log here." in text


def test_a_damaged_file_is_named_and_the_rest_is_shown(half, reader):
    (half.steps["pretrain"].path / "metrics.json").write_text('{"validation_loss": 1.2')
    (half.steps["pretrain"].path / "stage.yaml").write_text("a: [")
    text = reader(half.page()).text
    assert "metrics.json:1: damaged" in text
    assert "stage.yaml is damaged" in text
    assert "sft unfinished, at step 7" in text


def test_a_page_is_there_whole_or_not_at_all(half, monkeypatch):
    before = half.page()

    def fail(*_: Any) -> str:
        raise RuntimeError("no summary")

    monkeypatch.setattr(report, "summary", fail)
    with pytest.raises(RuntimeError, match="no summary"):
        half.page()
    assert [path.name for path in (half.root / "reports").iterdir()] == ["page.html"]
    assert (half.root / "reports" / "page.html").read_text(encoding="utf-8") == before


def test_a_report_loads_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from gptlife.pipelines.report import page as report\n"
        "from gptlife.pipelines.report.sections import losses\n"
        f"report.write([], Path({str(tmp_path / 'page.html')!r}))\n"
        "losses.fine_tuning([{'step': 1, 'loss': 2.0}], {})\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
