"""Names of buckets and files: what is refused, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_raft.names import bucket_name_problem, path_problem


@pytest.mark.parametrize(
    "name", ["abc", "a-b", "0a9", "a" * 63, "photos-2024", "xn--a", "1--2", "127-0-0-1"]
)
def test_bucket_names_of_the_form_are_accepted(name: str) -> None:
    """3 to 63 of a-z, 0-9 and hyphen, none at the ends."""
    assert bucket_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "ab", "a" * 64, "-ab", "ab-", "Abc", "a_b", "a.b", "a b", "äbc", "abc\n", "ab٣", "a/b"],
)
def test_other_bucket_names_are_refused(name: str) -> None:
    """Anything else has a problem that a sentence can end with."""
    assert bucket_name_problem(name)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c.txt",
        ".hidden",
        "...",
        "a/.b/c..d",
        " ",
        "a\nb",
        "e\u0301",
        "\u00e9",
        "😀" * 256,
        "a" * 1024,
        "%2F",
        "a\\b",
        "..a/..b",
    ],
)
def test_paths_are_accepted_as_given(path: str) -> None:
    """Up to 1,024 bytes, whatever the characters, as long as every component names something."""
    assert path_problem(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "./a",
        "a/.",
        "a/./b",
        "a/../b",
        "../a",
        "a\0b",
        "a" * 1025,
        "é" * 513,
        "\ud800",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    """Too long, empty or dot components, NUL, a leading slash, and text that isn't Unicode."""
    assert path_problem(path)


@given(st.text(alphabet=st.sampled_from("a./\0é"), max_size=12))
def test_a_path_is_accepted_exactly_if_each_component_names_something(path: str) -> None:
    """The quick checks agree with the definition, component by component."""
    components = path.split("/")
    fine = "\0" not in path and all(part not in {"", ".", ".."} for part in components)
    assert (path_problem(path) is None) == fine
