"""Results as files hold them, and scorers found by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from speechkit.metrics.results import SCORERS, Result


def test_round_trip_through_json() -> None:
    result = Result("WER", 3.25, "%", 1200)
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert list(result.to_dict()) == ["metric", "value", "unit", "count"]
    # RESULTS.json adds the split to each
    assert Result.from_dict({"split": "test", **result.to_dict()}) == result


def test_missing_field() -> None:
    with pytest.raises(ValueError, match="missing: unit, count"):
        Result.from_dict({"metric": "WER", "value": 1.0})


def test_scorers() -> None:
    assert "asr" in SCORERS
    assert list(SCORERS) == [
        "asr", "classification", "codec", "codes", "diarization", "folds", "lm", "separation",
        "speaker", "tts", "vocoder", "voice_activity",
    ]  # fmt: skip
    assert len(SCORERS) == 12
    with pytest.raises(KeyError, match="there are: asr, classification, codec, codes, diariza"):
        SCORERS["nothing"]


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, speechkit.metrics.results as r; assert 'asr' in r.SCORERS; "
        "assert not {'jiwer', 'speechkit.metrics.wer'} & set(sys.modules); r.SCORERS['asr']; "
        "assert 'speechkit.metrics.wer' in sys.modules and 'jiwer' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
