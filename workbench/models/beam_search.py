"""Beam search as fairseq's sequence generator does it, with fairseq's or GNMT's scores."""

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


class DecodingState(Protocol):
    """What a decoder remembers of source and target, one row per hypothesis."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order and as often as named."""


class Translator(Protocol):
    """A model that can be asked for one target token after another."""

    padding: int
    training: bool

    def start(self, source: Tensor) -> DecodingState:
        """The state before the first target token of source [batch, length]."""

    def decode(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Logits [rows, length, vocabulary] after tokens, which the state then remembers."""


@runtime_checkable
class AttentiveTranslator(Translator, Protocol):
    """A translator that can tell where in the source it looks, as a coverage penalty asks."""

    def decode_with_attention(self, tokens: Tensor, state: DecodingState) -> tuple[Tensor, Tensor]:
        """What `decode` gives, and the attention [rows, length, source length]; rows sum to 1."""


LengthNorm = Literal["fairseq", "gnmt"]

# tokens with end -> what, to the power of the length penalty, divides a log probability
_LENGTH_NORMS: dict[LengthNorm, Callable[[int], float]] = {
    "fairseq": float,
    # DeepLearningExamples' beam_search.py; its length counts the begin too, hence one more
    "gnmt": lambda length: (5 + length + 1) / (5 + 1),
}


class _Coverage:
    """How much attention every hypothesis has paid to each source token (Wu et al. 2016, eq. 14).

    The sums follow their hypotheses, which those of DeepLearningExamples' beam_search.py do not.
    The model is asked for attention only if the weight is above 0.
    """

    def __init__(self, model: Translator, source: Tensor, beam: int, weight: float) -> None:
        self.model, self.weight = model, weight
        self.real = (source != model.padding).unsqueeze(1)  # [n, 1, source length]
        self.paid = torch.zeros([len(source), beam, source.shape[1]], device=source.device)

    def decode(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Logits [rows, vocabulary] after one token more, whose attention is counted."""
        if not self.weight:
            return self.model.decode(tokens, state)[:, -1]
        logits, attention = self.model.decode_with_attention(tokens, state)
        self.paid = self.paid + attention[:, -1].float().view_as(self.paid)
        return logits[:, -1]

    def penalty(self, origin: Tensor) -> Tensor | float:
        """Weight x sum over source tokens of log min(1, attention), of the beams [n, k]."""
        if not self.weight:
            return 0.0
        least = torch.finfo(self.paid.dtype).tiny  # a token never looked at: -87, not -inf
        logs = self.paid.clamp(least, 1).log().masked_fill(~self.real, 0)
        return self.weight * logs.sum(dim=2).gather(1, origin)

    def select(self, sentences: Tensor, beams: Tensor) -> None:
        """Keep these sentences [n, 1] and of each these beams [n, beam]."""
        self.real, self.paid = self.real[sentences[:, 0]], self.paid[sentences, beams]


class _Finished:
    """The best ended hypothesis of every sentence, and how many have ended."""

    def __init__(self, sentences: int, max_length: int, end: int, device: torch.device) -> None:
        self.end = end
        self.score = torch.full([sentences], -math.inf, device=device)
        self.tokens = torch.full([sentences, max_length + 1], end, device=device)
        self.count = torch.zeros(sentences, dtype=torch.long, device=device)

    def add(self, sentences: Tensor, scores: Tensor, tokens: Tensor) -> None:
        """Add candidates [n, beam]; a score of -inf says that one has not ended."""
        score, which = scores.max(dim=1)
        better = score > self.score[sentences]
        rows = sentences[better]
        self.score[rows] = score[better]
        self.tokens[rows, : tokens.shape[2]] = tokens[better, which[better]]
        self.count[sentences] += scores.isfinite().sum(dim=1)

    def sequences(self) -> list[list[int]]:
        """The tokens of each sentence's best hypothesis, without the end."""
        if not self.score.isfinite().all():
            raise FloatingPointError("some sentence has no finite score: the logits are not finite")
        return [row[: row.index(self.end)] for row in self.tokens.tolist()]


@torch.no_grad()
def generate(
    model: Translator,
    source: Tensor,
    *,
    begin: int,
    end: int,
    beam: int,
    length_penalty: float,
    max_length: int,
    length_norm: LengthNorm = "fairseq",
    coverage_penalty: float = 0.0,
) -> list[list[int]]:
    """Best target per source row by fairseq's beam search, without begin and end.

    Score = log probability / norm ^ length_penalty + coverage_penalty x coverage, where the norm
    is fairseq's, tokens with end, or GNMT's, (5 + tokens with begin and end) / 6. A sentence is
    done when `beam` hypotheses have ended; max_length tokens are followed by the end in any case.
    """
    _check(model, beam, max_length, length_norm, coverage_penalty)
    running = torch.arange(len(source), device=source.device)  # sentence of each group of beams
    finished = _Finished(len(source), max_length, end, source.device)
    tokens = source.new_full([len(source), beam, 1], begin)
    scores = torch.zeros([len(source), beam], device=source.device)
    scores[:, 1:] = -math.inf  # all beams start alike: only the first may branch
    state = model.start(source)
    state.select(running.repeat_interleave(beam))
    coverage = _Coverage(model, source, beam, coverage_penalty)
    for length in range(1, max_length + 2):
        logits = coverage.decode(tokens[:, :, -1:].flatten(0, 1), state)
        next_token = _log_probabilities(logits, model.padding, end if length > max_length else None)
        value, origin, tokens = _expand(scores, next_token.unflatten(0, scores.shape), tokens)
        ended = tokens[:, :, -1] == end
        final = value / _LENGTH_NORMS[length_norm](length) ** length_penalty
        normalized = torch.where(ended, final + coverage.penalty(origin), -math.inf)
        finished.add(running, normalized[:, :beam], tokens[:, :beam, 1:])
        open_rows = (finished.count[running] < beam).nonzero().squeeze(1)
        if not len(open_rows):
            break
        # Of 2 x beam candidates at most beam end; a stable sort keeps the others' order.
        going = ended.int().argsort(dim=1, stable=True)[open_rows, :beam]
        pick = (open_rows.unsqueeze(1), going)
        state.select((pick[0] * beam + origin[pick]).flatten())
        coverage.select(pick[0], origin[pick])
        tokens, scores, running = tokens[pick], value[pick], running[open_rows]
    return finished.sequences()


def _check(
    model: Translator, beam: int, max_length: int, length_norm: str, coverage_penalty: float
) -> None:
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before generate")
    if beam < 1 or max_length < 1:
        raise ValueError(f"beam is {beam} and max_length {max_length}; both must be at least 1")
    if length_norm not in _LENGTH_NORMS:
        raise ValueError(f"length_norm is {length_norm!r}; one of {', '.join(_LENGTH_NORMS)}")
    if coverage_penalty and not isinstance(model, AttentiveTranslator):
        raise ValueError(
            f"coverage_penalty is {coverage_penalty}, but {type(model).__name__} cannot tell its "
            "attention (no decode_with_attention); set coverage_penalty to 0"
        )


def _log_probabilities(logits: Tensor, padding: int, forced: int | None) -> Tensor:
    """Log probabilities [rows, vocabulary] of the next token; never padding."""
    log_probabilities = logits.float().log_softmax(dim=-1)
    log_probabilities[:, padding] = -math.inf
    if forced is not None:
        only = log_probabilities[:, forced].clone()
        log_probabilities.fill_(-math.inf)
        log_probabilities[:, forced] = only
    return log_probabilities


def _expand(
    scores: Tensor, log_probabilities: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The 2 x beam best continuations: scores, the beams they come from, their tokens."""
    beam, vocabulary = log_probabilities.shape[1:]
    total = (scores.unsqueeze(2) + log_probabilities).flatten(1)
    value, index = total.topk(2 * beam, dim=1)
    origin, token = index // vocabulary, index % vocabulary
    past = tokens.gather(1, origin.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
    return value, origin, torch.cat([past, token.unsqueeze(2)], dim=2)
