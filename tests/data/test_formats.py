import json

import pytest

from gptlife.data.errors import UserError
from gptlife.data.formats import FORMATS, detect
from gptlife.data.forms import (
    CONVERT,
    rankings,
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
