"""The engine of :class:`speechkit.decoding.ctc.PrefixBeamSearch`.

A prefix carries two masses: of its paths that end in a blank (``ends_blank``) and of those that
end in its last token (``ends_token``). Masses are plain probabilities, not logarithms: each frame
is divided by its highest probability and the beam rescaled where it drifts, so that a frame costs
products and sums only; the divisors are added to the score at the end. What is less probable than
the best by ``exp(-300)`` is dropped, so that nothing underflows that could matter.

Two forms of the same step take turns. A beam of few candidates is a list of tuples, since numpy
needs a microsecond for each call; a beam of many is a set of arrays. Frames in which only the blank
survives cost nothing: they only move each prefix's mass to ``ends_blank``.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any

import numpy as np

from speechkit.decoding.prefix_types import Arrays, Entry, Found, Limits
from speechkit.decoding.scorer import PrefixScorer
from speechkit.decoding.token_pruning import prune_tokens

# Candidates (prefixes x tokens) above which arrays beat tuples, and below which they lose again.
# The gap pays for the conversion.
_TO_ARRAYS, _TO_TUPLES = 160, 80
_FLOOR = -300.0
_ROOT = -1  # the last token, and the parent, of the empty prefix


class Search:
    """The search over one utterance.

    Prefixes are nodes of a tree, numbered when they first enter the beam; a node keeps its number
    when it leaves the beam and returns, so that it still meets its children there. Token times are
    kept apart, in traces: linked lists of (token, frame) that follow the heavier of the paths which
    meet in a prefix.

    Parameters
    ----------
    log_probs : array
        Shape ``(T, V)``, float32 or float64, without NaN, each frame with a finite maximum.
    limits : Limits
        What to keep.
    blank : int
        Index of the blank.
    scorer : PrefixScorer or None
        Adds to the score of each prefix.
    """

    def __init__(
        self, log_probs: np.ndarray, limits: Limits, blank: int, scorer: PrefixScorer | None
    ) -> None:
        self.limits, self.scorer = limits, scorer
        self.num_frames, self.vocab_size = log_probs.shape
        self.ratio = math.exp(max(limits.beam_prune_logp, _FLOOR))
        self.frames = prune_tokens(log_probs, limits.token_min_logp, blank)
        self.log_scale = self.frames.offset
        self.nodes: dict[int, int] = {}  # node * V + token -> child's node
        self.num_nodes = 1
        self.traces: tuple[list[int], list[int], list[int]] = ([-1], [_ROOT], [-1])
        self.states: dict[int, Any] = {0: scorer.start()} if scorer else {}
        # Scratch of the array form: where a node stands in the beam, and a frame by token. The
        # last place of each belongs to index -1, the empty prefix's parent and token.
        self.position = np.zeros(0, dtype=np.int64)
        self.prob_of = np.zeros(self.vocab_size + 1)
        self.column_of = np.zeros(self.vocab_size + 1, dtype=np.int64)

    def run(self, nbest: int) -> list[Found]:
        """Search, and return the best prefixes, the best first."""
        beam: list[Entry] | Arrays = [(1.0, 1.0, 0.0, 0, _ROOT, _ROOT, 0)]
        _, blanks, starts, tokens, probs = self.frames
        token_list, prob_list = tokens.tolist(), probs.tolist()
        settled = True  # all mass ends in a blank
        for frame in range(self.num_frames):
            start, stop = starts[frame], starts[frame + 1]
            if start == stop:
                if not settled:
                    beam = self._settle(beam)
                    settled = True
                continue
            settled = False
            beam = self._choose_form(beam, stop - start)
            if isinstance(beam, list):
                ranked = list(zip(prob_list[start:stop], token_list[start:stop]))
                beam = self._step_tuples(beam, ranked, blanks[frame], frame)
            else:
                here = slice(start, stop)
                beam = self._step_arrays(beam, tokens[here], probs[here], blanks[frame], frame)
        return self._finish(self._as_tuples(beam), nbest)

    # ---------------------------------------------------------------- the two forms of a beam

    def _choose_form(self, beam: list[Entry] | Arrays, num_tokens: int) -> list[Entry] | Arrays:
        if isinstance(beam, list):
            many = len(beam) * (num_tokens + 1) > _TO_ARRAYS
            return self._as_arrays(beam) if many else beam
        few = beam.masses.shape[1] * (num_tokens + 1) < _TO_TUPLES
        return self._as_tuples(beam) if few else beam

    def _as_arrays(self, beam: list[Entry]) -> Arrays:
        if not len(self.position):  # one node for each prefix that enters the beam, at most
            size = self.num_frames * self.limits.beam_size + 3
            self.position = np.full(size, -1, dtype=np.int64)
        columns = list(zip(*beam))
        arrays = Arrays(np.array(columns[1:3]), np.array(columns[3:], dtype=np.int64))
        self.position[arrays.links[0]] = np.arange(len(beam))
        return arrays

    def _as_tuples(self, beam: list[Entry] | Arrays) -> list[Entry]:
        if isinstance(beam, list):
            return beam
        self.position[beam.links[0]] = -1
        columns = [beam.masses.sum(axis=0), *beam.masses, *beam.links]
        return list(zip(*(column.tolist() for column in columns)))

    def _settle(self, beam: list[Entry] | Arrays) -> list[Entry] | Arrays:
        """Take a frame in which only the blank survives."""
        if isinstance(beam, list):
            # where endings are counted one by one, adding the two up may put others out of reach
            floor = max(beam)[0] * self.ratio if self.limits.count_endings else 0.0
            return [(e[0], e[0], 0.0, *e[3:]) for e in beam if e[0] >= floor]
        masses = beam.masses
        masses[0] += masses[1]
        masses[1] = 0.0
        if self.limits.count_endings:
            keep = masses[0] >= masses[0].max() * self.ratio
            self.position[beam.links[0]] = -1
            beam = Arrays(masses[:, keep], beam.links[:, keep])
            self.position[beam.links[0]] = np.arange(beam.links.shape[1])
        return beam

    # ---------------------------------------------------------------------- a step, in tuples

    def _step_tuples(
        self, beam: list[Entry], ranked: list[tuple[float, int]], blank: float, frame: int
    ) -> list[Entry]:
        """Take a frame whose surviving tokens are ``ranked`` (probability, token)."""
        vocab, prob_of = self.vocab_size, {token: prob for prob, token in ranked}
        in_beam = {entry[3]: entry for entry in beam}
        gains = self._gains_of(beam, list(prob_of)) if self.scorer else {}
        merged = set()
        out: list[Entry] = []
        for mass, _, ends_token, node, parent, last, trace in beam:
            stays = 0.0
            prob = prob_of.get(last)
            if prob is not None:  # the last token goes on, or its parent emits it now
                stays = ends_token * prob
                entry = in_beam.get(parent)
                if entry is not None:
                    enters = (entry[1] if entry[5] == last else entry[0]) * prob
                    if gains:
                        enters *= gains[parent][last]
                    if enters > stays:
                        trace = self._trace(entry[6], last, frame)
                    stays += enters
                    merged.add(parent * vocab + last)
            blanks = mass * blank
            total = blanks + stays
            if total > 0.0:
                out.append((total, blanks, stays, node, parent, last, trace))
        floor = max(out)[0] * self.ratio if out else 0.0
        if gains:
            out.extend(self._new_scored(beam, ranked, gains, merged, floor))
            return self._enter_tuples(self._select_tuples(out), frame)
        if len(ranked) > 1:
            ranked.sort(reverse=True)
        for mass, ends_blank, _, node, _, last, trace in beam:
            for prob, token in ranked:
                total = mass * prob
                if total < floor:
                    break
                if token == last:
                    total = ends_blank * prob
                    if total < floor or total == 0.0:
                        continue
                if merged and node * vocab + token in merged:
                    continue
                out.append((total, 0.0, total, -1, node, token, trace))
        return self._enter_tuples(self._select_tuples(out), frame)

    def _gains_of(self, beam: list[Entry], tokens: list[int]) -> dict[int, dict[int, float]]:
        """Return the factor that the scorer gives to each node and token."""
        gains = self._gains([entry[3] for entry in beam], tokens).tolist()
        return {entry[3]: dict(zip(tokens, row)) for entry, row in zip(beam, gains)}

    def _new_scored(
        self,
        beam: list[Entry],
        ranked: list[tuple[float, int]],
        gains: dict[int, dict[int, float]],
        merged: set[int],
        floor: float,
    ) -> list[Entry]:
        """Extend each prefix by each token where a scorer has a say."""
        vocab = self.vocab_size
        out: list[Entry] = []
        for mass, ends_blank, _, node, _, last, trace in beam:
            own = gains[node]
            for prob, token in ranked:
                total = (ends_blank if token == last else mass) * prob * own[token]
                if total < floor or total == 0.0 or node * vocab + token in merged:
                    continue
                out.append((total, 0.0, total, -1, node, token, trace))
        return out

    def _gains(self, nodes: list[int], tokens: list[int]) -> np.ndarray:
        """Return the scorer's factors (N, K); none is so small or large that masses go astray."""
        assert self.scorer is not None
        scores = self.scorer.score([self.states[node] for node in nodes], tokens)
        return np.exp(np.clip(scores, _FLOOR, -_FLOOR))

    def _select_tuples(self, out: list[Entry]) -> list[Entry]:
        if self.limits.count_endings:
            ends = [(e[side], i, side) for i, e in enumerate(out) for side in (1, 2)]
            ends.sort(reverse=True)
            floor = max(ends[0][0] * self.ratio, 1e-320)
            kept: dict[int, list[float]] = {}
            for value, i, side in ends[: self.limits.beam_size]:
                if value >= floor:
                    kept.setdefault(i, [0.0, 0.0])[side - 1] = value
            out = [(b + q, b, q, *out[i][3:]) for i, (b, q) in kept.items()]
        out.sort(key=itemgetter(0), reverse=True)
        del out[self.limits.beam_size :]
        floor = out[0][0] * self.ratio
        while out[-1][0] < floor:
            out.pop()
        return out

    def _enter_tuples(self, out: list[Entry], frame: int) -> list[Entry]:
        """Give new prefixes their node and trace."""
        vocab, old = self.vocab_size, self.states
        self.states = {}
        for i, (total, blanks, stays, node, parent, last, trace) in enumerate(out):
            if node < 0:
                key = parent * vocab + last
                node = self.nodes.setdefault(key, self.num_nodes)
                self.num_nodes += 1
                new = self._trace(trace, last, frame)
                out[i] = (total, blanks, stays, node, parent, last, new)
                if self.scorer is not None:
                    self.states[node] = self.scorer.extend(old[parent], last)
            elif self.scorer is not None:
                self.states[node] = old[node]
        best = out[0][0]
        if not 1e-100 < best < 1e100:
            self.log_scale += math.log(best)
            out = [(e[0] / best, e[1] / best, e[2] / best, *e[3:]) for e in out]
        return out

    def _trace(self, parent: int, token: int, frame: int) -> int:
        parents, tokens, frames = self.traces
        parents.append(parent)
        tokens.append(token)
        frames.append(frame)
        return len(parents) - 1

    # ---------------------------------------------------------------------- a step, in arrays

    def _step_arrays(
        self, beam: Arrays, tokens: np.ndarray, probs: np.ndarray, blank: float, frame: int
    ) -> Arrays:
        """Take a frame: values are the masses of N prefixes that stay and N x K that are new."""
        (ends_blank, ends_token), (node, parent, last, trace) = beam.masses, beam.links
        n, k = len(node), len(tokens)
        mass = ends_blank + ends_token
        values = np.empty(n * (k + 1))
        new = values[n:].reshape(n, k)
        np.multiply(mass[:, None], probs, out=new)
        prob = self._of_last_tokens(tokens, probs, last)
        stays = ends_token * prob
        repeats = np.flatnonzero(prob)
        columns = self.column_of[last[repeats]]
        new[repeats, columns] = ends_blank[repeats] * prob[repeats]
        if self.scorer is not None:
            new *= self._gains(node.tolist(), tokens.tolist())
        above = self.position[parent[repeats]]
        inside = above >= 0
        if inside.any():
            above, columns, child = above[inside], columns[inside], repeats[inside]
            enters = new[above, columns]
            new[above, columns] = 0.0
            later = enters > stays[child]
            if later.any():
                moved = child[later]
                trace[moved] = self._traces(trace[above[later]], last[moved], frame)
            stays[child] += enters
        blanks = mass * blank
        if self.limits.count_endings:
            endings = np.concatenate((blanks, stays, values[n:]))
            kept = np.zeros_like(endings)
            keep = self._select_arrays(endings)
            kept[keep] = endings[keep]
            blanks, stays, values[n:] = kept[:n], kept[n : 2 * n], kept[2 * n :]
            values[:n] = blanks + stays
            keep = values.nonzero()[0]
        else:
            values[:n] = blanks + stays
            keep = self._select_arrays(values)
        self.position[node] = -1
        staying = keep[keep < n]
        entering = keep[keep >= n]
        masses = np.empty((2, len(keep)))
        masses[0, : len(staying)] = blanks[staying]
        masses[1, : len(staying)] = stays[staying]
        masses[0, len(staying) :] = 0.0
        masses[1, len(staying) :] = values[entering]
        source = (entering - n) // k
        token = tokens[entering - n - source * k]
        return self._enter_arrays(beam.links, masses, staying, source, token, frame)

    def _of_last_tokens(
        self, tokens: np.ndarray, probs: np.ndarray, last: np.ndarray
    ) -> np.ndarray:
        """Look up the probability of each prefix's last token in this frame, 0 where pruned."""
        self.prob_of[tokens] = probs
        self.column_of[tokens] = np.arange(len(tokens))
        found = self.prob_of[last]
        self.prob_of[tokens] = 0.0
        return found

    def _select_arrays(self, values: np.ndarray) -> np.ndarray:
        """Return the indices of the candidates that survive the two limits of the beam."""
        keep = (values >= values.max() * self.ratio).nonzero()[0]
        excess = len(keep) - self.limits.beam_size
        if excess > 0:
            # in the order of the candidates: the prefixes that stay come first
            keep = keep[np.sort(values[keep].argpartition(excess)[excess:])]
        return keep

    def _enter_arrays(
        self,
        old: np.ndarray,
        masses: np.ndarray,
        staying: np.ndarray,
        source: np.ndarray,
        token: np.ndarray,
        frame: int,
    ) -> Arrays:
        """Build the next beam: prefixes that stay, then new ones (a source, a token)."""
        links = np.empty((4, masses.shape[1]), dtype=np.int64)
        s, new = len(staying), len(source)
        links[:, :s] = old[:, staying]
        links[1, s:] = parent = old[0, source]
        links[2, s:] = token
        if new:
            keys = (parent * self.vocab_size + token).tolist()
            numbers = range(self.num_nodes, self.num_nodes + new)
            links[0, s:] = list(map(self.nodes.setdefault, keys, numbers))
            self.num_nodes += new
            links[3, s:] = self._traces(old[3, source], token, frame)
        node = links[0]
        self.position[node] = np.arange(len(node))
        best = float(masses.max())
        if not 1e-100 < best < 1e100:
            self.log_scale += math.log(best)
            masses /= best
        if self.scorer is not None:
            extended = zip(node[s:].tolist(), parent.tolist(), token.tolist())
            states = {i: self.scorer.extend(self.states[up], label) for i, up, label in extended}
            self.states = {i: self.states[i] for i in node[:s].tolist()} | states
        return Arrays(masses, links)

    def _traces(self, parent: np.ndarray, token: np.ndarray, frame: int) -> np.ndarray:
        parents, tokens, frames = self.traces
        first = len(parents)
        parents.extend(parent.tolist())
        tokens.extend(token.tolist())
        frames.extend([frame] * len(parent))
        return np.arange(first, len(parents))

    # ---------------------------------------------------------------------------- the results

    def _finish(self, beam: list[Entry], nbest: int) -> list[Found]:
        if self.scorer is not None:
            states = [self.states[entry[3]] for entry in beam]
            self.scorer.score(states, [])  # so that a neural model takes them all at once
            ends = [self.scorer.finish(state) for state in states]
            gains = [math.exp(min(max(end, _FLOOR), -_FLOOR)) for end in ends]
            beam = [(entry[0] * gain, *entry[1:]) for entry, gain in zip(beam, gains)]
        beam.sort(key=itemgetter(0), reverse=True)
        floor = beam[0][0] * self.ratio
        found = []
        for entry in beam[:nbest]:
            if entry[0] >= floor > 0.0:
                tokens, frames = self._trace_back(entry[6])
                found.append(Found(tokens, frames, math.log(entry[0]) + self.log_scale))
        return found

    def _trace_back(self, trace: int) -> tuple[list[int], list[int]]:
        path = []
        while trace > 0:
            path.append(trace)
            trace = self.traces[0][trace]
        path.reverse()
        return [self.traces[1][i] for i in path], [self.traces[2][i] for i in path]
