"""Beam search as fairseq's sequence generator does it, batched, for any cached decoder."""

import math
from typing import Protocol

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
) -> list[list[int]]:
    """Best target per source row by fairseq's beam search, without begin and end.

    Score = log probability / (tokens with end) ^ length_penalty. A sentence is done when `beam`
    hypotheses have ended; max_length tokens are followed by the end in any case.
    """
    _check(model, beam, max_length)
    running = torch.arange(len(source), device=source.device)  # sentence of each group of beams
    finished = _Finished(len(source), max_length, end, source.device)
    tokens = source.new_full([len(source), beam, 1], begin)
    scores = torch.zeros([len(source), beam], device=source.device)
    scores[:, 1:] = -math.inf  # all beams start alike: only the first may branch
    state = model.start(source)
    state.select(running.repeat_interleave(beam))
    for length in range(1, max_length + 2):
        log_probabilities = _next(model, tokens, state, end if length > max_length else None)
        value, origin, tokens = _expand(scores, log_probabilities, tokens)
        ended = tokens[:, :, -1] == end
        normalized = torch.where(ended, value / length**length_penalty, -math.inf)
        finished.add(running, normalized[:, :beam], tokens[:, :beam, 1:])
        open_rows = (finished.count[running] < beam).nonzero().squeeze(1)
        if not len(open_rows):
            break
        # Of 2 x beam candidates at most beam end; a stable sort keeps the others' order.
        going = ended.int().argsort(dim=1, stable=True)[open_rows, :beam]
        pick = (open_rows.unsqueeze(1), going)
        state.select((pick[0] * beam + origin[pick]).flatten())
        tokens, scores, running = tokens[pick], value[pick], running[open_rows]
    return finished.sequences()


def _check(model: Translator, beam: int, max_length: int) -> None:
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before generate")
    if beam < 1 or max_length < 1:
        raise ValueError(f"beam is {beam} and max_length {max_length}; both must be at least 1")


def _next(model: Translator, tokens: Tensor, state: DecodingState, forced: int | None) -> Tensor:
    """Log probabilities [n, beam, vocabulary] of the next token; never padding."""
    logits = model.decode(tokens[:, :, -1:].flatten(0, 1), state)[:, -1]
    log_probabilities = logits.float().log_softmax(dim=-1)
    log_probabilities[:, model.padding] = -math.inf
    if forced is not None:
        only = log_probabilities[:, forced].clone()
        log_probabilities.fill_(-math.inf)
        log_probabilities[:, forced] = only
    return log_probabilities.unflatten(0, tokens.shape[:2])


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
