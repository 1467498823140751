"""A sweep's metrics by path, its table's numbers by hand, its plot's axes and its page, on made-up results."""

from __future__ import annotations

import csv
import itertools
import re
from html.parser import HTMLParser

import pytest

from gptlife.pipelines.sweep import figure as sweep_figure
from gptlife.pipelines.sweep import page as sweep_page
from gptlife.pipelines.sweep import table as sweep_table
from gptlife.pipelines.sweep.grid import Combination, Sweep
from gptlife.pipelines.sweep.table import Measured, Result

EVALUATION = {
    "prompts": 500,
    "judge": "somebody",
    "models": {"sft": {"score": {"mean": 0.5, "low": 0.4, "high": 0.6}}, "ppo": {"score": {"mean": 0.7}, "words": 12}},
    "win_rates": [
        {"a": "sft", "b": "base", "rate": 0.9, "low": 0.8, "high": 0.95, "n": 500},
        {"a": "ppo", "b": "base", "rate": 0.8, "low": 0.7, "high": 0.9, "n": 500},
        {"a": "ppo", "b": "sft", "rate": 0.6, "low": 0.5, "high": 0.7, "n": 500, "length_controlled": {"rate": 0.55}},
    ],
    "tax": {"ppo": {"validation_loss": 0.69, "few_shot": {"facts": 1.0}}},
    "broken": float("nan"),
    "edges": [0.5, 0.75],
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("evaluation.win_rates[ppo,sft].rate", Measured(0.6, 0.5, 0.7)),
        ("evaluation.win_rates[ppo, sft]", Measured(0.6, 0.5, 0.7)),
        ("evaluation.win_rates[ppo]", Measured(0.8, 0.7, 0.9)),  # the first of ppo's
        ("evaluation.win_rates[0].n", Measured(500)),  # a count has no interval
        ("evaluation.win_rates[ppo,sft].length_controlled", Measured(0.55)),
        ("evaluation.models.sft.score", Measured(0.5, 0.4, 0.6)),
        ("evaluation.models.sft.score.high", Measured(0.6)),
        ("evaluation.edges[1]", Measured(0.75)),
        ("evaluation.edges[2]", None),
        ("evaluation.win_rates[sft,ppo]", None),
        ("evaluation.win_rates", None),
        ("evaluation.judge", None),
        ("evaluation.broken", None),
        ("evaluation.models", None),
        ("ppo.kl", None),
    ],
)
def test_a_path_leads_to_a_number_and_its_interval(path, found):
    assert sweep_table.measured({"evaluation": EVALUATION}, path) == found


@pytest.mark.parametrize("path", ["", ".a", "a..b", "a[", "a[]", "a.b]", "a.[b]c.", "[a]]"])
def test_what_is_no_path(path):
    assert sweep_table.parts_of(path) is None


def test_every_path_that_is_offered_leads_to_a_number():
    offered = list(sweep_table.paths({"evaluation": EVALUATION}))
    assert "evaluation.win_rates[ppo,sft]" in offered
    assert "evaluation.models.ppo.score" in offered
    assert all(sweep_table.measured({"evaluation": EVALUATION}, path) for path in offered)


def test_the_usual_metrics_are_those_that_are_there():
    inputs = {"base": "base", "sft": "chat", "ppo": "online"}
    assert sweep_table.usual("evaluation", EVALUATION, inputs) == [
        "win_rates[ppo,sft]",
        "models.sft.score",
        "models.ppo.score",
        "tax.ppo.validation_loss",
    ]
    assert sweep_table.usual("online", {"score": 1, "kl": 2.0, "entropy": 3}) == ["score", "kl"]
    assert sweep_table.usual("reward", {"validation_accuracy": 0.7, "loss": 1}) == ["validation_accuracy"]
    assert sweep_table.usual("a stage of tomorrow", {"validation_loss": 0.7}) == ["validation_loss"]
    assert sweep_table.usual("evaluation", {}) == []


def test_an_evaluations_usual_metrics_go_by_what_made_its_models():
    found = {"models": {name: {"score": {"mean": 0.5}} for name in ("mine", "mine_prompted", "demo", "new", "old")}}
    found |= {"win_rates": [{"a": "old", "b": "demo", "rate": 0.6}], "tax": {"old": {"validation_loss": 1.0}}}
    inputs = {"mine": "base", "demo": "chat", "new": "answers", "old": "preference"}
    assert sweep_table.usual("evaluation", found, inputs) == [
        *("win_rates[old,demo]", "models.demo.score", "models.new.score", "models.old.score"),
        "tax.old.validation_loss",
    ]
    # Online goes before preference, wherever it comes.
    assert sweep_table.usual("evaluation", found, inputs | {"new": "online"})[0] == "models.demo.score"


def results(axes, values, metric="ppo.score"):
    """A result a point of the grid (last axis fastest); a value of None is a combination that failed."""
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    return [
        Result(
            point, "done" if value is not None else "ppo: gone", {metric: value if value is None else Measured(value)}
        )
        for point, value in zip(points, values, strict=True)
    ]


def made(axes, values, metric="ppo.score"):
    return sweep_table.table(results(axes, values, metric), list(axes), [metric])


SEEDS = {"ppo.kl_coef": ["0", "0.1"], "seed": ["0", "1", "2"]}


def test_seeds_are_brought_together():
    table = made(SEEDS, [1.0, 2.0, 6.0, 4.0, None, 5.0])
    assert (table.axes, table.seeds) == (("ppo.kl_coef",), ("seed",))
    first, second = (group.summary("ppo.score") for group in table.groups)
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14 over n - 1 = 2.
    assert (first.n, first.mean, first.least, first.greatest) == (3, 3.0, 1.0, 6.0)
    assert first.sd == pytest.approx(7**0.5)
    assert (second.n, second.mean, second.sd) == (2, 4.5, pytest.approx(0.5**0.5))
    assert sweep_table.lines(table) == [["0", "3", "3 [1, 6]"], ["0.1", "2 of 3", "4.500 [4, 5]"]]
    assert sweep_table.header(table) == ["ppo.kl_coef", "runs", "score"]
    rows = list(csv.DictReader(sweep_table.as_csv(table).splitlines()))
    assert (rows[1]["runs"], rows[1]["finished"], rows[1]["ppo.score n"]) == ("3", "2", "2")


def test_every_seed_axis_counts_and_without_one_an_interval_is_the_stages_own():
    table = made({"seed": ["0", "1"], "ppo.seed": ["0", "1"], "sft.seedy": ["a"]}, [1.0, 2.0, 3.0, 4.0])
    assert (table.axes, table.seeds) == (("sft.seedy",), ("seed", "ppo.seed"))
    assert sweep_table.lines(table) == [["a", "4", "2.500 [1, 4]"]]
    found = {"ppo.score": Measured(0.5, 0.4, 0.6), "sft.loss": Measured(-12345.6)}
    plain = sweep_table.table([Result({"a": "x|y"}, "done", found)], ["a"], list(found))
    assert sweep_table.header(plain) == ["a", "ppo.score", "sft.loss"]  # of two steps, so the names stay whole
    assert sweep_table.lines(plain) == [["x|y", "0.500 [0.400, 0.600]", "\N{MINUS SIGN}12,346"]]
    assert sweep_table.as_markdown(plain).splitlines()[2] == "| x\\|y | 0.500 [0.400, 0.600] | \N{MINUS SIGN}12,346 |"
    rows = list(csv.reader(sweep_table.as_csv(plain).splitlines()))
    assert rows[0][1:4] == ["ppo.score", "ppo.score low", "ppo.score high"]
    assert rows[1] == ["x|y", "0.5", "0.4", "0.6", "-12345.6", "", ""]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (12.3456, "12.346"),
        (3.0, "3"),
        (-0.00012345, "\N{MINUS SIGN}0.000123"),
        (1e-7, "1e\N{MINUS SIGN}07"),
        (12345.6, "12,346"),
        (-0.0, "0"),
        (-1.5e300, "\N{MINUS SIGN}1.5e+300"),
    ],
)
def test_numbers_are_written_as_in_the_report(value, text):
    assert sweep_table.short(value) == text


# The plot


def one_axis(*texts):
    return sweep_figure.scale(made({"a.b": list(texts)}, [1.0] * len(texts)))


def test_x_is_logarithmic_where_the_values_span_more_than_twentyfold():
    assert not one_axis("1", "20").logarithmic
    assert one_axis("1", "20.1").logarithmic
    assert not one_axis("-1", "0", "100").logarithmic
    x = one_axis("0.1", "100", "1e-3")
    assert x.places == pytest.approx({"0.1": -1.0, "100": 2.0, "1e-3": -3.0})
    assert x.zero is None


def test_a_zero_stands_left_of_all_that_is_positive():
    x = one_axis("1", "0", "0.01")
    assert x.zero == x.places["0"] < x.places["0.01"] - 0.3
    linear = one_axis("0", "0.02", "0.1")
    assert (linear.zero, linear.places["0"]) == (None, 0.0)


def test_what_is_no_number_stands_side_by_side():
    assert one_axis("null", "0.1").places == {"null": 0.0, "0.1": 1.0}
    assert not one_axis("true", "false").numeric
    both = made({"a": ["x", "y"], "b": ["1", "2"]}, [1.0, 2.0, 3.0, 4.0])
    assert sweep_figure.scale(both).name == "b"  # the first that is a number
    drawn = sweep_figure.lines(both, sweep_figure.scale(both))
    assert [(line.name, [at for at, _ in line.groups]) for line in drawn] == [("a=x", [1, 2]), ("a=y", [1, 2])]


def panel(table):
    figure = sweep_figure.draw(table)
    figure.canvas.draw()
    return figure.axes[0]


def test_the_zero_is_marked_and_the_line_is_the_mean():
    axes = panel(made({"b": ["1", "0", "0.01"], "seed": ["0", "1"]}, [5.0, 7.0, 1.0, 3.0, 2.0, 4.0]))
    ticks = dict(zip([text.get_text() for text in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert list(ticks) == ["0", "0.01", "1"]
    assert ticks["0"] < ticks["0.01"] < ticks["1"]
    solid = [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "-"]
    assert [3.0, 6.0] in solid  # the means at 0.01 and 1, joined
    dotted = [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert [2.0, 3.0] in dotted  # from the mean at 0 to the first positive one
    runs = [list(line.get_ydata()) for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert sorted(runs) == [[1.0, 3.0], [2.0, 4.0], [5.0, 7.0]]


def test_seeds_alone_stand_side_by_side_with_their_mean():
    axes = panel(made({"seed": ["3", "4"]}, [1.0, 2.0]))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "4"]
    assert [1.5, 1.5] in [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "--"]


def test_a_panel_a_metric_that_was_measured_and_none_without():
    found = {"ppo.score": Measured(1.0), "ppo.gold": None, "ppo.kl": Measured(2.0, 1.0, 3.0)}
    cells = [Result({"a": text}, "done", found) for text in ("1", "2")]
    figure = sweep_figure.draw(sweep_table.table(cells, ["a"], list(found)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["score", "kl"]
    assert sweep_figure.draw(made({"a": ["1", "2"]}, [None, None])) is None
    assert sweep_figure.png(figure).startswith(b"\x89PNG")
    assert sweep_figure.svg(figure) == sweep_figure.svg(figure)  # no dates, no random ids


# The page


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(tmp_path):
    axes = {"sft.data": ["<script>alert(1)</script>", "b"], "seed": ["0", "1"]}
    table = made(axes, [1.0, 2.0, 3.0, None])
    table.results[3].measured["ppo.score"] = None
    plan = [type("Step", (), {"name": "ppo", "address": "ppo-0123456789ab"})()]
    combinations = [Combination(dict(result.values), [], plan) for result in table.results]
    grid = Sweep("toy", "toy.yaml", ("seed=0,1",), None, axes, combinations)
    page = sweep_page.write(grid, table, tmp_path)
    text = page.read_text(encoding="utf-8")
    tags = Tags(text).tags
    assert {"svg", "table", "style"} <= {tag for tag, _ in tags}
    assert "script" not in {tag for tag, _ in tags}
    assert "--text: #1c2128" in text  # the report's look
    refers = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert not [value for value in refers if not value.startswith("#")]
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "1 of 2" in text
    assert text.count('class="alarm"') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"sweep.{kind}" for kind in ("csv", "html", "json", "md", "png", "svg")
    ]
