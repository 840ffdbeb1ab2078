"""Beam search with an attention decoder, alone, joint with CTC, and with a language model.

Both sides search with the same weights: the peer's decoder, random, is copied into ours, so that
scores of the best hypothesis are compared before the timing (not with the language model, whose
output layers differ). Both take the same number of steps: the end has no probability in either, and
both stop at the same maximum length, a label every five frames. Ours takes one step more, in which
only an end is looked for. No length normalization, no end threshold.

- transformer: 6 layers of 512 features, 4 heads, 2048 hidden (LibriSpeech's Transformer recipe).
- gru: one layer of 1024 with location-sensitive attention of 1024 (LibriSpeech's seq2seq recipe).
- lm: Transformer of 12 layers of 768 features, 12 heads, 3072 hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.decoding.beam_search import BeamSearch
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.models.lm import TransformerLanguageModel
from speechkit.nn.contexts import LocationContext
from speechkit.nn.rnn_decoder import RNNDecoder
from speechkit.nn.transformer_decoder import TransformerDecoder
from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

AREA, PEER = "beam_search", "speechbrain"
TOLERANCE = 1e-2  # of sums over 50 steps in float32
CTC_WEIGHT, LM_WEIGHT = 0.4, 0.6
BLANK, BEGIN, END = 0, 1, 2  # the peer's; ours has all three in 0, and 1 and 2 are impossible
Search = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models and the utterances; frames of 40 ms."""

    frames: int = 250
    steps: int = 50
    vocabulary: int = 1000
    beam: int = 10
    cases: tuple[tuple[str, str, int], ...] = (
        ("transformer", "", 1),
        ("transformer", "", 8),
        ("transformer", "ctc", 1),
        ("transformer", "ctc", 8),
        ("transformer", "ctc, lm", 1),
        ("transformer", "ctc, lm", 8),
        ("gru", "", 1),
        ("gru", "", 8),
        ("gru", "ctc", 1),
        ("gru", "ctc", 8),
    )
    width: int = 512
    heads: int = 4
    layers: int = 6
    feedforward: int = 2048
    gru: int = 1024
    lm_width: int = 768
    lm_heads: int = 12
    lm_layers: int = 12


FULL = Sizes()
QUICK = Sizes(
    frames=50, steps=10, vocabulary=50, beam=5, width=64, layers=2, feedforward=128, gru=64,
    lm_width=48, lm_layers=2, cases=(("transformer", "ctc, lm", 2), ("gru", "ctc", 1)),
)  # fmt: skip


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure all cases."""
    for kind, scorers, batch in sizes.cases:
        torch.manual_seed(0)
        task = Task(kind, scorers, batch, sizes, bench.device)
        ours, theirs = task.ours(), task.theirs()
        difference = "" if theirs is None or "lm" in scorers else task.disagreement(ours, theirs)
        name = ", ".join(part for part in (kind, scorers, f"batch {batch}") if part)
        target = Target(ratio=5.0 if batch == 1 else 10.0)
        contest = Contest(AREA, f"{name}, beam {sizes.beam}", PEER, ours, theirs, target)
        yield bench.compare(contest, note=difference, failed=bool(difference))


class Task:
    """One case: a memory, and the same decoder in both forms."""

    def __init__(
        self, kind: str, scorers: str, batch: int, sizes: Sizes, device: torch.device
    ) -> None:
        self.kind, self.sizes, self.device = kind, sizes, device
        self.with_ctc, self.with_lm = "ctc" in scorers, "lm" in scorers
        self.memory = torch.randn(batch, sizes.frames, sizes.width, device=device)
        self.ctc = nn.Linear(sizes.width, sizes.vocabulary).to(device)
        self.ratio = (sizes.steps + 0.5) / sizes.frames
        make = _transformer if kind == "transformer" else _gru
        self.decoder = make(sizes).to(device).eval()
        # Of a decoder that is sure of something; and no end, so that both take all steps.
        with torch.no_grad():
            self.decoder.output.weight.mul_(3.0)
            self.decoder.output.bias[:3] = float("-inf")

    def ours(self) -> Search:
        """Return our search."""
        lm = _our_lm(self.sizes).to(self.device) if self.with_lm else None
        search = BeamSearch(
            beam_size=self.sizes.beam,
            ctc_weight=CTC_WEIGHT if self.with_ctc else 0.0,
            lm=lm,
            lm_weight=LM_WEIGHT if self.with_lm else 0.0,
            max_length_ratio=self.ratio,
        )
        lengths = torch.full((len(self.memory),), self.sizes.frames, device=self.device)

        def run() -> list[list[Hypothesis]]:
            with torch.no_grad():
                posteriors = self.ctc(self.memory).log_softmax(-1) if self.with_ctc else None
                return search(self.decoder, self.memory, lengths, posteriors)

        return run

    def theirs(self) -> Search | None:
        """Return the peer's search; None where it is not installed."""
        decoders, scorers = peer("speechbrain.decoders"), peer("speechbrain.decoders.scorer")
        if decoders is None or scorers is None:
            return None
        options: dict[str, Any] = {
            "bos_index": BEGIN,
            "eos_index": END,
            "min_decode_ratio": self.ratio,
            "max_decode_ratio": self.ratio,
            "beam_size": self.sizes.beam,
            "using_eos_threshold": False,
            "length_normalization": False,
            "scorer": self._their_scorers(scorers),
        }
        decoder: Any = self.decoder
        if self.kind == "transformer":
            model, output = _their_transformer(decoder, self.sizes)
            modules = [model.to(self.device).eval(), output]
            search = decoders.S2STransformerBeamSearcher(modules=modules, **options)
        else:
            search = decoders.S2SRNNBeamSearcher(**_their_gru(decoder, self.device), **options)
        whole = torch.ones(len(self.memory), device=self.device)

        def run() -> object:
            with torch.no_grad():
                return search(self.memory, whole)

        return run

    def _their_scorers(self, scorers: Any) -> Any:
        found, weights = [], {}
        if self.with_lm:
            module = peer("speechbrain.lobes.models.transformer.TransformerLM")
            assert module is not None
            size = self.sizes
            lm = module.TransformerLM(
                size.vocabulary, size.lm_width, size.lm_heads, size.lm_layers, 0,
                4 * size.lm_width, activation=nn.GELU, normalize_before=True,
            )  # fmt: skip
            found.append(scorers.TransformerLMScorer(lm.to(self.device)))
            weights["transformerlm"] = LM_WEIGHT
        if self.with_ctc:
            found.append(scorers.CTCScorer(self.ctc, blank_index=BLANK, eos_index=END))
            weights["ctc"] = CTC_WEIGHT
        return scorers.ScorerBuilder(full_scorers=found, weights=weights) if found else None

    def disagreement(self, ours: Search, theirs: Search) -> str:
        """Say where the scores of the best hypotheses differ; nothing where they agree."""
        mine: Any = ours()
        scores: Any = theirs()
        for item, (found, score) in enumerate(zip(mine, scores[2].tolist())):
            if len(found[0].tokens) != self.sizes.steps:
                return f"item {item}: {len(found[0].tokens)} steps instead of {self.sizes.steps}"
            if abs(found[0].score - score) > TOLERANCE:
                return f"item {item}: score {found[0].score:.4f} against {score:.4f}"
        return ""


def _transformer(sizes: Sizes) -> Any:
    decoder = TransformerDecoder(
        vocab_size=sizes.vocabulary,
        memory_size=sizes.width,
        embed_dim=sizes.width,
        num_heads=sizes.heads,
        num_layers=sizes.layers,
        feedforward_size=sizes.feedforward,
    )
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    return decoder


def _gru(sizes: Sizes) -> Any:
    context = LocationContext(
        memory_size=sizes.width,
        query_size=sizes.gru,
        attention_size=sizes.gru,
        value_size=sizes.gru,
        channels=10,
        kernel_size=201,
    )
    return RNNDecoder(
        vocab_size=sizes.vocabulary,
        memory_size=sizes.width,
        context=context,
        embed_dim=128,
        hidden_size=sizes.gru,
    )


def _our_lm(sizes: Sizes) -> TransformerLanguageModel:
    return TransformerLanguageModel(
        tokenizer=SimpleNamespace(vocab_size=sizes.vocabulary),
        embed_dim=sizes.lm_width,
        num_heads=sizes.lm_heads,
        num_layers=sizes.lm_layers,
        feedforward_size=4 * sizes.lm_width,
        activation="gelu",
    )


def _their_transformer(ours: Any, sizes: Sizes) -> tuple[Any, nn.Module]:
    """Copy a decoder into the peer's form: the model, its output layer."""
    module = peer("speechbrain.lobes.models.transformer.TransformerASR")
    assert module is not None
    model = module.TransformerASR(
        sizes.vocabulary, sizes.width, sizes.width, sizes.heads, 1, sizes.layers,
        sizes.feedforward, activation=nn.ReLU, normalize_before=True,
    )  # fmt: skip
    names = {
        "self_attn.att.in_proj_": "attention.in_proj.",
        "self_attn.att.out_proj.": "attention.out_proj.",
        "multihead_attn.att.in_proj_": "memory_attention.in_proj.",
        "multihead_attn.att.out_proj.": "memory_attention.out_proj.",
        "pos_ffn.ffn.0.": "feedforward.expand.",
        "pos_ffn.ffn.3.": "feedforward.reduce.",
        "norm1.norm.": "attention_norm.",
        "norm2.norm.": "memory_norm.",
        "norm3.norm.": "feedforward_norm.",
    }
    state = ours.state_dict()
    weights = {
        "custom_tgt_module.layers.0.emb.Embedding.weight": _embedding(state["embedding.weight"]),
        **{f"decoder.norm.norm.{part}": state[f"norm.{part}"] for part in ("weight", "bias")},
    }
    for layer in range(sizes.layers):
        for theirs, mine in names.items():
            for part in ("weight", "bias"):
                value = state[f"layers.{layer}.{mine}{part}"]
                weights[f"decoder.layers.{layer}.{theirs}{part}"] = value
    rest = model.load_state_dict(weights, strict=False)
    assert not rest.unexpected_keys
    return model, _their_output(ours.output.weight, ours.output.bias)


def _their_gru(ours: Any, device: torch.device) -> dict[str, Any]:
    """Copy a decoder into the peer's form: embedding, decoder, output layer."""
    module = peer("speechbrain.nnet.RNN")
    assert module is not None
    size, context = ours.hidden_size, ours.context
    decoder = module.AttentionalRNNDecoder(
        "gru", "location", size, size, 1, ours.memory_size, ours.embed_dim,
        channels=context.channels, kernel_size=context.kernel_size // 2,
    )  # fmt: skip
    state = ours.state_dict()
    nothing = torch.zeros(size)
    weights = {
        "attn.mlp_enc.weight": state["context.key.weight"],
        "attn.mlp_enc.bias": state["context.key.bias"],
        "attn.mlp_dec.weight": state["context.query.weight"],
        "attn.mlp_dec.bias": nothing,
        "attn.mlp_attn.weight": state["context.energy.weight"],
        "attn.conv_loc.weight": state["context.filters.weight"],
        "attn.mlp_loc.weight": state["context.location.weight"],
        "attn.mlp_loc.bias": nothing,
        "attn.mlp_out.weight": state["context.value.weight"],
        "attn.mlp_out.bias": state["context.value.bias"],
        **{
            f"rnn.rnn_cells.0.{part}": state[f"cells.0.{part}"]
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        },
    }
    rest = decoder.load_state_dict(weights, strict=False)
    assert not rest.unexpected_keys
    # Theirs has one more linear layer, of (context, hidden): let it do the work of our last one.
    wide = ours.output.weight[:, size:], ours.output.weight[:, :size]
    output = _their_output(torch.eye(ours.vocab_size, size, device=device), ours.output.bias)
    embedding = nn.Embedding(ours.vocab_size, ours.embed_dim, device=device)
    with torch.no_grad():
        decoder.proj.weight.zero_()
        decoder.proj.weight[: ours.vocab_size] = torch.cat(wide, 1)
        decoder.proj.bias.zero_()
        embedding.weight.copy_(_embedding(state["embedding.weight"]))
    return {"embedding": embedding, "decoder": decoder.to(device).eval(), "linear": output}


def _their_output(weight: Tensor, bias: Tensor) -> nn.Module:
    module = peer("speechbrain.nnet.linear")
    assert module is not None
    layer: nn.Module = module.Linear(n_neurons=len(weight), input_size=weight.shape[1])
    layer.load_state_dict({"w.weight": weight.detach(), "w.bias": bias.detach()})
    return layer.to(weight.device)


def _embedding(weight: Tensor) -> Tensor:
    """Give the peer's begin the embedding of ours."""
    weight = weight.clone()
    weight[BEGIN] = weight[BLANK]
    return weight
