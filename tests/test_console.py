"""What tables look like where there is no terminal."""

from __future__ import annotations

import pytest

from pipeline.console import table

COLUMNS = ["layer", "kind of layer", "largest difference found", "of"]


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_numbers_are_whole_and_text_goes_on_in_the_next_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = " ".join(["pooling"] * 12)
    table("a title", COLUMNS, [["conv2d", words, "1,234,567", "3.2e-07"]], ["kind of layer"])
    title, *head, first, second, _ = lines(capsys)
    assert title == "a title"
    assert [line.split() for line in head] == [
        ["largest"],
        ["difference"],
        ["layer", "kind", "of", "layer", "found", "of"],
    ]
    assert first.split()[0] == "conv2d" and first.split()[-2:] == ["1,234,567", "3.2e-07"]
    assert set(second.split()) == {"pooling"}
    assert f"{first} {second}".count("pooling") == 12
    assert max(map(len, [*head, first, second])) <= 80


def test_what_cannot_be_broken_makes_the_table_wider(capsys: pytest.CaptureFixture[str]) -> None:
    long = ["n" * 50, "k" * 30, "1" * 40, "[x]"]
    table("", COLUMNS, [long], ["kind of layer"])
    assert lines(capsys)[-2].split() == long


def test_wide_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table("", ["name", "number"], [["層" * 45, "7"]])
    assert "層" * 45 in lines(capsys)[-2] and lines(capsys) == []


def test_a_table_of_nothing_keeps_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    table("", COLUMNS, [])
    assert lines(capsys)[1] == "  ".join(COLUMNS)
