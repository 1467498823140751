"""Planning, running and opening from Python: on the toy lifecycle, and on a tiny life's models."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptlife.data.errors import UserError
from gptlife.pipelines import api


def test_a_plan_has_the_command_lines_addresses(chain, folder, addresses):
    planned = api.plan("toy.yaml", {"sft.seed": 9, "tokenizer.learning_rate": 1e-07}, steps=chain)
    assert {step.name: step.address for step in planned} == addresses("sft.seed=9", "tokenizer.learning_rate=1e-07")
    assert planned["tokenizer"].config.learning_rate == 1e-07
    assert api.plan("toy.yaml", ["sft.seed=9"], steps=chain)["sft"].address == addresses("sft.seed=9")["sft"]
    assert (len(planned), planned.done) == (5, False)
    assert not list(folder.glob("store/*-*"))


def test_overrides_read_back_as_themselves(chain, folder):
    values = {"sft.act": "a: [b], 'c'", "sft.launcher": ["nice", "-n", "1"], "sft.data": [{"path": "corpus.txt"}]}
    planned = api.plan(folder / "toy.yaml", values, "elsewhere", steps=chain)
    assert planned["sft"].config.act == "a: [b], 'c'"
    assert planned["sft"].launcher == ("nice", "-n", "1")
    assert planned["sft"].path.parent == folder / "elsewhere"
    assert "sft" not in [step.name for step in api.plan("toy.yaml", {"reward_model": None, "sft": None,
                                                                   "comparisons": None}, steps=chain)]  # fmt: skip


def test_run_makes_outputs_that_can_be_opened(chain, report, folder):
    made = api.run("toy.yaml", {"seed": 4}, until="sft", report=folder / "page.html", steps=chain)
    assert [step.state for step in made] == ["done", "done", "done", "to do", "to do"]
    assert (folder / "page.html").is_file()
    output = made.output("sft")
    assert output.metrics["score"] == {"mean": 5.0, "low": 4.0, "high": 7.0}  # seed + 10 * 0.1
    assert output.manifest["address"] == made["sft"].address
    assert output.config["seed"] == 4
    assert "identity" not in output.config
    assert output.log == []
    for target in ("toy:sft", "toy", made["sft"].address, made["sft"].path):
        assert api.open_output(target, steps=chain).path == output.path
    with pytest.raises(UserError, match=r"^comparisons: not made yet; gptlife run toy --until comparisons"):
        made.output("comparisons")
    with pytest.raises(UserError, match=r"^toy: no step 'stf'; did you mean 'sft'\?"):
        made.output("stf")


def test_what_goes_wrong_is_a_user_error(chain, report, folder, monkeypatch):
    with pytest.raises(UserError, match=r"sft\.learning_rat: no such field"):
        api.plan("toy.yaml", {"sft.learning_rat": 1}, steps=chain)
    with pytest.raises(UserError, match=r"^overrides: expected a list or a mapping, found 'seed=1'"):
        api.plan("toy.yaml", "seed=1", steps=chain)
    with pytest.raises(UserError, match=r"^gone: not a directory"):
        api.open_output("gone", steps=chain)
    (folder / "act").write_text("crash", encoding="utf-8")
    with pytest.raises(UserError, match=r"^toy: a step failed \(its message is above\)"):
        api.run("toy.yaml", {"sft.act": "act"}, steps=chain)
    monkeypatch.setattr(api.runner, "run", lambda *_, **__: 128 + 15)
    with pytest.raises(KeyboardInterrupt):
        api.run("toy.yaml", steps=chain)


def test_two_steps_of_one_name_are_refused(chain, folder):
    for call in (api.plan, api.run):
        with pytest.raises(UserError, match=r"^steps: two are called 'sft'; leave one out, or give it another name$"):
            call("toy.yaml", steps=(*chain, chain[2]))
    assert not (folder / "store").exists()


def test_what_a_caller_gets_wrong_is_told(chain, folder):
    with pytest.raises(UserError, match=r"^overrides: expected a list or a mapping, found None; give one, as in \["):
        api.plan("toy.yaml", None, steps=chain)
    with pytest.raises(UserError, match=r"^toy: a step has a name, found 0; give one of: tokenizer, "):
        api.plan("toy.yaml", steps=chain)[0]
    with pytest.raises(UserError, match=r"^steps: Stage is not a step; give step\(STAGE, \.\.\.\) for each$"):
        api.plan("toy.yaml", steps=(*chain, chain[0].stage))
    for jobs in (0, "2", True):
        with pytest.raises(UserError, match=rf"^jobs: expected a whole number above 0, found {jobs!r}; give how many"):
            api.run("toy.yaml", steps=chain, jobs=jobs)
    without = [dataclasses.replace(step, inputs={}) if step.name == "sft" else step for step in chain]
    with pytest.raises(UserError, match=r"^toy.yaml: sft needs the input '\w+'; wire it, as in step\(STAGE, "):
        api.plan("toy.yaml", steps=without)


def test_errors_of_the_api_name_no_option_of_the_command_line(chain, folder):
    for arguments, message in (
        ({"until": "stf"}, "until stf: the recipe has no such step; did you mean 'sft'?"),
        ({"fresh": ["stf"]}, "fresh stf: no such step in this run; did you mean 'sft'?"),
        ({"store": "corpus.txt"}, f"{folder}/corpus.txt/runs/toy.json: can't be written (Not a directory); "
                                  "choose another store"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            api.run("toy.yaml", steps=chain, **arguments)
        assert str(error.value) == message


def test_an_old_outputs_config_has_todays_names(tmp_path):
    folder = tmp_path / "store" / "ppo-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"stage": "ppo", "files": {}}), encoding="utf-8")
    (folder / "stage.yaml").write_text("stage: ppo\noutput: x\ndiscount: 0.5\nstop_kl: 3.0\n", encoding="utf-8")
    assert api.open_output(folder.name, tmp_path / "store").config == {"gamma": 0.5, "target_kl": 3.0}


def test_models_and_tokenizers_are_transformers_own(tiny):
    policy, scorer = api.open_output(tiny.sft).model(), api.open_output(tiny.reward_model).model()
    assert type(policy).__name__ == "GPT2LMHeadModel"
    assert type(scorer).__name__ == "GPT2ForSequenceClassification"
    assert not policy.training
    assert api.open_output(tiny.sft).tokenizer().chat_template
    with pytest.raises(UserError, match=r"has no model \(no readable config\.json\)"):
        api.Output(tiny.comparisons, {}).model()


def test_planning_and_reading_import_no_torch(folder):
    code = "import sys\nfrom gptlife.pipelines import api\nlist(api.plan('smoke'))\n"
    code += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("store", [None, 3])
def test_a_store_that_is_no_path(store):
    with pytest.raises(UserError, match=r"^store: expected a directory's path"):
        api.plan("smoke", store=store)


def test_values_of_overrides():
    import numpy as np

    given = api._as_text({"a": Path("x") / "y", "b": np.int64(3), "c": [1, None, "ä"]})
    assert given == ['a="x/y"', "b=3", 'c=[1, null, "ä"]']
    with pytest.raises(UserError, match=r"^overrides: a: object can't be written into a recipe"):
        api._as_text({"a": object()})


def test_a_directory_that_is_no_output(tmp_path):
    with pytest.raises(UserError, match="not a finished output"):
        api.open_output(tmp_path, tmp_path)
