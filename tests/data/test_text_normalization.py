"""English in words: readings that are written down here, LJSpeech's own, and any text at all."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.data.number_words import digits, roman
from speechkit.data.text_normalization import normalize_english

pytest.importorskip("num2words")

READINGS = {
    # numbers
    "0": "zero",
    "199 debtors": "one hundred ninety-nine debtors",
    "6,439": "six thousand, four hundred thirty-nine",
    "7020 for": "seven thousand twenty for",
    "1,000,000.25": "one million point two five",
    "agent 007": "agent zero zero seven",
    "12345678901234567": digits("12345678901234567"),
    "3.14 and .5": "three point one four and point five",
    "version 1.2.3": "version one point two point three",
    "-5 degrees": "minus five degrees",
    "the 2nd, 3RD and 101st": "the second, third and one hundred first",
    "1/2, 3/4, 2 1/2, ½ cup": "one half, three quarters, two and one half, one half cup",
    "24/7": "twenty-four over seven",
    "3-1": "three to one",
    "a 3:1 ratio": "a three to one ratio",
    "mp3, 4x4, COVID-19": "mp three, four x four, COVID nineteen",
    "No. 5, # 6, №7": "number five, number six, number seven",
    "555-1234": "five five five, one two three four",
    "(212) 555-1234": "two one two, five five five, one two three four",
    # years and dates
    "1803, 1800, 2005, 2010": "eighteen oh three, eighteen hundred, two thousand five, twenty ten",
    "1,812": "one thousand, eight hundred twelve",
    "1914-1918": "nineteen fourteen to nineteen eighteen",
    "the 1990s, '60s and 80's": "the nineteen nineties, sixties and eighties",
    "100s of 1000s": "hundreds of thousands",
    "On the 14th June, 1800": "On the fourteenth June, eighteen hundred",
    "June 14, 1800": "June fourteenth, eighteen hundred",
    "14 June 1800": "the fourteenth of June eighteen hundred",
    "the 5th of Sept.": "the fifth of September",
    "Sept 5": "September fifth",
    "May 5, 2020": "May fifth, twenty twenty",
    "March 40": "March forty",
    "2026-11-21": "November twenty-first, twenty twenty-six",
    "11/21/2026": "November twenty-first, twenty twenty-six",
    "21/11/05": "November twenty-first, oh five",
    # times
    "10:30": "ten thirty",
    "10:05:01": "ten oh five and one second",
    "at 10:00": "at ten o'clock",
    "10:00 a.m. sharp": "ten a m sharp",
    "5 p.m. He left at 6 pm.": "five p m. He left at six p m.",
    # money and units
    "£500 and £1": "five hundred pounds and one pound",
    "$1,234.56": "one thousand, two hundred thirty-four dollars and fifty-six cents",
    "$0.50 or $2.00": "fifty cents or two dollars",
    "$3.5 million, €2bn": "three point five million dollars, two billion euros",
    "$5-$10": "five dollars to ten dollars",
    "5%, 1 km, 3 km/h, 20°C": (
        "five percent, one kilometer, three kilometers per hour, twenty degrees Celsius"
    ),
    "1500 m and 1.5 kg": "one thousand, five hundred meters and one point five kilograms",
    "30s, 30 s": "thirties, thirty seconds",
    "it's 5 o'clock": "it's five o'clock",
    # abbreviations
    "Mr. Adams and Mrs. Smith": "Mister Adams and Missus Smith",
    "Mr Jones, Dr. J. Brown": "Mister Jones, Doctor J. Brown",
    "St. Paul of Fleet St.": "Saint Paul of Fleet Street.",
    "Acme Inc. She left.": "Acme Incorporated. She left.",
    "e.g. Gen. Lee, etc.": "for example General Lee, et cetera.",
    "pp. 5": "pages five",
    "the U.S.A. and the BBC": "the U S A and the B B C",
    "NASA": "NASA",
    "THE BBC OF MR BROWN": "THE BBC OF MR BROWN",
    # Roman numerals
    "Henry VIII and Louis XIV": "Henry the eighth and Louis the fourteenth",
    "King Charles I": "King Charles the first",
    "Charles I saw": "Charles I saw",
    "Chapter IV, World War II": "Chapter four, World War two",
    "World War I began": "World War one began",
    "Henry VIII's Act I, but Charles II'd": "Henry the eighth's Act one, but Charles II'd",
    "Part I liked": "Part I liked",
    "Vitamin C, XXL": "Vitamin C, X X L",
    # characters
    "“Don’t” — café… na\u00efve": '"Don\'t" - cafe... naive',
    "A & B = C": "A and B equals C",
    "me@site.com": "me at site dot com",
    "http://www.a-b.org/c/": "w w w dot a-b dot org slash c",
    "  two \t words\n": "two words",
    "Привет 😀 *": "Привет 😀 *",
}


@pytest.mark.parametrize("text", READINGS, ids=lambda text: text[:30])
def test_readings(text: str) -> None:
    assert normalize_english(text) == READINGS[text]


def test_the_printed_texts_of_ljspeech_become_its_texts_in_words(real_data: Path) -> None:
    compared = 0
    for folder in ("LJSpeech-1.1", "extra/LJSpeech-1.1"):
        for row in (real_data / folder / "metadata.csv").read_text(encoding="utf-8").splitlines():
            name, printed, spoken = row.split("|")
            # The corpus leaves "Mr." and the like, and is not of one mind about commas.
            ours, theirs = (
                re.findall(r"[a-z']+", normalize_english(text).lower())
                for text in (printed, spoken)
            )
            assert ours == theirs, name
            compared += printed != spoken
    assert compared == 50


@given(st.text(alphabet="0123456789-.,:/$£%°'() kmsthMaypIVX", max_size=40))
def test_no_digit_is_left_and_nothing_fails(text: str) -> None:
    read = normalize_english(text)
    assert not re.search("[0-9]", read)
    assert read == " ".join(read.split())
    assert normalize_english(read) == normalize_english(normalize_english(read))


@given(st.text(max_size=60))
def test_other_scripts_and_symbols_stay(text: str) -> None:
    text = unicodedata.normalize("NFC", text)  # as it is read: some characters have two codes
    others = {c for c in text if "\u0400" <= c <= "\u04ff" or c > "\uffff"}
    assert {c for c in others if c.isprintable()} <= set(normalize_english(text))


def test_characters_with_two_codes_are_read_as_one() -> None:
    assert normalize_english("\U0002f800 \u0438\u0306") == "\u4e3d \u0439"


@pytest.mark.parametrize(
    "piece", ["1", "1-", "a.b.", "A.B.", "1,111", "1/2/", "1:00", "$", "www.", "a@", "a-", " - "]
)
def test_long_texts_take_no_time(piece: str) -> None:
    text = (piece * 10_000)[:10_000]
    begin = time.process_time()
    normalize_english(text)
    assert time.process_time() - begin < 2.0  # a few hundredths; seconds where it is quadratic


def test_roman_numerals_are_read_exactly() -> None:
    signs = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL"}
    signs |= {10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}
    for number in range(1, 4000):
        rest, written = number, ""
        for value, sign in signs.items():
            written += sign * (rest // value)
            rest %= value
        assert roman(written) == number
    assert [roman(text) for text in ("IIII", "VX", "ic", "ABC", "")] == [None] * 5


def test_without_num2words_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert normalize_english("no numbers") == "no numbers"
    with pytest.raises(ImportError, match=r"number 5 .*speechkit\[tts\]"):
        normalize_english("5")
