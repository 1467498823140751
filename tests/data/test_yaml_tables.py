import math

import pytest

from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import apply_overrides, copied, parse_yaml, put, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E3", -2000.0),
        ("1_000", 1000),
        ("1_0e2", 1000.0),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("7", 7),
        ("true", True),
        ("null", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"),
        ("e-4", "e-4"),
        ("v1.2.3", "v1.2.3"),
        ("{a: [1, 2e0], b: {c: x}}", {"a": [1, 2.0], "b": {"c": "x"}}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ],
)
def test_values_are_what_they_look_like(text, value):
    read = parse_yaml(text, "x")
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "x:3: 'a' is given twice; fix the YAML there"),
        ("a: {b: 1, b: 2}", "x:1: 'b' is given twice; fix the YAML there"),
        ("? {a: 1}\n: 2", "x:1: dict can't be a name; fix the YAML there"),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", "x:2: '<<' can't be used to merge tables; fix the YAML there"),
        ("a: [1, 2", "x:1: expected ',' or ']', but got '<stream end>'; fix the YAML there"),
        ("a: b: c", "x:1: mapping values are not allowed here; fix the YAML there"),
        ("!!python/object:os.system {}", "x:1: could not determine a constructor for the tag "),
        ("\x00", "x: not valid YAML (unacceptable character #x0000: special characters are not allowed); fix it"),
        ("&a [*a]", "x: nested too deeply, or an alias contains itself; simplify it"),
        ("[" * 3000, "x: nested too deeply, or an alias contains itself; simplify it"),
        ("2020-13-45", "x: a value can't be read (month must be in 1..12); put it in quotes"),
    ],
)
def test_what_is_not_strict_yaml_is_refused_in_one_line(text, line):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_aliases_may_repeat_a_value_but_not_a_million_times():
    many = "a: &a [1, 2, 3]\n" + "".join(f"k{i}: *a\n" for i in range(100))
    assert len(parse_yaml(many, "x")) == 101
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcde", "bcdef", strict=True)
    )
    with pytest.raises(UserError, match=r"^x: more than 1,000,000 values with its aliases expanded; "):
        parse_yaml(bomb, "x")


def test_a_table_is_read_from_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("a: käse\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"a": "käse"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file; give the path of a YAML file"),
        (b"", "expected a table of fields, found nothing"),
        (b"[1, 2]", r"expected a table of fields, found \[1, 2\]"),
        (b"a: \xe4", "can't be read as text"),
    ],
)
def test_a_file_without_a_table_is_refused(tmp_path, content, complaint):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.yaml: {complaint}"):
        read_yaml(path)
    with pytest.raises(UserError, match="can't be read as text"):
        read_yaml(tmp_path)


def test_overrides_set_fields_in_a_copy():
    raw = {"sft": {"lr": 1.0, "data": {"path": "a"}}, "seed": 3}
    changed = apply_overrides(raw, ["sft.lr=1e-4", "sft.data.path=b=c", "ppo.steps=[1, 2]", " seed =true"])
    assert changed == {"sft": {"lr": 1e-4, "data": {"path": "b=c"}}, "ppo": {"steps": [1, 2]}, "seed": True}
    assert raw == {"sft": {"lr": 1.0, "data": {"path": "a"}}, "seed": 3}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sft.lr", "sft.lr: expected field=value, as in sft.learning_rate=1e-4"),
        ("=3", "=3: expected field=value, as in sft.learning_rate=1e-4"),
        ("seed.a=3", "seed.a=3: 'seed' is not a table, so it has no field 'a'"),
        ("a=[1", "a=[1:1: expected ',' or ']'"),
    ],
)
def test_a_wrong_override_is_refused(override, line):
    with pytest.raises(UserError) as caught:
        apply_overrides({"seed": 3}, [override])
    assert str(caught.value).startswith(line)


def test_put_makes_the_tables_on_its_way():
    table = {"a": {"b": 1}}
    put(table, "a.c.d", 2, "x")
    put(table, "a.b", 3, "x")
    assert table == {"a": {"b": 3, "c": {"d": 2}}}


def test_a_copy_shares_no_table():
    inner = [1]
    table = {"a": {"b": inner}}
    copy = copied(table)
    copy["a"]["b2"] = 2
    assert table == {"a": {"b": [1]}}
    assert copy["a"]["b"] is inner
