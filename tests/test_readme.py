"""What README.md and docs/ say is so: commands, YAML and Python are run or decoded; links and named files exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import parse_yaml
from gptlife.pipelines.cli.app import app
from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.recipe import load
from gptlife.reward.judges.functions import checked, load_function
from gptlife.reward.judges.verdicts import scores_of
from gptlife.stages.runtime.stage import RESERVED, Stage

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
LINKED = [*PAGES, ROOT / "CHANGELOG.md", EXAMPLES / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
STAGES = {step.name: step.stage for step in LIFECYCLE}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in _FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def yaml_files() -> dict[str, str]:
    """Every YAML block by the file name that its first line gives."""
    found = {}
    for page in PAGES:
        for text in blocks(page, "yaml"):
            name = re.match(r"# (\S+\.yaml)", text)
            assert name, f"{page.name}: a YAML block must begin with `# name.yaml`:\n{text}"
            found[name[1]] = text
    return found


def commands() -> list[list[str]]:
    """Every command of the shell blocks of README and guide as words, comments dropped."""
    pages = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("data", "experiments", "scale"))]
    lines = [line for page in pages for text in blocks(page, "sh") for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names, as small as can be; the current one."""
    files = {
        "data/a.txt": "Once upon a time.",
        "data/held_out.jsonl": '{"text": "The end."}',
        "data/chat.jsonl": '{"prompt": "Who?", "completion": "Ulf."}',
        "data/tickets.csv": "question,reply\nWhere?,By the barn.",
        "data/preferences.jsonl": '{"prompt": "Who?", "chosen": "Ulf.", "rejected": "No."}',
        "data/prompts.jsonl": '{"prompt": "Who?"}',
        "data/unseen.jsonl": '{"prompt": "When?"}',
        "data/demonstrations.jsonl": '{"prompt": "Who?", "completion": "Ulf."}',
        "judge.py": "def score(prompts, answers):\n    return [0.0 for _ in answers]",
        **yaml_files(),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(words: list[str]) -> Result:
    return CliRunner().invoke(app, words)


def planned_instead(words: list[str]) -> list[str]:
    """`run ...` as the `plan ...` of the same recipe and overrides."""
    kept, rest = ["plan"], iter(words[1:])
    for word in rest:
        if word in ("--until", "--fresh"):
            assert next(rest) in STAGES
        elif word == "--jobs":
            assert int(next(rest)) > 1
        else:
            kept.append(word)
    return kept


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command(words: list[str], workspace: Path) -> None:
    """A command of a kind that this test doesn't know fails: say here how it is to be checked."""
    environment = [word for word in words if re.match(r"[A-Z_]+=", word)]
    program, *arguments = words[len(environment) :]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program == "gptlife" and arguments[0] == "run":
        result = invoke(planned_instead(arguments))
        assert result.exit_code == 0, result.exception
        assert "to do" in result.output
    elif program == "gptlife" and arguments[0] == "sweep":
        from gptlife.pipelines.lifecycle import LIFECYCLE
        from gptlife.pipelines.store import Store
        from gptlife.pipelines.sweep import grid as sweep

        single = [word for word in arguments[2:] if "=" in word]
        until = arguments[arguments.index("--until") + 1] if "--until" in arguments else None
        assert sweep.plan(arguments[1], single, Store(Path("store")), LIFECYCLE, until).combinations
    elif program == "gptlife" and arguments[0] in ("plan", "recipes", "data"):
        result = invoke(arguments)
        assert result.exit_code == 0, result.exception
    elif program == "gptlife":
        # Needs a trained model: parsed, then refused for the one reason that nothing has been run here.
        result = invoke(arguments)
        assert isinstance(result.exception, UserError)
        about = "quickstart" if arguments[1:] else f"{workspace}/store"
        assert str(result.exception).startswith(f"{about}:")
        assert "start with: gptlife run" in str(result.exception)
    else:
        assert program in ("accelerate", "python")
        check_stage_command(arguments)


def check_stage_command(arguments: list[str]) -> None:
    """A stage started by hand: its file or module is a stage's, and config and overrides decode."""
    at = arguments.index("--config")
    name = arguments[at - 1]
    stage = STAGES[name.removeprefix("stages/").removesuffix(".py").removeprefix("gptlife.stages.")]
    assert name == f"gptlife.stages.{stage.name}" or (ROOT / name).is_file()
    raw = parse_yaml(Path(arguments[at + 1]).read_text(encoding="utf-8"), arguments[at + 1])
    for override in arguments[at + 2 :]:
        key, _, value = override.partition("=")
        raw[key] = parse_yaml(value, override)
    decode_stage(stage, raw)


def decode_stage(stage: Stage, raw: dict[str, Any]) -> None:
    decode(stage.config, {key: value for key, value in raw.items() if key not in RESERVED}, stage.name)
    assert set(stage.inputs) <= set(raw["inputs"]) <= {*stage.inputs, *stage.optional}
    assert isinstance(raw["output"], str)


def test_an_unknown_field_in_a_block_would_be_found() -> None:
    raw = parse_yaml(yaml_files()["sft.yaml"], "sft.yaml")
    decode_stage(STAGES["sft"], raw)
    with pytest.raises(UserError, match=r"^sft\.epoch: no such field; did you mean 'epochs'\?$"):
        decode_stage(STAGES["sft"], {**raw, "epoch": 1})


@pytest.mark.parametrize("name", yaml_files())
def test_every_yaml_block(name: str, workspace: Path) -> None:
    """A block named as a stage is that stage's file; any other is a recipe, which is planned."""
    if name.removesuffix(".yaml") in STAGES:
        decode_stage(STAGES[name.removesuffix(".yaml")], parse_yaml(yaml_files()[name], name))
        return
    recipe = load(f"./{name}", [], LIFECYCLE)
    result = invoke(["plan", f"./{name}"])
    assert result.exit_code == 0, result.exception
    assert all(table.step.name in result.output for table in recipe.tables)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


def test_the_loading_example_runs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a tiny untrained model, saved as the stages save."""
    from gptlife.data.tokens import train_tokenizer
    from gptlife.stages.modeling import loading
    from gptlife.stages.modeling.presets import Architecture

    (example,) = blocks(ROOT / "README.md", "python")
    (directory,) = re.findall(r'"(store/\S+)"', example)
    tokenizer = train_tokenizer(["Who is Ulf's best friend?"], 300, 64)
    fields: dict[str, int | float | str | bool] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
    settings = Architecture(fields=fields).build(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)

    from transformers import AutoModelForCausalLM

    loading.save(AutoModelForCausalLM.from_config(settings), tokenizer, workspace / directory)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_exists(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_named_exists(page: Path) -> None:
    """`stages/training/loop.py: fit, adamw` in a page means that this file defines these names."""
    for file, names in re.findall(
        r"`((?:data|reward|stages|pipelines|tests|tools|examples|benchmarks)/[\w/]+\.py)(?:: ([^`]+))?`",
        page.read_text(),
    ):
        source = ROOT / file
        assert source.is_file(), f"{page.name}: {file}"
        for name in re.split(r",\s*", names) if names else []:
            last = name.split(".")[-1]
            assert re.search(rf"\b(?:def|class) {last}\b", source.read_text()), f"{page.name}: {file}: {name}"


def test_counts_are_those_of_the_results() -> None:
    files = len(parse_yaml((ROOT / "tests" / "bad_inputs" / "expected.yaml").read_text(encoding="utf-8"), "expected"))
    kills = re.search(r"^\| all \|.*?(\d+) \| (\d+) \| (\d+) \| \|$", read("docs/results/kills.md"), re.MULTILINE)
    assert kills
    assert kills[3] == "0"  # none differs
    for page in ("README.md", "docs/data.md", "docs/architecture.md", "docs/comparison.md"):
        assert {*re.findall(r"\[(\d+) such files", read(page))} <= {str(files)}
        assert {*re.findall(r"\[(\d+) kills\]", read(page))} <= {kills[1]}
    assert f"[{files} such files]" in read("README.md")
    assert f"[{kills[1]} kills]" in read("README.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_example_reward() -> None:
    """By hand: 40 words are best, none are worst, 20 or 60 lie half way, 200 are no worse than none."""
    name = f"{EXAMPLES / 'reward_length.py'}:score"
    score = checked(load_function(name, "ppo.reward_function"), name)
    answers = [" ".join(["word"] * count) for count in (40, 0, 20, 60, 200, 30)]
    prompts = [{"messages": [{"role": "user", "content": "Speak."}]} for _ in answers]
    assert scores_of(score(prompts, answers)) == [1.0, -1.0, 0.0, 0.0, -1.0, 0.5]


def test_the_configuration_page_is_the_configs() -> None:
    script = ROOT / "tools" / "configuration.py"
    spec = importlib.util.spec_from_file_location("configuration_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == module.page(), "run: python tools/configuration.py"
    # And it is no empty equality: hand-picked lines.
    assert "| `kl_coef` | number ≥ 0 | `0.02` | β: what a nat of KL to the reference costs" in committed
    assert "| `micro_batch_tokens`° | integer > 0 | `4096` |" in committed
    for step in LIFECYCLE:
        for field in step.stage.config.model_fields:
            assert f"| `{field}`" in committed


def test_scale_names_only_fields_outside_the_address() -> None:
    """What docs/scale.md lists as free to change is marked so in the committed reference."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    table = text.partition("## Fields")[2].partition("##")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(listed) >= 5
    reference = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name in listed:
        assert f"| `{name}`° |" in reference, name
        assert f"| `{name}` |" not in reference, name
