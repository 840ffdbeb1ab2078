"""English numbers in words, as American readers say them: ``199`` is one hundred ninety-nine.

The words themselves come from the package num2words (the extra ``[tts]``).
"""

from __future__ import annotations

import re
from typing import Any

_MOST_DIGITS = 15  # longer ones are read digit by digit, as nobody says "octillion"
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PARTS = {2: "half", 4: "quarter"}


def _words(number: int, kind: str) -> str:
    try:
        import num2words
    except ImportError as error:
        raise ImportError(
            f"to read the number {number} aloud, text needs the package num2words: "
            "pip install speechkit[tts]"
        ) from error
    converter: Any = num2words.num2words
    # It writes British English: "one hundred and one".
    return str(converter(number, lang="en", to=kind)).replace(" and ", " ")


def cardinal(text: str) -> str:
    """Read a whole number, with commas between thousands or without.

    Examples
    --------
    >>> cardinal("6,439")
    'six thousand, four hundred thirty-nine'
    >>> cardinal("007")
    'zero zero seven'
    """
    number = text.replace(",", "")
    if len(number) > _MOST_DIGITS or (len(number) > 1 and number[0] == "0"):
        return digits(number)
    return _words(int(number), "cardinal")


def ordinal(text: str) -> str:
    """Read a place in an order.

    Examples
    --------
    >>> ordinal("14"), ordinal("1,002")
    ('fourteenth', 'one thousand second')
    """
    number = text.replace(",", "")
    if len(number) > _MOST_DIGITS:
        return f"{digits(number)}th"
    return _words(int(number), "ordinal")


def digits(text: str) -> str:
    """Read each digit; what else is in the text is left out.

    Examples
    --------
    >>> digits("50-7")
    'five zero seven'
    """
    return " ".join(_DIGITS[int(character)] for character in text if character in "0123456789")


def decimal(text: str) -> str:
    """Read a number that may have a fraction, or several dots as versions have.

    Examples
    --------
    >>> decimal("1,024.50"), decimal(".5"), decimal("2")
    ('one thousand twenty-four point five zero', 'point five', 'two')
    >>> decimal("1.2.10")
    'one point two point ten'
    """
    whole, *rest = text.split(".")
    words = [cardinal(whole)] if whole else []
    for part in rest:
        words += ["point", digits(part) if len(rest) == 1 else cardinal(part)]
    return " ".join(words)


def year(text: str) -> str:
    """Read a year; two digits are those of a century that is not said.

    Examples
    --------
    >>> year("1803"), year("1800"), year("2005"), year("63"), year("05")
    ('eighteen oh three', 'eighteen hundred', 'two thousand five', 'sixty-three', 'oh five')
    """
    if len(text) == 2 and text[0] == "0":
        return f"oh {cardinal(text[1])}"
    return _words(int(text), "year").replace("oh-", "oh ")


def plural(words: str) -> str:
    """Give the plural of a number in words: of a decade, for one.

    Examples
    --------
    >>> plural("nineteen ninety"), plural("six"), plural("five")
    ('nineteen nineties', 'sixes', 'fives')
    """
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return words + ("es" if words.endswith("x") else "s")


def fraction(above: str, below: str) -> str:
    """Read a common fraction.

    Examples
    --------
    >>> fraction("1", "2"), fraction("3", "4"), fraction("2", "5"), fraction("7", "16")
    ('one half', 'three quarters', 'two fifths', 'seven sixteenths')
    """
    part = _PARTS.get(int(below)) or ordinal(below)
    if int(above) != 1:
        part = "halves" if part == "half" else plural(part)
    return f"{cardinal(above)} {part}"


_ROMAN = re.compile(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def roman(text: str) -> int | None:
    """Read a Roman numeral up to 3999, or return None where the text is none.

    Examples
    --------
    >>> roman("XIV"), roman("IIX"), roman("")
    (14, None, None)
    """
    if not text or not _ROMAN.fullmatch(text):
        return None
    values = [_VALUES[letter] for letter in text]
    return sum(-value if value < after else value for value, after in zip(values, [*values[1:], 0]))
