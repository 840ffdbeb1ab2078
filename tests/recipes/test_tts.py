"""Every YAML of text to speech trains, speaks, tests and saves in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.data.audio import read_audio, write_audio
from speechkit.data.manifest import read_manifest
from speechkit.data.mel_files import read_mel
from speechkit.data.trim import loudness
from speechkit.features.spectrum import LogMel
from speechkit.models.speaker import SpeakerEncoder
from speechkit.models.synthesizer import Synthesizer
from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
from speechkit.nn.xvector import XVectorEncoder
from speechkit.results import RunResults, read_rows
from speechkit.run import run

RECIPE = Path(__file__).parents[2] / "recipes" / "tts"
YAMLS = sorted((RECIPE / "hparams").glob("*.yaml"))

TINY = [
    "--training.epochs", "1", "--device", "cpu", "--data.max_batch_size", "4",
]  # fmt: skip
TACOTRON = [
    "--model.acoustic.embed_dim", "8", "--model.acoustic.encoder_size", "8",
    "--model.acoustic.prenet_sizes", "[8, 8]", "--model.acoustic.attention_size", "8",
    "--model.acoustic.location_channels", "2", "--model.acoustic.attention_lstm_size", "8",
    "--model.acoustic.decoder_lstm_size", "8", "--model.acoustic.postnet_size", "8",
]  # fmt: skip
ONE_PASS = [
    "--model.acoustic.predictor_size", "8", "--model.acoustic.attention_size", "8",
    "--model.acoustic.encoder.embed_dim", "8", "--model.acoustic.encoder.input_size", "8",
    "--model.acoustic.encoder.hidden_size", "8", "--model.acoustic.encoder.num_layers", "1",
    "--model.acoustic.decoder.embed_dim", "8", "--model.acoustic.decoder.input_size", "8",
    "--model.acoustic.decoder.hidden_size", "8", "--model.acoustic.decoder.num_layers", "1",
]  # fmt: skip
TRANSFORMER = [
    "--model.acoustic.embed_dim", "8", "--model.acoustic.num_heads", "2",
    "--model.acoustic.feedforward_size", "16", "--model.acoustic.encoder_layers", "1",
    "--model.acoustic.decoder_layers", "1", "--model.acoustic.prenet_sizes", "[8, 8]",
    "--model.acoustic.postnet_size", "8", "--model.acoustic.guided_layers", "1",
    "--model.acoustic.guided_heads", "1",
]  # fmt: skip
GPU = ["--data.num_workers", "0", "--training.precision", "float32",
       "--training.validate_every", "1", "--sentences", "[Number one.]"]  # fmt: skip
LJSPEECH = [*GPU, "--prepare.valid", "0.2", "--prepare.test", "0.2"]
SMALL = {
    "fsdd_tacotron2": [
        *TACOTRON, "--prepare.num_train", "8", "--prepare.num_valid", "4",
        "--prepare.num_test", "3",
    ],
    "toy_one_pass": [
        # So few sentences do not have all phonemes.
        *ONE_PASS, "--front_end.phonemes", "null", "--prepare.num_train", "24",
        "--prepare.num_valid", "4", "--prepare.num_test",
        "6",
    ],
    "ljspeech_tacotron2": [*TACOTRON, *LJSPEECH],
    "ljspeech_transformer_tts": [*TRANSFORMER, *LJSPEECH],
    "ljspeech_one_pass": [*ONE_PASS, *LJSPEECH],
    "vctk_one_pass": [*ONE_PASS, *LJSPEECH, "--voices.output_size", "8",
                      "--model.acoustic.speaker_size", "8"],
    "libritts_zero_shot": [*GPU, *TACOTRON, "--subsets.train", "[train-clean-100]"],
}  # fmt: skip


def test_every_yaml_has_a_test() -> None:
    assert [path.stem for path in YAMLS] == sorted(SMALL)


def _tone(seed: int, rate: int, seconds: float) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    wave = torch.sin(2 * torch.pi * (150.0 + 20.0 * seed) * time) * 0.3
    return wave * torch.sin(2 * torch.pi * 2.0 * time).abs()


def _fsdd(root: Path) -> list[str]:
    (root / "recordings").mkdir(parents=True)
    for voice, speaker in enumerate(("ann", "bob", "theo")):
        for digit in range(10):
            for take in range(12):
                name = f"{digit}_{speaker}_{take}.wav"
                write_audio(root / "recordings" / name, _tone(voice + digit, 8000, 0.3), 8000)
    return ["--data_folder", str(root)]


def _ljspeech(root: Path) -> list[str]:
    (root / "wavs").mkdir(parents=True)
    names = [f"LJ001-{number:04d}" for number in range(1, 13)]
    for seed, name in enumerate(names):
        write_audio(root / "wavs" / f"{name}.wav", _tone(seed, 22050, 2.0), 22050)
    lines = [f"{name}|No. 1.|Number one.\n" for name in names]
    (root / "metadata.csv").write_text("".join(lines))
    return ["--root", str(root)]


def _vctk(root: Path) -> list[str]:
    for voice, speaker in enumerate(("p225", "p226")):
        (root / "txt" / speaker).mkdir(parents=True)
        for number in range(1, 9):
            item = f"{speaker}_{number:03d}"
            (root / "txt" / speaker / f"{item}.txt").write_text("Number one.\n")
            tone = _tone(4 * voice + number, 48000, 1.5)
            path = root / "wav48_silence_trimmed" / speaker / f"{item}_mic1.flac"
            write_audio(path, tone * 0.1, 48000)
    return ["--root", str(root)]


def _libritts(root: Path) -> list[str]:
    for seed, subset in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        for clip in range(4):
            speaker = f"{seed}{clip % 2}"
            folder = root / subset / speaker / "1"
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"{speaker}_1_00000{clip}_000000"
            write_audio(folder / f"{stem}.wav", _tone(3 * seed + clip, 24000, 1.5), 24000)
            (folder / f"{stem}.normalized.txt").write_text("Hello there, number one!")
    encoder = SpeakerEncoder(
        features=LogMel(sample_rate=16000, num_mels=12),
        encoder=XVectorEncoder(input_size=12, channels=(8,), kernel_sizes=(3,), dilations=(1,)),
        pooling=StatisticsPooling(input_size=8),
        projection=EmbeddingLayer(input_size=16, embed_dim=6),
    )
    speechkit.save(encoder, root.parent / "encoder")
    return ["--root", str(root), "--speaker_encoder", str(root.parent / "encoder"),
            "--model.acoustic.speaker_size", "6"]  # fmt: skip


def _corpus(yaml: Path, root: Path) -> list[str]:
    if yaml.stem.startswith("toy"):
        return ["--data_folder", str(root)]
    makers = {"fsdd": _fsdd, "ljspeech": _ljspeech, "vctk": _vctk, "libritts": _libritts}
    return makers[yaml.stem.split("_")[0]](root)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_yaml(
    yaml: Path, recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(yaml), *_corpus(yaml, tmp_path / "corpus"), "--output_folder", "run", *TINY,
        *SMALL[yaml.stem], "--spoken_test.num_examples", "1", "--export", "mels",
    ]  # fmt: skip
    run(recipe("tts").TextToSpeech, arguments)

    results = RunResults.read(tmp_path / "run" / "RESULTS.json")
    heard = {"test", "test@copy-synthesis"}
    # Recordings are only measured by models that listen; this one has a speaker encoder.
    heard |= {"test@recording"} if yaml.stem == "libritts_zero_shot" else set()
    assert set(results.results) == heard
    metrics = {result.metric for result in results.results["test"]}
    assert {"stop rate", "alignment score"} <= metrics
    rows = read_rows(tmp_path / "run/test/test/rows.jsonl")
    example = next(row for row in rows if "estimate" in row)
    assert (tmp_path / "run" / example["estimate"]).exists()
    assert (tmp_path / "run" / example["arrays"]).exists()
    assert (tmp_path / "run/samples/000.wav").exists()
    page = (tmp_path / "run/report.html").read_text()
    assert "Synthesized speech" in page
    assert "Quality at each bit rate" not in page

    model: Any = speechkit.load(tmp_path / "run/model")
    assert isinstance(model, Synthesizer)
    _check_mels(tmp_path / "mels", model)
    options: dict[str, Any] = {"voice": model.voice_names[0]} if model.voice_names else {}
    if yaml.stem == "vctk_one_pass":
        _check_loudness(tmp_path / "mels")
    if yaml.stem == "libritts_zero_shot":
        options = {"reference": _tone(1, 16000, 1.0), "sample_rate": 16000}
    said = "number one" if yaml.stem.startswith(("l", "v")) else "one"
    assert torch.isfinite(model.synthesize(said, max_frames=60, **options).waveform).all()


def _check_mels(folder: Path, model: Synthesizer) -> None:
    """Exported mels are of the recordings' frames, and of the vocoder's kind."""
    for split in ("train", "valid", "test"):
        utterance = read_manifest(folder / f"{split}.jsonl")[0]
        mel = read_mel(utterance.extra["mel"], model.features)
        samples = round(utterance.duration * model.sample_rate)
        assert len(mel) == samples // model.features.hop_length + 1


def _check_loudness(folder: Path) -> None:
    """What the mels are made of has one loudness; the corpus was 20 dB softer."""
    waveform, rate = read_audio(read_manifest(folder / "train.jsonl")[0].audio)
    assert loudness(waveform, rate) == pytest.approx(-23.0, abs=0.2)


def test_a_test_measures_words_and_voices(
    recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    """With a recogniser and a speaker encoder; what a test alone uses may change without a word."""
    monkeypatch.chdir(tmp_path)
    from speechkit.data.tokenizer import CharTokenizer
    from speechkit.features.normalize import UtteranceNorm
    from speechkit.models.asr import CTCRecognizer
    from speechkit.nn.conv import ConvSubsampling

    tokenizer = CharTokenizer(symbols=" ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    recognizer = CTCRecognizer(
        sample_rate=8000, features=LogMel(sample_rate=8000, n_fft=200, hop_length=80, num_mels=8),
        normalize=UtteranceNorm(), tokenizer=tokenizer,
        encoder=ConvSubsampling(input_size=8, channels=(2,), strides=(2,), output_size=8),
    )  # fmt: skip
    speechkit.save(recognizer, tmp_path / "recognizer")
    _libritts(tmp_path / "x")  # its speaker encoder
    arguments = [
        str(RECIPE / "hparams/fsdd_tacotron2.yaml"), *_fsdd(tmp_path / "corpus"),
        "--output_folder", "run", *TINY, *SMALL["fsdd_tacotron2"],
    ]  # fmt: skip
    run(recipe("tts").TextToSpeech, arguments)
    _check_fine_tuning(recipe, arguments)
    measured = [
        *arguments, "--spoken_test.recognizer", "recognizer", "--spoken_test.speaker_encoder",
        "encoder", "--test_only",
    ]  # fmt: skip
    run(recipe("tts").TextToSpeech, measured)
    results = RunResults.read(tmp_path / "run" / "RESULTS.json")
    for split in ("test", "test@recording"):
        metrics = {result.metric for result in results.results[split]}
        assert {"WER", "CER", "right speaker", "speaker similarity"} <= metrics
    own = {r.metric: r.value for r in results.results["test@recording"]}
    assert own["speaker similarity"] > 0.5


def _check_fine_tuning(recipe: Callable[[str], ModuleType], arguments: list[str]) -> None:
    """A folder is tested as it is, and its training goes on, with other symbols too."""
    source = ["--init_from", "run/model"]
    run(
        recipe("tts").TextToSpeech, [*arguments, *source, "--test_only", "--output_folder", "as_is"]
    )
    for metrics in zip(
        *(
            RunResults.read(Path(folder, "RESULTS.json")).results["test"]
            for folder in ("run", "as_is")
        )
    ):
        if metrics[0].metric != "real-time factor":
            assert metrics[0] == metrics[1]
    other = ["--front_end.end", "false", "--output_folder", "other"]
    run(recipe("tts").TextToSpeech, [*arguments, *source, *other])
    there: Any = speechkit.load("other/model")
    assert "<end>" not in there.front_end.symbols


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--sentences", "[привет]"], "sentences: 'привет' cannot be spoken: outside the symbols"),
        (["--spoken_test.vocoder", "missing"], "spoken_test.vocoder: missing: there is no such"),
        (
            ["--spoken_test.recognizer", "encoder"],
            "spoken_test.recognizer: encoder holds a PReLU, which is no recognizer; give a model "
            "folder that recipes/asr made",
        ),
        (["--voices.names", "[ann]"], "speakers whom voices.names does not have: train-bob-0000"),
        (["--model.acoustic.speaker_size", "5"], "speaker_size of the acoustic model is 5"),
    ],
)
def test_mistakes_are_found_before_training(
    recipe: Callable[[str], ModuleType], tmp_path: Path, capsys: Any, change: list[str], said: str,
    monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(RECIPE / "hparams/fsdd_tacotron2.yaml"), *_fsdd(tmp_path / "corpus"),
        "--output_folder", "run", *TINY, *SMALL["fsdd_tacotron2"], *change,
    ]  # fmt: skip
    speechkit.save(torch.nn.PReLU(), "encoder")
    with pytest.raises(SystemExit):
        run(recipe("tts").TextToSpeech, arguments)
    assert said in capsys.readouterr().err
