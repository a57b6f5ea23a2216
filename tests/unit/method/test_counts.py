from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbalance_perturb.errors import CountsError
from imbalance_perturb.method.counts import ClassCounts, load_class_counts, name_classes, parse_class_counts


@pytest.mark.parametrize(
    ("data", "names", "counts"),
    [
        ({"nv": 6705, "mel": 1113}, ("nv", "mel"), (6705, 1113)),
        ({"classes": ["b", "a"], "counts": [2, 9]}, ("b", "a"), (2, 9)),
        ([5, 3, 1], ("0", "1", "2"), (5, 3, 1)),
        ({"classes": 7, "counts": 3}, ("classes", "counts"), (7, 3)),
    ],
)
def test_every_form_keeps_class_index_order(
    data: object, names: tuple[str, ...], counts: tuple[int, ...], tmp_path: Path
) -> None:
    """All three JSON forms give names and counts in class-index order, from an object and from a file."""
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(data), encoding="utf-8-sig")
    assert parse_class_counts(data) == load_class_counts(path) == ClassCounts(names, counts)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{nv: 3}", "is not JSON (line 1, column 2"),
        ("[3, 4", "is not JSON"),
        ("{}", "0 class found"),
        ("[]", "0 class found"),
        ("[7]", "1 class found"),
        ('{"a": 3, "b": -4}', "the count of class 'b' is -4"),
        ('{"a": 3, "b": 0}', "the count of class 'b' is 0"),
        ('{"a": 3, "b": 4.5}', "the count of class 'b' is 4.5"),
        ('{"a": 3, "b": "4"}', "the count of class 'b' is '4'"),
        ('{"a": 3, "b": true}', "the count of class 'b' is True"),
        ('{"a": 3, "b": NaN}', "NaN is not a number that can be used"),
        ('{"a": 3, "a": 4}', "'a' stands more than once"),
        ('{"classes": ["a", "a"], "counts": [1, 2]}', "class name 'a' stands more than once"),
        ('{"classes": ["a"], "counts": [1, 2]}', "1 class names but 2 counts"),
        ('{"classes": "ab", "counts": [1, 2]}', "must both be lists"),
        ('{"": 1, "b": 2}', "class name '' is not a non-empty string"),
        ('"abc"', "found str; expected"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_bad_counts_end_in_one_line_naming_file_and_cause(text: str, cause: str, tmp_path: Path) -> None:
    """Unusable counts raise CountsError with one line that names the file, the cause and what is expected."""
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(CountsError) as caught:
        load_class_counts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert cause in message
    assert "\n" not in message


def test_a_missing_file_and_binary_data_are_named(tmp_path: Path) -> None:
    """A file that is not there, a folder, or a file that is not text is an error naming it."""
    binary = tmp_path / "counts.bin"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path, cause in (
        (tmp_path / "no.json", "No such file"),
        (tmp_path, "directory"),
        (binary, "not UTF-8"),
    ):
        with pytest.raises(CountsError, match=cause):
            load_class_counts(path)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=20))
def test_derived_values(counts: list[int]) -> None:
    """Total, imbalance, balance and the smallest class follow from the counts."""
    parsed = parse_class_counts(counts)
    assert len(parsed) == len(counts)
    assert parsed.total == sum(counts)
    assert parsed.balanced == (min(counts) == max(counts))
    assert parsed.imbalance == max(counts) / min(counts)
    assert counts[parsed.smallest] == min(counts)
    assert parsed.smallest == counts.index(min(counts))
    assert parse_class_counts(parsed.to_dict()) == parsed


@pytest.mark.parametrize(
    "text",
    [
        '{"2": 100, "1": 10, "0": 5}',
        '{"classes": ["2", "1", "0"], "counts": [100, 10, 5]}',
        '{"3": 100, "1": 10, "2": 5}',
        '{"2.0": 100, "1.0": 10, "0.0": 5}',
        '{"0": 9, "1": 9, "10": 9, "2": 7, "3": 9, "4": 9, "5": 9, "6": 9, "7": 9, "8": 9, "9": 9}',
    ],
)
def test_numbers_out_of_order_are_refused(text: str, tmp_path: Path) -> None:
    """Classes called by number, sorted by count or as text, would each take another's place: the right way is shown."""
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CountsError, match=r'numbers in the order .*: write \{"') as caught:
        load_class_counts(tmp_path / "c.json")
    assert "\n" not in str(caught.value)


def test_numbers_in_an_order_that_is_meant() -> None:
    """By value, or as ImageFolder sorts folders, numbers are class names like others; two lists say so outright."""
    as_text = sorted(map(str, range(11)))
    for data in (
        {"1": 5, "2": 9},
        {"10": 5, "2": 9},
        {"-1": 5, "0": 9},
        {"classes": as_text, "counts": [*range(1, 12)]},
    ):
        counts = parse_class_counts(data)
        assert parse_class_counts(counts.to_json()) == counts
    assert list(ClassCounts(as_text, range(1, 12)).to_json()) == ["classes", "counts"]


def test_numpy_and_torch_numbers() -> None:
    """What NumPy, pandas or torch counted is taken as Python's numbers, and written as JSON."""
    import numpy as np
    import torch

    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = ClassCounts(("a", "b", "c"), (3, 1, 2))
    for counts in (np.bincount(labels), torch.bincount(torch.from_numpy(labels)), np.array([3, 1, 2], np.uint8)):
        made = ClassCounts(np.array(["a", "b", "c"]), counts)
        assert made == expected
        assert {type(value) for value in (*made.counts, *made.names)} == {int, str}
        assert json.loads(json.dumps(made.to_dict())) == expected.to_dict()
        assert parse_class_counts(counts).counts == (3, 1, 2)
    assert ClassCounts(["a", "b"], (np.int64(2), 1)).counts == (2, 1)


def test_counts_as_pandas_writes_them(tmp_path: Path) -> None:
    """Whole numbers as floats, a table of one column, and blanks around names, which are left out and said."""
    import numpy as np
    import pandas as pd
    import torch

    for counts in ([2.0, 1], np.array([2.0, 1.0]), np.array([2, 1], np.float32), torch.tensor([2.0, 1.0])):
        assert ClassCounts(["a", "b"], counts).counts == (2, 1)
    found = pd.Series(["nv ", "nv ", "mel"]).value_counts()
    for text in (found.to_json(), found.astype(float).to_json(), found.to_frame().to_json()):
        (tmp_path / "c.json").write_text(str(text))
        loaded = load_class_counts(tmp_path / "c.json")
        assert loaded == ClassCounts(["nv", "mel"], [2, 1])
        assert loaded.notes == ("blanks around class names are left out: 'nv '",)
    with pytest.raises(CountsError, match="class name 'nv ' differs from another in the blanks around it alone"):
        parse_class_counts({"nv": 3, "nv ": 2})
    with pytest.raises(CountsError, match="class name '' is not a non-empty string"):
        parse_class_counts({"nv": 3, " ": 2})


def test_numbers_that_are_no_counts_are_refused() -> None:
    """Fractions, infinity, booleans of every library, mappings and texts are refused with what was expected."""
    import numpy as np
    import torch

    for counts in (
        [2.5, 1],
        np.array([2.5, 1.0]),
        [float("inf"), 1],
        [True, 2],
        np.array([True, True]),
        torch.tensor([True, True]),
    ):
        with pytest.raises(CountsError, match="expected a whole number of images"):
            ClassCounts(["a", "b"], counts)  # type: ignore[arg-type]
    for names, numbers in (("ab", [1, 2]), ({"a": 1, "b": 2}, [1, 2]), (["a", "b"], {"a": 1, "b": 2}), (["a", "b"], 3)):
        with pytest.raises(CountsError, match="expected a sequence"):
            ClassCounts(names, numbers)  # type: ignore[arg-type]


def test_names_of_the_model_and_of_the_counts() -> None:
    """A bare list takes the model's names; the same names in another order, and other names, are refused."""
    model = ("nv", "mel", "df")
    assert name_classes(parse_class_counts([3, 2, 1]), model) == ClassCounts(model, (3, 2, 1))
    assert name_classes(parse_class_counts({"0": 3, "1": 2, "2": 1}), model).names == model
    assert name_classes(parse_class_counts([3, 2, 1]), ("1", "0", "2")).names == ("1", "0", "2")
    own = parse_class_counts({"NV": 3, "Mel": 2, "df": 1})
    assert name_classes(own, model) == own
    assert name_classes(own, ("5", "6", "7")) == own
    with pytest.raises(
        CountsError,
        match=r"another order than the model's: class 0 is 'NV' here and 'df'.*here: NV, Mel, df; there: df, mel, nv",
    ):
        name_classes(own, ("df", "mel", "nv"))
    with pytest.raises(CountsError, match="another order"):
        name_classes(parse_class_counts({"0": 3, "1": 2, "2": 1}), ("1", "0", "2"))
    with pytest.raises(CountsError, match="not those that the model names: class 2 is 'df' here and 'bcc' there"):
        name_classes(own, ("nv", "mel", "bcc"))
