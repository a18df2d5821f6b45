"""The command split: no leak, stable, and nothing lost or changed."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepare.broken_rows import SCHEMA, broken_row, encoded, good_row, latin_1, noise, text_row

from verl_prism.prepare.command import main, run_command
from verl_prism.prepare.split.groups import SharedContent, drawn, grouped

PICTURES = {
    (name, form): {"bytes": encoded(noise(name, width=16, height=16), form)}
    for name in range(12)
    for form in ("PNG", "BMP")
}


def row(number: int, *pictures: tuple[int, str]) -> dict:
    """Return a row with these pictures; without any, with one of 12 questions."""
    question = f"{'<image>' * len(pictures)}Question {number if pictures else number % 12}"
    return text_row(number) | {
        "prompt": [{"role": "user", "content": question}],
        "images": [PICTURES[picture] for picture in pictures],
    }


@pytest.fixture
def split(tmp_path):
    """Return a function that divides rows, and returns the ids of each split."""

    def run(rows: pa.Table, *arguments: str, group: int = 100) -> dict[str, list[str]]:
        pq.write_table(rows, tmp_path / "all.parquet", row_group_size=group)
        settings = [f"source={tmp_path / 'all.parquet'}", f"output={tmp_path / 'out'}", "workers=0"]
        if not any(argument.startswith("splits=") for argument in arguments):
            settings.append("splits={train: 0.6, heldout: 0.4}")
        run_command("split", [*settings, *arguments])
        names = [file.stem for file in (tmp_path / "out").glob("*.parquet")]
        return {name: read(tmp_path, name)["id"].to_pylist() for name in names}

    return run


def read(tmp_path, name: str) -> pa.Table:
    return pq.read_table(tmp_path / "out" / f"{name}.parquet")


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def content(rows: list[list[int]]) -> SharedContent:
    shared = SharedContent()
    shared.add([len(each) for each in rows], [digest for each in rows for digest in each])
    return shared


def slow_groups(rows: list[list[int]]) -> list[set[int]]:
    """Join groups until no two share anything."""
    groups = [({number}, set(digests)) for number, digests in enumerate(rows)]
    joined = True
    while joined:
        joined = False
        for one in groups:
            other = next((each for each in groups if each is not one and each[1] & one[1]), None)
            if other is not None:
                groups.remove(other)
                one[0].update(other[0])
                one[1].update(other[1])
                joined = True
                break
    return [numbers for numbers, _ in groups]


DIGESTS = st.lists(st.integers(0, 20), min_size=1, max_size=3, unique=True)


@settings(deadline=None)
@given(st.lists(DIGESTS, min_size=1, max_size=15))
def test_groups_are_what_shared_digests_link(rows):
    groups = grouped(content(rows))
    found: dict[int, set[int]] = {}
    for number, group in enumerate(groups.of_rows.tolist()):
        found.setdefault(group, set()).add(number)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, slow_groups(rows)))
    for group, numbers in found.items():
        assert groups.names[group] == min(digest for number in numbers for digest in rows[number])


@settings(deadline=None)
@given(st.lists(DIGESTS, min_size=1, max_size=12), DIGESTS, st.randoms())
def test_a_row_keeps_its_split_unless_its_images_are_linked_to_others(rows, added, random):
    """`added` is a new row; the others come in another order too."""
    before = sides(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    after = sides([*(rows[number] for number in order), added])
    groups = grouped(content(rows))
    new = set(added)
    for place, number in enumerate(order):
        group = set(np.flatnonzero(groups.of_rows == groups.of_rows[number]).tolist())
        images = {digest for each in group for digest in rows[each]}
        linked = bool(images & new) and not new <= images
        assert linked or after[place] == before[number]


def sides(rows: list[list[int]]) -> list[int]:
    groups = grouped(content(rows))
    return drawn(groups.names, [0.5, 0.5], 7)[groups.of_rows].tolist()


def test_the_shares_are_kept_on_average():
    names = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    counts = np.bincount(drawn(names, [0.7, 0.2, 0.1], 0)) / len(names)
    assert counts == pytest.approx([0.7, 0.2, 0.1], abs=0.01)
    assert (drawn(names, [0.5, 0.5], 0) != drawn(names, [0.5, 0.5], 1)).any()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pictures=st.lists(
        st.lists(st.sampled_from(sorted(PICTURES)), max_size=2), min_size=30, max_size=40
    ),
    seed=st.integers(0, 50),
    group=st.integers(5, 50),
)
def test_nothing_leaks_is_lost_or_changed(split, tmp_path, pictures, seed, group):
    rows = table([row(number, *chosen) for number, chosen in enumerate(pictures)])
    try:
        found = split(rows, f"seed={seed}", group=group)
    except Exception as error:
        assert "no group of rows was drawn for it" in str(error)  # noqa: PT017
        return
    assert sorted(found["train"] + found["heldout"]) == sorted(rows["id"].to_pylist())
    content = {name: shared(rows, found[name]) for name in found}
    assert not content["train"] & content["heldout"]
    for name, ids in found.items():
        chosen = [index for index, each in enumerate(rows["id"].to_pylist()) if each in set(ids)]
        assert read(tmp_path, name).equals(rows.take(pa.array(chosen, pa.int64())))
    halves = "source={train: %s, heldout: %s}"
    files = [tmp_path / "out" / f"{name}.parquet" for name in ("train", "heldout")]
    report = run_command("check", [halves % tuple(files), "workers=0"])
    assert not [line for line in report.problems if "in another split" in line]


def shared(rows: pa.Table, ids: list[str]) -> set[object]:
    """Return the pictures of rows, and the questions of those without any."""
    names = {picture["bytes"]: name for (name, _), picture in PICTURES.items()}
    found: set[object] = set()
    for each in rows.to_pylist():
        if each["id"] in ids:
            images = {names[image["bytes"]] for image in each["images"]}
            found |= images or {each["prompt"][0]["content"]}
    return found


def test_the_same_rows_give_the_same_splits_in_any_order(split):
    rows = table([row(number, (number % 12, "PNG")) for number in range(40)])
    first = split(rows)
    again = split(rows.take(pa.array(range(39, -1, -1))), "workers=2")
    assert {name: sorted(ids) for name, ids in again.items()} == {
        name: sorted(ids) for name, ids in first.items()
    }


def test_rows_of_a_benchmark_are_left_out(split, tmp_path):
    rows = table([row(0, (0, "PNG")), row(1, (1, "PNG"), (0, "BMP")), row(2, (2, "BMP"))])
    rows = pa.concat_tables([rows, table([row(number) for number in range(12, 24)])])
    pq.write_table(table([row(9, (0, "PNG")), row(3)]), tmp_path / "benchmark.parquet")
    found = split(rows, f"exclude={tmp_path / 'benchmark.parquet'}")
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["row-0", "row-1", "row-15"]
    assert len(found["train"]) + len(found["heldout"]) == 12
    assert "row-2" in found["train"] + found["heldout"]


def test_the_report_counts_rows(tmp_path, capsys):
    rows = table([row(number, (number % 12, "PNG")) for number in range(40)])
    pq.write_table(rows, tmp_path / "all.parquet")
    splits = "splits={a: 0.5, b: 0.5}"
    arguments = [f"source={tmp_path / 'all.parquet'}", splits, f"output={tmp_path / 'out'}"]
    assert main(["split", *arguments, "workers=0"]) == 0
    shown = capsys.readouterr().out
    assert "40 rows read" in shown
    assert "from its share" in shown
    assert "groups: 12, the largest of 4 rows" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["splits={a: 0.5, b: 0.4}"], "splits: the shares add up to 0.9"),
        (["splits={a: 1, b: 0}"], "greater than 0"),
        (["splits={a/b: 1}"], "splits.a/b"),
        (["splits={all: 1}", "output=."], "all.parquet is a file of source; choose another"),
        (["splits={a: 0.999999, b: 0.000001}"], "splits.b=1e-06: no group of rows was drawn"),
    ],
)
def test_mistakes_in_the_settings(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    pq.write_table(table([good_row(0)]), "all.parquet")
    assert main(["split", "source=all.parquet", "output=out", "workers=0", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a truncated JPEG", "no placeholder", "a path instead of bytes"])
def test_a_broken_row_is_refused_with_its_place(tmp_path, capsys, kind):
    file = tmp_path / "all.parquet"
    pq.write_table(table([good_row(0), broken_row(kind, 1)]), file)
    arguments = [f"source={file}", "splits={a: 1}", f"output={tmp_path / 'out'}", "workers=1"]
    assert main(["split", *arguments]) == 2
    shown = capsys.readouterr().err
    assert f"{file}, row 1: " in shown
    assert "check source=" in shown


def test_a_text_that_is_not_utf8_outside_the_question_is_kept(tmp_path):
    """Rows are copied as they are; the command check finds this."""
    rows = latin_1(table([good_row(0), good_row(1)]), "data_source", 1)
    pq.write_table(rows, tmp_path / "all.parquet")
    settings = [f"source={tmp_path / 'all.parquet'}", "splits={a: 1}", f"output={tmp_path}/out"]
    run_command("split", [*settings, "workers=0"])
    assert read(tmp_path, "a").equals(rows)
