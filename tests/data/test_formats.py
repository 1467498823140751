import gzip
import json
import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.data.formats import (
    CONVERT,
    FORMATS,
    KNOWN_FIELDS,
    choices,
    conversations,
    detect,
    labelled,
    prompts,
    rankings,
    texts,
    to_choices,
    to_conversation,
    to_label,
    to_prompt,
    to_ranking,
    to_text,
)
from gptlife.data.readers import Row
from gptlife.data.sources import Source


def row(**fields):
    return Row("x.jsonl:4", fields)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


# --- conversations --------------------------------------------------------------------------------------------------

Q, A = user("Why?"), assistant("Because.")
S = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "messages": {"messages": [Q, A]},
    "prompt_completion": {"prompt": "Why?\n", "completion": " Because."},
    "prompt_completion of messages": {"prompt": [Q], "completion": [A]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "Because."},
    "alpaca with response": {"instruction": "Why?", "response": "Because.", "output": None},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    "question_answer": {"question": "Why?", "answer": "Because."},
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_shape_of_a_conversation(name):
    fields = CONVERSATIONS[name]
    assert detect(fields).name == name.split(" ")[0]
    assert to_conversation(row(**fields)) == {"messages": [Q, A]}
    assert to_prompt(row(**fields)) == {"messages": [Q]}


def test_alpaca_input_goes_below_the_instruction():
    fields = {"instruction": "Sum up.", "input": "A text.", "output": "Text."}
    assert to_prompt(row(**fields))["messages"] == [user("Sum up.\n\nA text.")]


def test_a_spelled_end_of_an_answer_is_no_content():
    assert to_conversation(row(prompt="Why?", completion=" Because.\n<|endoftext|>"))["messages"] == [Q, A]
    quoted = row(prompt="Why <|endoftext|>", completion="<|endoftext|> is a token.")
    assert to_conversation(quoted)["messages"] == [user("Why <|endoftext|>"), assistant("<|endoftext|> is a token.")]
    with pytest.raises(UserError, match="is empty"):
        to_conversation(row(prompt="Why?", completion="<|endoftext|>"))


def test_system_turns_in_or_beside_the_messages():
    system = {"role": "system", "content": "Be kind."}
    assert to_conversation(row(messages=[system, Q, A]))["messages"] == [system, Q, A]
    beside = {**CONVERSATIONS["sharegpt"], "system": "Be kind."}
    assert to_conversation(row(**beside))["messages"] == [system, Q, A]
    assert to_conversation(row(prompt="Why?", completion="Because.", system="Be kind."))["messages"] == [system, Q, A]
    typed = {"prompt": [Q], "completion": [A], "system": "Be kind."}
    assert to_conversation(row(**typed))["messages"] == [system, Q, A]


def test_meta_is_carried_through():
    meta = {"use_case": "chat", "facts": ["f1"]}
    assert to_conversation(row(messages=[Q, A], meta=meta, id=3)) == {"messages": [Q, A], "meta": meta}
    assert to_prompt(row(messages=[Q], meta=meta)) == {"messages": [Q], "meta": meta}
    assert to_text(row(text="t", meta=meta)) == {"text": "t", "meta": meta}
    pair = row(a="Why?", b="x", c="y", meta=meta)
    assert to_ranking(pair, {"prompt": "a", "chosen": "b", "rejected": "c"})["meta"] == meta


def test_documents_are_not_touched():
    assert to_text(row(text="  a\n\n")) == {"text": "  a\n\n"}


@pytest.mark.parametrize(
    ("convert", "fields", "complaint"),
    [
        (to_conversation, {"instruction": "a", "output": " "}, "answer ('output') is empty; fill it, remove the row"),
        (to_conversation, {"question": "", "answer": "b"}, "prompt ('question') is empty"),
        (to_conversation, {"messages": [Q, A, Q]}, "the last turn is the user's"),
        (to_conversation, {"messages": [A, Q, A]}, "roles out of order (the first turn is the assistant's)"),
        (to_conversation, {"messages": [S, A]}, "roles out of order (the first turn is the assistant's)"),
        (to_conversation, {"messages": [S, Q, Q, A]}, "roles out of order (turns 2 and 3: user twice)"),
        (to_prompt, {"messages": [Q, A, A, Q]}, "roles out of order (turns 2 and 3: assistant twice)"),
        (to_prompt, {"messages": [Q, S, Q]}, "turn 2 is the system's, not the first"),
        (to_conversation, {"messages": []}, "'messages' must be a list of messages, found []"),
        (to_conversation, {"messages": [{"role": "tool", "content": "x"}]}, "role 'tool', known are system, user"),
        (to_conversation, {"messages": [{"role": "user", "content": None}]}, "content None, which is not text"),
        (to_conversation, {"messages": ["hello"]}, "'messages' holds 'hello', which is not a message"),
        (to_conversation, {"prompt": 3, "completion": "b"}, "'prompt' must be text, found 3"),
        (to_conversation, {"prompt": "a"}, "a conversation is needed, this row is a prompt"),
        (to_conversation, {"text": "a"}, "a conversation is needed, this row is a text (format text)"),
        (to_conversation, {"a": 1, "b": 2}, "no known format (fields: a, b); name them in `fields`, e.g. fields: {"),
        (to_conversation, {}, "no known format (fields: none)"),
        (to_text, {"text": " \n"}, "'text' is empty"),
        (to_text, {"text": ["a"]}, "'text' must be text"),
        (to_text, {"messages": [Q, A]}, "a text is needed, this row is a conversation"),
        (to_text, {"text": "a", "meta": 3}, "'meta' must be an object {...}, found 3"),
        (to_prompt, {"messages": [{"role": "system", "content": "x"}]}, "ends in the system's turn"),
        (to_choices, {"query": "q", "choices": ["a"], "gold": 0}, "'choices' has 1 entries"),
        (to_choices, {"query": "q", "choices": ["a", "b"], "gold": 2}, "'gold' is 2, not one of 0 to 1"),
        (to_choices, {"query": "q", "choices": ["a", 1], "gold": 0}, "'choices' must be a list of texts"),
    ],
)
def test_faults_name_place_value_and_next_act(convert, fields, complaint):
    with pytest.raises(UserError) as caught:
        convert(row(**fields))
    message = str(caught.value)
    assert message.startswith("x.jsonl:4: ")
    assert complaint in message
    assert ";" in message
    assert "\n" not in message


# --- labels ---------------------------------------------------------------------------------------------------------

LABELLED = {"messages": [Q], "answer": "Because.", "label": True}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_with_a_boolean_label_is_labelled(name):
    for label in (True, False):
        fields = {**CONVERSATIONS[name], "label": label}
        assert detect(fields)[:2] == ("labelled", "label")
        assert to_label(row(**fields)) == {**LABELLED, "label": label}
        assert to_prompt(row(**fields)) == {"messages": [Q]}
        complaint = r"x\.jsonl:4: a conversation is needed, this row is a labelled answer \(format labelled\); give"
        with pytest.raises(UserError, match=complaint):
            to_conversation(row(**fields))
        # As the refusal says: with the fields named, the label is not read.
        fields_without = {field: field for field in CONVERSATIONS[name]}
        assert to_conversation(row(**fields), fields_without) == {"messages": [Q, A]}


@pytest.mark.parametrize("label", [0, 1])
def test_zero_and_one_are_labels_beside_prompt_and_completion_only(label):
    assert to_label(row(prompt="Why?", completion="Because.", label=label)) == {**LABELLED, "label": bool(label)}
    assert type(to_label(row(prompt="Why?", completion="Because.", label=label))["label"]) is bool
    assert to_conversation(row(messages=[Q, A], label=label)) == {"messages": [Q, A]}  # a class of another task, say
    assert to_text(row(text="t", label=label)) == {"text": "t"}
    with pytest.raises(UserError, match=r"'label' must be true or false .0 and 1 only beside prompt and completion.,"):
        to_label(row(messages=[Q, A], label=label))


def test_a_labelled_answer_may_follow_turns_and_carries_meta():
    form = to_label(row(messages=[S, Q, A, user("Why not?"), assistant("So.")], label=False, meta={"k": 1}))
    assert form == {"messages": [S, Q, A, user("Why not?")], "answer": "So.", "label": False, "meta": {"k": 1}}
    typed = row(prompt=[S, Q], completion=[A], label=True)
    assert to_label(typed) == {**LABELLED, "messages": [S, Q]}


def test_a_label_beside_something_else_changes_nothing():
    assert to_text(row(text="t", label=True)) == {"text": "t"}
    assert to_prompt(row(prompt="Why?", label=True)) == {"messages": [Q]}
    assert to_ranking(row(prompt="Why?", chosen="good", rejected="bad", label=True)) == PAIR
    assert to_conversation(row(prompt="Why?", completion="Because.", label="funny")) == {"messages": [Q, A]}
    assert to_conversation(row(prompt="Why?", completion="Because.", label=None)) == {"messages": [Q, A]}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prompt": "a", "completion": "b", "label": 2}, "'label' must be true or false (0 and 1 only beside"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "found 'yes'; fix or remove the row"),
        ({"prompt": "a", "completion": "b", "label": 1.0}, "found 1.0; fix or remove the row"),
        ({"prompt": "a", "completion": "b"}, "a labelled answer is needed, this row is a conversation"),
        ({"prompt": "a", "label": True}, "a labelled answer is needed, this row is a prompt (format prompt)"),
        ({"prompt": "a", "completion": " ", "label": True}, "answer ('completion') is empty; fill it"),
        ({"prompt": "a", "completion": [A, Q, A], "label": True}, "'completion' has 3 turns, a label is of one answer"),
        ({"prompt": [Q, A], "completion": "b", "label": True}, "roles out of order (turns 2 and 3: assistant twice)"),
        ({"messages": [Q], "label": True}, "the last turn is the user's, not the assistant's"),
        ({"messages": [A], "label": True}, "roles out of order (the first turn is the assistant's)"),
    ],
)
def test_faulty_labels_are_refused(fields, complaint):
    with pytest.raises(UserError) as caught:
        to_label(row(**fields))
    assert str(caught.value).startswith("x.jsonl:4: ")
    assert complaint in str(caught.value)


def test_labels_load_under_other_names_too(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "Why?", "a": "Because.", "good": 0}, {"q": "Why?", "a": "So.", "good": 1})
    data = [Source(path=path, fields={"prompt": "q", "completion": "a", "label": "good"})]
    assert labelled(data) == [{**LABELLED, "label": False}, {**LABELLED, "answer": "So."}]
    assert [type(form["label"]) for form in labelled(data)] == [bool, bool]


# --- the tuple of formats -------------------------------------------------------------------------------------------


def test_every_form_has_a_converter_and_an_example_that_leads_to_it():
    assert {format.form for format in FORMATS} == set(CONVERT)
    for form in CONVERT:
        (example,) = {format.example for format in FORMATS if format.form == form} - {""}
        names = [pair.split(": ")[0] for pair in example.strip("{}").split(", ")]
        values = {"choices": ["x", "y"], "gold": 0, "label": True}
        assert detect({name: values.get(name, "x") for name in names}).form == form
        with pytest.raises(UserError, match=r"no known format.*e\.g\. fields: \{") as caught:
            CONVERT[form](row(a=1), None)
        assert str(caught.value).endswith(example)


# --- rankings -------------------------------------------------------------------------------------------------------

PAIR = {"messages": [Q], "answers": ["good", "bad"], "ranks": [1, 2]}
GOOD, BAD = assistant("good"), assistant("bad")
PAIRS = {
    "plain": {"prompt": "Why?", "chosen": " good", "rejected": "bad\n"},
    "messages": {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]},
    "whole message lists": {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "whole message lists beside a prompt": {"prompt": "Why?", "chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "transcripts": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: good",
        "rejected": "\n\nHuman: Why?\n\nAssistant: bad",
    },
    "transcript prompt": {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " good", "rejected": " bad"},
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_shape_of_a_pair(name):
    assert detect(PAIRS[name]).name == "pair"
    assert to_ranking(row(**PAIRS[name])) == PAIR
    assert to_prompt(row(**PAIRS[name])) == {"messages": [Q]}


def test_transcripts_of_several_turns():
    start = "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d"
    fields = {"chosen": f"{start}\n\nAssistant: e\n\nAssistant: f", "rejected": f"{start}\n\nAssistant: g"}
    found = to_ranking(row(**fields))
    assert found["messages"] == [user("a\n\nb"), assistant("c"), user("d")]
    assert found["answers"] == ["e\n\nf", "g"]


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "'chosen' ends in the user's turn"),
        ("\n\nHuman: a\n\nAssistant: Human: b", "'chosen' ends in a Human turn"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman", "'chosen' ends in a Human turn"),
        ("\n\nHuman: a\n\nAssistant: ", "last answer of 'chosen' is empty"),
        ("\n\nHuman: other\n\nAssistant: b", "differ before the last answer"),
        ("\n\nHuman: \n\nAssistant: b", "'chosen' has an empty turn"),
        ("just an answer", "'chosen' has no prompt and is not a transcript"),
    ],
)
def test_faulty_transcripts_are_refused(chosen, complaint):
    with pytest.raises(UserError, match="x") as caught:
        to_ranking(row(chosen=chosen, rejected="\n\nHuman: a\n\nAssistant: z"))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("preference", "ranks"),
    [(1, [1, 2]), (1.0, [1, 2]), (2, [2, 1]), (2.0, [2, 1]), (0, [1, 1]), (0.0, [1, 1]), (1.5, [1, 1]), ("2", [2, 1])],
)
def test_alpaca_eval_preferences(preference, ranks):
    fields = {"instruction": "Why?", "output_1": "a", "output_2": " ", "preference": preference}
    assert to_ranking(row(**fields)) == {"messages": [Q], "answers": ["a", ""], "ranks": ranks}


@pytest.mark.parametrize("preference", [None, 3, True, [1], "x"])
def test_a_judge_that_failed_is_a_bad_row(preference):
    fields = {"instruction": "Why?", "output_1": "a", "output_2": "b", "preference": preference}
    with pytest.raises(UserError, match="not 1, 2 or a tie"):
        to_ranking(row(**fields))


def test_k_way_rankings_keep_answers_as_they_are():
    fields = {"prompt": "Why?", "completions": [" a", "", "c"], "ranking": [2, 1, 2], "labeler": "Ann", "group": "g"}
    expected = {"messages": [Q], "answers": [" a", "", "c"], "ranks": [2, 1, 2], "labeler": "Ann", "group": "g"}
    assert to_ranking(row(**fields)) == expected


def test_own_form_is_a_fixed_point():
    form = {"messages": [Q], "answers": ["a", "b"], "ranks": [1, 1], "labeler": "Ann", "meta": {"k": 1}}
    assert to_ranking(row(**form)) == form


def test_which_answers_ended_goes_with_them(tmp_path):
    fields = {"prompt": "Why?", "answers": ["a", "b", "c"], "ranks": [1, 2, 3], "finished": [True, False, True]}
    assert to_ranking(row(**fields))["finished"] == [True, False, True]
    found = rankings([Source(path=write(tmp_path / "a.jsonl", *[fields] * 20))])
    assert {ending for form in found for ending in zip(form["answers"], form["finished"], strict=True)} == {
        ("a", True),
        ("b", False),
        ("c", True),
    }
    for wrong in ([True], [1, 0, 1], True):
        with pytest.raises(UserError, match="'finished' must be a list of true or false for 3 answers"):
            to_ranking(row(**{**fields, "finished": wrong}))


def test_scores_become_competition_ranks():
    fields = {"messages": [Q], "answers": ["a", "b", "c", "d"], "scores": [0.5, 3, 0.5, -1]}
    assert to_ranking(row(**fields))["ranks"] == [2, 1, 2, 4]
    # A whole number may be beyond every float.
    assert to_ranking(row(**{**fields, "scores": [0.5, 10**400, float("inf"), -1]}))["ranks"] == [3, 2, 1, 4]


@pytest.mark.parametrize(
    ("answers", "ranks", "complaint"),
    [
        (["a", "b", "c", "d"], [1, 2, 3], "x.jsonl:4: 'ranking' has 3 entries for 4 answers"),
        (["a", "b"], [0, 1], "whole numbers from 1"),
        (["a", "b"], [1, 1.5], "whole numbers from 1"),
        (["a", "b"], [1, True], "whole numbers from 1"),
        (["a", "b"], "12", "whole numbers from 1"),
        (["a"], [1], "a ranking needs at least 2"),
        (["a", None], [1, 2], "'completions' must be a list of texts"),
    ],
)
def test_faulty_rankings_are_refused(answers, ranks, complaint):
    with pytest.raises(UserError, match=complaint.replace("(", r"\(")):
        to_ranking(row(prompt="Why?", completions=answers, ranking=ranks))


def test_nan_is_not_a_score():
    with pytest.raises(UserError, match="list of numbers"):
        to_ranking(row(prompt="Why?", completions=["a", "b"], scores=[1.0, float("nan")]))


def test_a_chosen_answer_must_say_something():
    with pytest.raises(UserError, match=r"answer \('chosen'\) is empty"):
        to_ranking(row(prompt="Why?", chosen=" ", rejected="b"))
    assert to_ranking(row(prompt="Why?", chosen="b", rejected=" "))["answers"] == ["b", ""]


def test_a_prompt_that_ends_in_an_answer_is_refused():
    with pytest.raises(UserError, match="ends in the assistant's turn"):
        to_ranking(row(messages=[Q, A], answers=["a", "b"], ranks=[1, 2]))


# --- the field map --------------------------------------------------------------------------------------------------


def test_a_field_map_renames_reaches_and_excludes():
    found = row(q={"text": "Why?"}, **{"a.b": "Because."}, text="not wanted")
    assert to_conversation(found, {"prompt": "q.text", "completion": "a.b"}) == {"messages": [Q, A]}


@pytest.mark.parametrize(
    ("field_map", "complaint"),
    [
        ({"promt": "q"}, "fields: 'promt' is not a field of any format; use one of: answer, "),
        ({"prompt": "missing"}, r"x.jsonl:4: no field 'missing' \(fields: q\); correct `fields`"),
        ({"prompt": "q.x"}, "no field 'q.x'"),
    ],
)
def test_a_wrong_field_map_is_refused(field_map, complaint):
    with pytest.raises(UserError, match=complaint):
        to_prompt(row(q="Why?"), field_map)


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
