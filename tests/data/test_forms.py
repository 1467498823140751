import gzip
import json
import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.data.formats import KNOWN_FIELDS
from gptlife.data.forms import CONVERT, choices, conversations, labelled, prompts, rankings, texts
from gptlife.data.readers import Row
from gptlife.data.sources import Source


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


Q, A = user("Why?"), assistant("Because.")
CONVERSATIONS = {
    "messages": {"messages": [Q, A]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "Because."},
}
LABELLED = {"messages": [Q], "answer": "Because.", "label": True}


# --- loaders --------------------------------------------------------------------------------------------------------


def test_bad_rows_stop_or_are_counted(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": ""}, {"text": "two"})
    with open(path, "a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"a\.jsonl:2: 'text' is empty"):
        list(texts([Source(path=path)]))
    with caplog.at_level(logging.WARNING):
        assert list(texts([Source(path=path, bad_rows="skip")])) == ["one", "two"]
    (record,) = caplog.records
    assert record.getMessage().startswith("2 bad rows skipped")
    assert "a.jsonl:2:" in record.getMessage()
    assert "a.jsonl:4:" in record.getMessage()


def test_nothing_left_is_an_error_with_its_reason(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": ""}, {"text": "x"})
    with pytest.raises(UserError, match=r"no rows left; 1 bad rows.*a\.jsonl:1: 'text' is empty"):
        list(texts([Source(path=path, bad_rows="skip", limit=1)]))
    with pytest.raises(UserError, match="no rows left; check `start`"):
        list(texts([Source(path=path, start=5)]))


def test_texts_are_lazy(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": ""})
    assert next(texts([Source(path=path)])) == "one"


def test_sources_of_different_formats_mix(tmp_path):
    chat = write(tmp_path / "a.jsonl", CONVERSATIONS["messages"])
    alpaca = write(tmp_path / "b.jsonl", CONVERSATIONS["alpaca"])
    named = write(tmp_path / "c.jsonl", {"x": "Why?", "y": "Because."})
    data = [Source(path=[chat, alpaca]), Source(path=named, fields={"question": "x", "answer": "y"})]
    assert conversations(data) == [{"messages": [Q, A]}] * 3
    assert prompts(data) == [{"messages": [Q]}] * 3


def test_choices_load(tmp_path):
    item = {"task": "t", "query": "q", "choices": [" a", " b"], "gold": 1}
    assert choices([Source(path=write(tmp_path / "a.jsonl", {**item, "id": 1}))]) == [item]


def test_labels_load_under_other_names_too(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "Why?", "a": "Because.", "good": 0}, {"q": "Why?", "a": "So.", "good": 1})
    data = [Source(path=path, fields={"prompt": "q", "completion": "a", "label": "good"})]
    assert labelled(data) == [{**LABELLED, "label": False}, {**LABELLED, "answer": "So."}]
    assert [type(form["label"]) for form in labelled(data)] == [bool, bool]


def test_answers_are_shuffled_with_their_ranks(tmp_path):
    records = [{"prompt": str(i), "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    data = [Source(path=write(tmp_path / "a.jsonl", *records))]
    found = rankings(data, seed=1)
    for index, ranking in enumerate(found):
        assert dict(zip(ranking["answers"], ranking["ranks"], strict=True)) == {f"good {index}": 1, f"bad {index}": 2}
    first = Counter(ranking["ranks"][0] for ranking in found)
    assert 140 < first[1] < 260  # 200 +- 6 standard deviations
    assert found == rankings(data, seed=1)
    assert found != rankings(data, seed=2)
    copy = [Source(path=write(tmp_path / "another name.jsonl", *records))]
    assert rankings(copy, seed=1) == found  # paths never enter


MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "x", 1]), "content": st.text()}
)
VALUE = st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=5)
NAMES = sorted(KNOWN_FIELDS)


@given(st.dictionaries(st.sampled_from(NAMES), VALUE | st.lists(VALUE | MESSAGE, max_size=3) | MESSAGE, max_size=6))
def test_any_row_is_read_or_refused_by_name(fields):
    for convert in CONVERT.values():
        refusal = "x:1: "
        try:
            json.dumps(convert(Row("x:1", fields), None))
        except UserError as error:
            refusal = str(error)
        assert refusal.startswith("x:1: ")


# --- the shared data files ------------------------------------------------------------------------------------------


def raw_rows(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


def load(loader, path):
    return list(loader([Source(path=str(path), bad_rows="skip")]))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("alpaca_18k", "output"),
        ("t0_prompted", "completion"),
        ("gsm8k_train", "answer"),
        ("gpteacher_codegen", "response"),
    ],
)
def test_shared_instructions(shared_data, name, answer):
    path = shared_data / "instruct" / f"{name}.jsonl.gz"
    # T0's completions all spell out their end; the other files' answers never do.
    expected = [fields[answer].replace("<|endoftext|>", "").strip() for fields in raw_rows(path)]
    expected = [text for text in expected if text]
    assert [form["messages"][-1]["content"] for form in load(conversations, path)] == expected


def test_shared_sharegpt(shared_data):
    path = shared_data / "instruct/fastchat_dummy_conversation.jsonl.gz"
    found = load(conversations, path)
    assert len(found) == 500
    assert [len(form["messages"]) for form in found] == [len(fields["conversations"]) for fields in raw_rows(path)]


@pytest.mark.parametrize(("part", "usable"), [("train", 1404 - 25), ("test", 333 - 6)])
def test_shared_hh(shared_data, part, usable):
    path = shared_data / f"preference/hh_harmless_base_part_{part}.jsonl.gz"

    def parts(text):  # by string search, not by turns: the answer begins after the last question's end
        question = text.rindex("\n\nHuman:")
        answer = text.find("\n\nAssistant:", question)
        return (text[:answer], text[answer + len("\n\nAssistant:") :]) if answer > 0 else (text, "")

    def is_good(fields):
        (chosen_head, chosen), (rejected_head, rejected) = parts(fields["chosen"]), parts(fields["rejected"])
        leaked = any("Human:" in tail or tail.endswith("Human") for tail in (chosen, rejected))
        return chosen_head == rejected_head and bool(chosen.strip()) and bool(rejected.strip()) and not leaked

    good = [fields for fields in raw_rows(path) if is_good(fields)]
    found = load(rankings, path)
    assert len(found) == len(good) == usable
    for form, fields in zip(found, good, strict=True):
        assert fields["chosen"].endswith(form["answers"][form["ranks"].index(1)].rsplit("\n\n", 1)[-1])


def test_shared_alpaca_eval(shared_data):
    path = shared_data / "preference/alpaca_eval_gpt4_train.jsonl.gz"
    raw = Counter(fields["preference"] for fields in raw_rows(path))
    found = load(rankings, path)
    assert len(found) == sum(raw.values()) - raw[None] == 32_283
    assert sum(form["ranks"] == [1, 1] for form in found) == raw[0] + raw[1.5]
    first_wins = sum(form["ranks"] == [1, 2] for form in found) / sum(form["ranks"] != [1, 1] for form in found)
    assert abs(first_wins - 0.5) < 0.02
    published = raw[1] / (raw[1] + raw[2])
    assert abs(published - 0.5) > 0.2  # the twin: as published, the position gives the winner away


def test_shared_llama_factory(shared_data):
    path = shared_data / "preference/llama_factory_dpo_en_demo.jsonl.gz"
    raw = raw_rows(path)
    found = load(rankings, path)
    assert [len(form["messages"]) for form in found] == [len(fields["conversations"]) for fields in raw]
    for form, fields in zip(found, raw, strict=True):
        assert form["answers"][form["ranks"].index(1)] == fields["chosen"]["value"].strip()


def test_shared_texts(shared_data):
    for path in [shared_data / "pretrain/small_train.jsonl.gz", shared_data / "code/python_stdlib_train.jsonl.gz"]:
        expected = [fields["text"] for fields in raw_rows(path)]
        assert load(texts, path) == expected
    (shakespeare,) = load(texts, shared_data / "pretrain/tinyshakespeare.txt")
    assert shakespeare.count("\n") == 40_000


@pytest.mark.slow
def test_shared_pretraining_files_all_load(shared_data):
    for path in sorted((shared_data / "pretrain").glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as file:
            expected = sum(1 for _ in file)
        assert sum(1 for _ in texts([Source(path=str(path))])) == expected


@pytest.mark.parametrize(("text", "label"), [("true", True), ("False", False), ("1", True), ("0", False)])
def test_labels_of_a_csv_file_are_what_they_spell(text, label, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(f"prompt,completion,label\nWho?,Ulf.,{text}\n", encoding="utf-8")
    (row,) = labelled([Source(path=str(path))])
    assert row == {"messages": [{"role": "user", "content": "Who?"}], "answer": "Ulf.", "label": label}
    path.write_text("prompt,completion,label\nWho?,Ulf.,yes\n", encoding="utf-8")
    with pytest.raises(UserError, match="'label' must be true or false"):
        labelled([Source(path=str(path))])
