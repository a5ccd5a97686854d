"""The plain reader against Hydra's own parser: it agrees, or it steps aside."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlie.errors import UserError
from outlie.overrides import TooRichError, read, read_rich

VALUES = [
    "1", "1.", ".5", "1e-3", "-1e3", "+5", "inf", "-inf", "null", "Null", "TRUE", "abc", "'x y'", '"x y"',
    "[1,2]", "[]", "[a, 1e-3]", "/x/y.csv", "", "007", "-x", "1_0", "1:2", "x@y", "1e5x", "-", ".", "1.5.2",
    "2024-01-01", "[1,]", "nan", "'[1]'", "1,2", "{b:1}", "~/x", "a=b", "[[1],2]", "'it\\'s'", "a%b", "+x",
    "1__0", "-1_0", "-.5", "1.e5", "e5", " a",
]  # fmt: skip


def agree(word: str) -> None:
    try:
        plain = read(word)
    except TooRichError:
        return
    try:
        rich = read_rich(word)
    except UserError as error:
        raise AssertionError(f"plain reader takes {word!r}") from error
    assert repr(plain) == repr(rich)


@pytest.mark.parametrize("value", VALUES)
def test_agrees_with_hydra(value):
    agree(f"a.b={value}")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="aeEnN01_.+-/'\"[], @:%~", max_size=8))
def test_agrees_with_hydra_on_anything(value):
    agree(f"a={value}")


@pytest.mark.parametrize("word", ["~a", "~a.b", "~a=1", "+a=1", "++a.b=1"])
def test_prefixes(word):
    agree(word)
    assert read(word).delete == word.startswith("~")
    assert read(word).text == word


@pytest.mark.parametrize("word", ["a", "", "=1", "+a", "a b"])
def test_not_a_pair(word):
    with pytest.raises(UserError, match="not KEY=VALUE"):
        read(word)


def test_quotes_make_text():
    assert read("a='1'").value == "1"
    assert read_rich("a='1'").value == "1"
