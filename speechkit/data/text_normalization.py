"""English text as it is read aloud: numbers, dates, money, units and abbreviations in words.

Where writing is ambiguous, the commoner reading is taken, and is stated at its rule. What no rule
knows stays as it is, so that a text front end can point at it: nothing is dropped in silence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from speechkit.data import text_abbreviations
from speechkit.data.number_words import (
    cardinal,
    decimal,
    digits,
    fraction,
    ordinal,
    plural,
    year,
)

_Match = re.Match[str]

_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2014\u2015", " - "),
        **dict.fromkeys("\u00ad\u200b\u200c\u2060\ufeff", ""),  # invisible
        **dict(zip("ÆŒæœßØøÐðÞþŁł", ("AE", "OE", "ae", "oe", "ss", *"OoDd", "Th", "th", *"Ll"))),
        "\u2026": "...", "\u2116": "#", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4",
    }
)  # fmt: skip

_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+"
_NUMBER = rf"(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)"
_BEFORE = r"(?<![0-9A-Za-z.,])"  # where a number starts

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_MONTH_OF = {name[:3]: name for name in _MONTHS}
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)}|Sept|{'|'.join(sorted({*_MONTH_OF} - {'May'}))})\b\.?"

_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "US$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"), "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "sen", "sen"),
}  # fmt: skip
_MAGNITUDES = {"k": "thousand", "m": "million", "M": "million", "bn": "billion", "B": "billion"}

# Written after a number, with a space or without: singular and plural.
_UNITS = {
    "%": ("percent", "percent"), "¢": ("cent", "cents"),
    "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"), "°": ("degree", "degrees"),
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "m/s": ("meter per second", "meters per second"), "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"), "mm": ("millimeter", "millimeters"),
    "m": ("meter", "meters"), "ft": ("foot", "feet"), "yd": ("yard", "yards"),
    "kg": ("kilogram", "kilograms"), "mg": ("milligram", "milligrams"), "g": ("gram", "grams"),
    "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"),
    "ml": ("milliliter", "milliliters"), "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"), "Hz": ("hertz", "hertz"),
    "dB": ("decibel", "decibels"), "kB": ("kilobyte", "kilobytes"), "KB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"), "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"), "ms": ("millisecond", "milliseconds"),
    "s": ("second", "seconds"), "min": ("minute", "minutes"), "h": ("hour", "hours"),
    "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "kW": ("kilowatt", "kilowatts"),
    "MW": ("megawatt", "megawatts"), "W": ("watt", "watts"), "V": ("volt", "volts"),
}  # fmt: skip
_UNIT_NAMES = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))


def normalize_english(text: str) -> str:
    """Write out what is not written as words.

    Numbers (``1,024``, ``3.14``, ``-5``, ``7th``, ``2 1/2``), years (four digits from 1100 to 2099
    without a comma or unit), decades, dates (numbers between slashes are month, day and year),
    times, money, percentages, units, ranges, telephone numbers; titles and other abbreviations,
    Roman numerals after the names of rulers and of parts of a work, initials and acronyms; web and
    mail addresses. Typographic quotes and dashes become plain, Latin letters lose their accents,
    white space becomes one space.

    Parameters
    ----------
    text : str
        Any text; only the English in it is understood.

    Returns
    -------
    str
        Case and punctuation stay, and so does every symbol that no rule knows.

    Raises
    ------
    ImportError
        When the text holds numbers and num2words is not installed.

    Examples
    --------
    >>> normalize_english("Dr. Smith paid $1.50 on June 14, 1803.")
    'Doctor Smith paid one dollar and fifty cents on June fourteenth, eighteen oh three.'
    >>> normalize_english("Henry VIII ran 5 km at 10:05 — 99 % of it…")
    'Henry the eighth ran five kilometers at ten oh five - ninety-nine percent of it...'
    """
    for step in _STEPS:
        text = step(text)
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Give the plain form of typographic characters and take the accents off Latin letters."""
    text = text.translate(_SAME)
    if not text.isascii():
        text = re.sub(r"([A-Za-z])[\u0300-\u036f]+", r"\1", unicodedata.normalize("NFD", text))
        text = unicodedata.normalize("NFC", text)
    return re.sub(r"\s*-{2,}\s*", " - ", " ".join(text.split()))


def _addresses(text: str) -> str:
    """Read the dots of web and mail addresses."""

    def read(match: _Match) -> str:
        words = re.sub(r"^(?:https?://)?", "", match[0]).rstrip("/")
        words = re.sub(r"^www\b", "w w w", words)
        for symbol, word in ((".", "dot"), ("@", "at"), ("/", "slash"), ("_", "underscore")):
            words = words.replace(symbol, f" {word} ")
        return words

    ends = "com|org|net|edu|gov|io|uk|de|fr|eu"
    return re.sub(
        rf"(?<![\w.@-])(?:https?://)?(?:[\w.-]+@)?[\w-]+(?:\.[\w-]+)*\.(?:{ends})\b(?:/[\w./-]*\w/?)?",
        read,
        text,
        flags=re.ASCII,
    )


def _date(month: int, day: str, when: str, fallback: str) -> str:
    if not (1 <= month <= 12 and 1 <= int(day) <= 31):
        return fallback
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {year(when)}"


def _dates(text: str) -> str:
    def slashes(match: _Match) -> str:
        first, second, when = match.groups()
        # American order, unless only the other is a date.
        if int(first) > 12 >= int(second):
            first, second = second, first
        return _date(int(first), second, when, match[0])

    def month_first(match: _Match) -> str:
        day = int(match["day"])
        name = _MONTH_OF[match["month"][:3]]
        return f"{name} {ordinal(match['day'])}" if 1 <= day <= 31 else match[0]

    def day_first(match: _Match) -> str:
        name, day = _MONTH_OF[match["month"][:3]], int(match["day"])
        if not 1 <= day <= 31:
            return match[0]
        if match["suffix"]:
            return f"{match['the'] or ''}{ordinal(match['day'])} {match['of'] or ''}{name}"
        return f"{match['the'] or 'the '}{ordinal(match['day'])} of {name}"

    text = re.sub(
        r"\b([12][0-9]{3})-([01][0-9])-([0-3][0-9])\b",
        lambda m: _date(int(m[2]), m[3], m[1], m[0]),
        text,
    )
    text = re.sub(
        rf"{_BEFORE}([0-9]{{1,2}})/([0-9]{{1,2}})/([0-9]{{4}}|[0-9]{{2}})\b(?![/0-9])",
        slashes,
        text,
    )
    text = re.sub(
        rf"{_BEFORE}(?P<the>[Tt]he )?(?P<day>[0-9]{{1,2}})(?P<suffix>st|nd|rd|th)? (?P<of>of )?"
        rf"{_MONTH}",
        day_first,
        text,
    )
    return re.sub(
        rf"\b{_MONTH} (?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?\b"
        rf"(?![:.,/-]?[0-9]|\s?(?:{_UNIT_NAMES})\b|%)",
        month_first,
        text,
    )


def _times(text: str) -> str:
    def half(match: _Match) -> str:
        if not match["half"]:
            return ""
        letter = match["half"][0].lower()
        # "5 p.m." may end a sentence with its last dot.
        ends = match["half"].endswith(".") and re.match(r"\s*$|\s+[A-Z]", text[match.end() :])
        return f" {letter} m" + ("." if ends else "")

    def clock(match: _Match) -> str:
        hour, minutes, seconds = match["hour"], match["minutes"], match["seconds"]
        words = cardinal(str(int(hour)))
        if int(minutes):
            words += f" {year(minutes)}"
        elif not match["half"] and not seconds:
            words += " o'clock"
        if seconds:
            count = str(int(seconds))
            words += f" and {cardinal(count)} second{'' if count == '1' else 's'}"
        return words + half(match)

    noon = r"(?P<half>[AaPp]\.?[Mm]\b\.?)"
    text = re.sub(
        r"(?<![0-9:])(?P<hour>[01]?[0-9]|2[0-4]):(?P<minutes>[0-5][0-9])"
        rf"(?::(?P<seconds>[0-5][0-9]))?(?![0-9:])(?:\s?{noon})?",
        clock,
        text,
    )
    text = re.sub(
        rf"{_BEFORE}(?P<hour>1[0-2]|[1-9])\s?{noon}",
        lambda m: cardinal(m["hour"]) + half(m),
        text,
    )
    return re.sub(r"(?<=[0-9]):(?=[0-9])", " to ", text)  # a ratio


def _chains(text: str) -> str:
    """Read telephone numbers and ranges of numbers."""

    def groups(match: _Match) -> str:
        return ", ".join(digits(group) for group in re.findall("[0-9]+", match[0]))

    phone = r"(?:\([0-9]{3}\) ?|\b[0-9]{3}[-. ])[0-9]{3}[-.][0-9]{4}\b"
    text = re.sub(rf"{phone}|\b[0-9]{{3}}-[0-9]{{4}}\b|\b[0-9]+(?:-[0-9]+){{2,}}\b", groups, text)
    return re.sub(r"(?<=[0-9%]) ?- ?(?=[$£€¥]?[0-9])", " to ", text)


def _money(text: str) -> str:
    def read(match: _Match) -> str:
        one, many, small, smalls = _CURRENCIES[match["sign"]]
        number, magnitude = match["number"], match["magnitude"]
        if magnitude:
            return f"{decimal(number)} {_MAGNITUDES.get(magnitude, magnitude)} {many}"
        whole, _, part = number.partition(".")
        if part and len(part) != 2:
            return f"{decimal(number)} {many}"
        words = []
        if whole.strip("0,") or not part.strip("0"):
            words.append(f"{cardinal(whole or '0')} {one if whole == '1' else many}")
        if part.strip("0"):
            words.append(f"{cardinal(str(int(part)))} {small if part == '01' else smalls}")
        return " and ".join(words)

    return re.sub(
        rf"(?<!\w)(?P<sign>US\$|[$£€¥]) ?(?P<number>{_NUMBER})(?:"
        r" ?(?P<magnitude>hundred|thousand|million|billion|trillion|k|m|M|bn|B)\b)?",
        read,
        text,
    )


def _units(text: str) -> str:
    def read(match: _Match) -> str:
        one, many = _UNITS[match["unit"]]
        sign = "minus " if match["minus"] else ""
        return f"{sign}{decimal(match['number'])} {one if match['number'] == '1' else many}"

    return re.sub(
        rf"{_BEFORE}(?P<minus>(?<!\w)-)?(?<![0-9])(?P<number>{_NUMBER}) ?(?P<unit>{_UNIT_NAMES})"
        r"(?![A-Za-z0-9'/])",
        read,
        _decades(text),
    )


def _decades(text: str) -> str:
    """Read 1990s, '60s and 80's; 30s is a decade, 30 s a time."""
    text = re.sub(r"\b1(00|000)'?s\b", lambda m: {2: "hundreds", 3: "thousands"}[len(m[1])], text)
    return re.sub(
        r"(?<![\w.,])'?([1-9][0-9](?:[0-9]0)|[2-9]0)'?s\b", lambda m: plural(year(m[1])), text
    )


def _fractions(text: str) -> str:
    def read(match: _Match) -> str:
        above, below = match["above"], match["below"]
        if not 0 < int(above) < int(below) or int(below) > 100:
            return f"{match['whole'] or ''}{cardinal(above)} over {cardinal(below)}"
        words = fraction(above, below)
        return f"{cardinal(match['whole'].strip())} and {words}" if match["whole"] else words

    return re.sub(
        rf"{_BEFORE}(?P<whole>[0-9]+ )?(?P<above>[0-9]+)/(?P<below>[0-9]+)\b(?!/)", read, text
    )


def _numbers(text: str) -> str:
    """Read every number that is left."""

    def read(match: _Match) -> str:
        number = match[0]
        if re.fullmatch(r"1[1-9][0-9]{2}|20[0-9]{2}", number):
            return year(number)
        return decimal(number)

    text = re.sub(
        rf"(?<![0-9])({_INTEGER})(st|nd|rd|th)\b",
        lambda m: ordinal(m[1]),
        text,
        flags=re.IGNORECASE,
    )
    text = re.sub(r"(?<![\w.)])-(?=\.?[0-9])", "minus ", text)
    text = re.sub(r"# ?(?=[0-9])", "number ", text)
    text = re.sub(r"(?<=[A-Za-z])-?(?=[0-9])|(?<=[0-9])-?(?=[A-Za-z])", " ", text)
    return re.sub(
        rf"[0-9]+(?:\.[0-9]+){{2,}}|(?:{_INTEGER})(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+", read, text
    )


def _symbols(text: str) -> str:
    for symbol, word in (("&", "and"), ("@", "at"), ("%", "percent"), ("=", "equals")):
        text = text.replace(symbol, f" {word} ")
    text = re.sub(r"(?<=\w) ?\+ ?(?=\w)", " plus ", text)
    return re.sub(r"(?<=[A-Za-z])/(?=[A-Za-z])", " ", text)


_STEPS: tuple[Callable[[str], str], ...] = (
    _plain, _addresses, _dates, _times, text_abbreviations.expand, _chains, _money, _units,
    _fractions, _numbers, _symbols,
)  # fmt: skip
