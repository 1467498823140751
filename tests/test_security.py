"""What comes from elsewhere can't run code, can't write outside its folder, and is never trusted silently.

Also tested where it is used: keys in reward/judges/test_chat_client.py, what a page escapes in
pipelines/report/test_page.py, pipelines/test_sweep_table.py and test_label_browser.py, who may talk to the labelers'
page in pipelines/test_label.py.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.data.tokens import encode_conversation, encode_prompt
from gptlife.data.yaml_tables import read_yaml
from gptlife.pipelines import recipe
from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.stages.modeling import loading
from gptlife.stages.runtime import trust

ROOT = Path(__file__).parents[1]
FILES = [path for room in ("data", "reward", "stages", "pipelines") for path in sorted((ROOT / room).rglob("*.py"))]
RUN_WHAT_THEY_LOAD = {"pickle", "dill", "joblib", "marshal", "shelve"}


def dangerous(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that run what a file says: pickles, YAML tags, shells, expressions, code beside a model."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (
                name for name in names if name.split(".")[0] in {"pickle", "dill", "joblib", "marshal", "shelve"}
            )
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in {"eval", "exec", "torch.load", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}:
            yield called
        if called == "yaml.load" and "_UniqueKeyLoader" not in ast.unparse(node):
            yield called
        if given.get("shell") == "True" or given.get("weights_only") == "False":
            yield f"{called} with {given}"
        if called.endswith(".from_pretrained") and given.get("trust_remote_code") not in {"False", "trust.trusted()"}:
            yield f"{called} that asks whether to run code"
        if called.endswith(("from_pretrained", "snapshot_download")) and given.get("trust_remote_code") == "True":
            yield f"{called} that runs code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_run_what_it_reads(path: Path) -> None:
    assert list(dangerous(ast.parse(path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "torch.load(path)", "eval(text)", "yaml.load(text, Loader)",
     "yaml.unsafe_load(text)", "run(words, shell=True)", "load(path, weights_only=False)",
     "AutoModel.from_pretrained(path)", "AutoModel.from_pretrained(path, trust_remote_code=True)"],
)  # fmt: skip
def test_and_the_search_finds_what_could(line: str) -> None:
    assert list(dangerous(ast.parse(line)))


def test_the_yaml_loader_makes_no_objects(tmp_path: Path) -> None:
    path, flag = tmp_path / "x.yaml", tmp_path / "flag"
    path.write_text(f"a: !!python/object/apply:os.mkdir ['{flag}']\n", encoding="utf-8")
    with pytest.raises(UserError):
        read_yaml(path)
    assert not flag.exists()


@pytest.fixture
def saved(tmp_path: Path, tiny: Any) -> Path:
    """A copy of a model's directory."""
    return Path(shutil.copytree(tiny.sft, tmp_path / "model"))


def with_own_code(folder: Path, flag: Path) -> None:
    """Make a directory's model one of a family of its own, whose Python file leaves `flag` when it is run."""
    (folder / "own.py").write_text(
        f"open({str(flag)!r}, 'w').close()\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own'\n"
        "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_code_beside_a_model_runs_only_where_the_recipe_says_so(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "flag"
    with_own_code(saved, flag)
    monkeypatch.setattr("builtins.input", lambda text: "y")  # nobody is asked
    with pytest.raises(UserError, match=r"its code is not run; .* trust_remote_code: true"):
        loading.load_causal(saved)
    assert not flag.exists()
    with trust.trusting(True):
        assert type(loading.load_causal(saved)).__name__ == "OwnModel"
    assert flag.exists()
    assert not trust.trusted()


def test_the_recipe_says_it_for_every_step_and_no_address_changes(tmp_path: Path) -> None:
    for name, line in (("plain", ""), ("trusting", "trust_remote_code: true\n")):
        (tmp_path / f"{name}.yaml").write_text(f"{line}extends: smoke\n", encoding="utf-8")
    plain, trusting = (
        [table.config for table in recipe.load(str(tmp_path / f"{name}.yaml"), [], LIFECYCLE).tables if table.config]
        for name in ("plain", "trusting")
    )
    assert {config.trust_remote_code for config in plain} == {False}
    assert {config.trust_remote_code for config in trusting} == {True}
    assert [config.identity(str) for config in plain] == [config.identity(str) for config in trusting]
    (tmp_path / "odd.yaml").write_text("extends: smoke\ntrust_remote_code: perhaps\n", encoding="utf-8")
    with pytest.raises(UserError, match="trust_remote_code"):
        recipe.load(str(tmp_path / "odd.yaml"), [], LIFECYCLE)


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


def test_a_pickle_of_weights_is_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Trap(tmp_path / "flag")}, saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"its weights are a pickle, which can run any code; save it with safetensors"):
        loading.load_causal(saved)
    # Nor is a harmless one read: it is the file that isn't looked at, and not only its content.
    torch.save(AutoModelForCausalLM.from_config(loading.load_config(saved)).state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights are a pickle"):
        loading.load_causal(saved)
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["pytorch_model.bin"], True), (["a.pt", "model.safetensors"], False), (["tokenizer.json"], False), ([], False)],
)
def test_what_has_weights_in_pickles_only(names: list[str], expected: bool) -> None:
    assert trust.only_pickled(names) is expected


def test_a_chat_template_cannot_run_code(saved: Path, tmp_path: Path) -> None:
    """A template is a program that comes with a tokenizer: it runs in a sandbox, wherever a chat is rendered."""
    flag = tmp_path / "flag"
    escape = f"{{% generation %}}{{{{ cycler.__init__.__globals__.os.mkdir({str(flag)!r}) }}}}{{% endgeneration %}}"
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.chat_template = escape
    question, answer = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ulf."}
    with pytest.raises(UserError, match="template"):
        encode_prompt(tokenizer, [question])
    with pytest.raises(UserError, match="template"):
        encode_conversation(tokenizer, [question, answer])
    assert not flag.exists()
    # Without a sandbox the same template makes the folder: it is the sandbox that stops it.
    jinja2.Environment().from_string(re.sub(r"{% \w+ %}", "", escape)).render()
    assert flag.exists()


def test_servers_listen_on_this_machine_only() -> None:
    from gptlife.pipelines.cli.talk import label
    from gptlife.pipelines.labeling.server import LabelServer

    for function in (label, LabelServer.__init__):
        assert inspect.signature(function).parameters["host"].default == "127.0.0.1"
    serving = [path for path in FILES if "HTTPServer" in path.read_text("utf-8")]
    assert [str(path.relative_to(ROOT)) for path in serving] == ["pipelines/labeling/server.py"]
