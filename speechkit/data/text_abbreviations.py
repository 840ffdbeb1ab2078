"""English abbreviations, initials, acronyms and Roman numerals, written out where they are sure."""

from __future__ import annotations

import re

from speechkit.data.number_words import cardinal, ordinal, roman

_Match = re.Match[str]

# With a dot, always; the first column also without one, as the British write.
_TITLES = {"Mr": "Mister", "Mrs": "Missus", "Ms": "Miz"}
_DOTTED = {
    "Messrs": "Messieurs", "Drs": "Doctors", "Rev": "Reverend", "Hon": "Honorable",
    "Prof": "Professor", "Gen": "General", "Col": "Colonel", "Maj": "Major", "Capt": "Captain",
    "Lt": "Lieutenant", "Sgt": "Sergeant", "Sen": "Senator", "Gov": "Governor",
    "Pres": "President", "Jr": "Junior", "Sr": "Senior", "Esq": "Esquire", "Co": "Company",
    "Corp": "Corporation", "Inc": "Incorporated", "Ltd": "Limited", "Bros": "Brothers",
    "Dept": "Department", "Ave": "Avenue", "Blvd": "Boulevard", "Mt": "Mount", "Ft": "Fort",
    "etc": "et cetera", "vs": "versus", "approx": "approximately", "viz": "namely",
}  # fmt: skip
_LAST = ("Inc.", "Ltd.", "Corp.", "Esq.", "etc.")  # names do not go on after these
_BEFORE_NUMBERS = {
    "No": "number", "Nos": "numbers", "Vol": "volume", "vol": "volume", "vols": "volumes",
    "p": "page", "pp": "pages", "Ch": "chapter", "ch": "chapter", "Fig": "figure",
    "fig": "figure", "figs": "figures", "Sec": "section", "Art": "article",
}  # fmt: skip
_PHRASES = {"e.g.": "for example", "i.e.": "that is", "a.m.": "a m", "p.m.": "p m"}
_SPELLED = frozenset({
    "USA", "US", "UK", "EU", "UN", "FBI", "CIA", "IBM", "AI", "CEO", "ATM", "UFO", "ID",
    "URL", "CPU", "GPU", "USB", "API", "DNA", "RNA", "HIV", "EEG", "ECG", "UV", "CD", "DC",
    "CV", "MD", "DIY", "IQ", "IP", "IRS", "NYC", "LA",
})  # fmt: skip
_RULERS = (
    "Henry", "Edward", "George", "Charles", "James", "Richard", "William", "Louis",
    "Philip", "Napoleon", "Elizabeth", "Mary", "John", "Paul", "Pius", "Benedict", "Leo",
    "Gregory", "Innocent", "Clement", "Urban", "Alexander", "Nicholas", "Frederick",
    "Catherine", "Ferdinand", "Francis", "Leopold", "Wilhelm", "Gustav", "Christian",
    "Victor", "Julius", "Boniface", "Celestine", "Sixtus", "Ramses", "Ptolemy", "Robert",
    "Peter", "Ivan", "Otto", "Alfonso", "Juan", "Carlos", "Felipe",
)  # fmt: skip
_CROWNS = (
    "King", "Queen", "Emperor", "Empress", "Pope", "Tsar", "Czar", "Kaiser", "Pharaoh",
    "Prince", "Sultan",
)  # fmt: skip
_PARTS = (
    "Chapter", "Section", "Volume", "Book", "Part", "Act", "Scene", "Article", "Canto",
    "Type", "Phase", "Stage", "Level", "Appendix", "Figure", "Table", "Schedule", "Title",
)  # fmt: skip


def expand(text: str) -> str:
    """Write out abbreviations and Roman numerals.

    Roman numerals count as such after a ruler's name (of one letter ``I`` only where a title stands
    before the name) and after the name of a part of a work, "World War" or the like. Acronyms are
    spelled where they have no vowel or are well known, and not where the whole text is in capitals.

    Examples
    --------
    >>> expand("Mr. Brown of Fleet St., e.g., met St. Paul in Chapter IV.")
    'Mister Brown of Fleet Street, for example, met Saint Paul in Chapter four.'
    >>> expand("King Charles I and I read No. 5 by A.B. Jones of the BBC, etc.")
    'King Charles the first and I read number 5 by A B Jones of the B B C, et cetera.'
    """
    phrases = "|".join(map(re.escape, _PHRASES))
    text = re.sub(
        rf"\b(?:{phrases})(?!\w)",
        lambda m: _PHRASES[m[0].lower()] + _stop(m),
        text,
        flags=re.IGNORECASE,
    )
    text = _titles(text)
    text = re.sub(
        rf"\b({'|'.join(_BEFORE_NUMBERS)})\. ?(?=[0-9]|[IVXLC]+\b)",
        lambda m: f"{_BEFORE_NUMBERS[m[1]]} ",
        text,
    )
    text = re.sub(
        r"(?<![\w.])(?:[A-Z]\.){2,}", lambda m: " ".join(m[0].split(".")[:-1]) + _stop(m), text
    )
    return _acronyms(_roman_numerals(text))


def _stop(match: _Match) -> str:
    """Keep the dot of an abbreviation that ends the sentence too, as far as that is sure."""
    if not match[0].endswith("."):
        return ""
    rest = match.string[match.end() : match.end() + 8]
    if match[0] in _LAST and re.match(r" [A-Z]", rest):
        return "."
    return "" if rest.strip("'\")] ") else "."


def _titles(text: str) -> str:
    text = re.sub(rf"\b({'|'.join(_TITLES)})\b\.?(?= ?[A-Z])", lambda m: _TITLES[m[1]], text)
    text = re.sub(
        rf"\b({'|'.join(_DOTTED)})\.(?!\w)",
        lambda m: _DOTTED[m[1]] + _stop(m),
        text,
    )
    # A capitalised word after it makes it a title; one before it alone, a road.
    text = re.sub(r"\bSt\. ?(?=[A-Z][a-z])", "Saint ", text)
    text = re.sub(r"\bDr\.? ?(?=[A-Z][a-z]|[A-Z]\.)", "Doctor ", text)
    text = re.sub(r"(?<=[a-z] )St\.", lambda m: "Street" + _stop(m), text)
    return re.sub(r"(?<=[a-z] )Dr\.", lambda m: "Drive" + _stop(m), text)


def _roman_numerals(text: str) -> str:
    def ruler(match: _Match) -> str:
        number = roman(match["number"])
        if number is None or (match["number"] == "I" and not match["crown"]):
            return match[0]
        return f"{match['crown'] or ''}{match['name']} the {ordinal(str(number))}"

    def part(match: _Match) -> str:
        number = roman(match["number"])
        return match[0] if number is None else f"{match['name']} {cardinal(str(number))}"

    text = re.sub(
        rf"\b(?P<crown>(?:{'|'.join(_CROWNS)}) )?(?P<name>{'|'.join(_RULERS)}) "
        r"(?P<number>[IVXLC]+)\b(?!'[mdlv])",
        ruler,
        text,
    )
    text = re.sub(r"\bWorld War I\b", "World War one", text)
    # "Part I liked": a pronoun, where a word in small letters follows.
    return re.sub(
        rf"\b(?P<name>{'|'.join(_PARTS)}|World War|Super Bowl|chapter|section|volume|number) "
        r"(?P<number>(?!I [a-z])[IVXLC]+)\b(?!'[mdlv])",
        part,
        text,
    )


def _acronyms(text: str) -> str:
    if text.isupper():
        return text

    def spell(match: _Match) -> str:
        word = match[0]
        sure = word in _SPELLED or (roman(word) is None and not set(word) & set("AEIOUY"))
        return " ".join(word) if sure else word

    return re.sub(r"\b[A-Z]{2,5}\b", spell, text)
