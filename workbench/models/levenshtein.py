"""Levenshtein Transformer of fairseq's nonautoregressive_translation: it edits whole targets."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.models import scaling
from workbench.models.edits import MOST_INSERTED, Decisions, decide
from workbench.models.transformer import (
    FIRST_POSITION,
    EncoderDecoder,
    KeysValues,
    Places,
    check_token,
    numbered,
)

SPREAD = 0.02  # of all weights at the start (fairseq --apply-bert-init)


class Levenshtein(EncoderDecoder):
    """One decoder that sees all of a target decides what to insert, to write and to delete.

    All three decisions read its last layer (fairseq --early-exit 6,6,6). Their two small heads are
    embeddings, as in fairseq: neither pruned nor quantized.
    """

    def __init__(
        self,
        layers: int,
        hidden: int,
        feed_forward: int,
        dropout: float,
        vocabulary: int,
        pad: int,
        placeholder: int,
        positions: int,
    ) -> None:
        """Sizes are final: `build` scales them."""
        super().__init__(layers, hidden, feed_forward, dropout, vocabulary, pad)
        self.placeholder = placeholder
        self.positions = positions
        rows = positions + FIRST_POSITION
        self.source_positions = nn.Embedding(rows, hidden, padding_idx=FIRST_POSITION - 1)
        self.target_positions = nn.Embedding(rows, hidden, padding_idx=FIRST_POSITION - 1)
        self.embed_mask_ins = nn.Embedding(MOST_INSERTED + 1, 2 * hidden)
        self.embed_word_del = nn.Embedding(2, hidden)
        self.apply(_initialize)

    def forward(self, source: Tensor, part: Tensor, target: Tensor) -> dict[str, Decisions]:
        """The decisions that turn part, a subsequence of target, into target; see `decide`."""
        return decide(self.start(source), part, target, self.padding, self.placeholder)

    def start(self, source: Tensor) -> "Reading":
        """The network as an editor of targets for source [batch, length]."""
        self._check_length(source)
        return Reading(self, *self.encode(source, _places(self.source_positions)))

    def features(self, tokens: Tensor, source: list[KeysValues], visible: Tensor) -> Tensor:
        """States [rows, length, hidden] of all tokens, each of which sees all others."""
        self._check_length(tokens)
        real = tokens != self.padding
        states = self.embed(tokens, _places(self.target_positions)(numbered(real)))
        for layer, memory in zip(self.decoder, source, strict=True):
            states, _ = layer(states, None, memory, visible, real[:, None, None, :])
        return states

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.positions:
            raise ValueError(
                f"a sentence of {tokens.shape[1]} tokens is longer than the {self.positions} "
                "learned positions; lower data.sequence or raise the model's argument positions"
            )


@dataclass(frozen=True)
class Reading:
    """A batch of sources as the network read it: what it decides about targets for them."""

    network: Levenshtein
    source: list[KeysValues]
    visible: Tensor  # [rows, 1, 1, source length], False at padding

    def select(self, rows: Tensor) -> "Reading":
        """These rows only."""
        source = [(keys[rows], values[rows]) for keys, values in self.source]
        return Reading(self.network, source, self.visible[rows])

    def insertions(self, tokens: Tensor) -> Tensor:
        """Logits [rows, length - 1, 256], from the states on both sides of a slot."""
        states = self._features(tokens)
        sides = torch.cat([states[:, :-1], states[:, 1:]], dim=2)
        return functional.linear(sides, self.network.embed_mask_ins.weight)

    def words(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Logits [n, vocabulary] of the words at the n places that are True in where."""
        return self.network.output_projection(self._features(tokens)[where])

    def deletions(self, tokens: Tensor) -> Tensor:
        """Logits [rows, length, 2], the second that the token be deleted."""
        return functional.linear(self._features(tokens), self.network.embed_word_del.weight)

    def _features(self, tokens: Tensor) -> Tensor:
        return self.network.features(tokens, self.source, self.visible)


def build(
    *,
    layers: int = 6,
    hidden: int = 512,
    feed_forward: int = 2048,
    dropout: float = 0.3,
    positions: int = 1024,
    vocabulary: int,
    padding: int,
    placeholder: int,
    width: float = 1.0,
    depth: float = 1.0,
) -> Levenshtein:
    """The network with hidden // 64 heads; `placeholder` stands for a word not yet written.

    A vocabulary of 40,000 gives 65,932,288 parameters.
    """
    check_token("padding", padding, vocabulary)
    check_token("placeholder", placeholder, vocabulary)
    if placeholder == padding:
        raise ValueError(f"placeholder and padding are both {padding}; give two tokens")
    if positions < 2:
        raise ValueError(f"positions is {positions}; a target has two tokens at least, its ends")
    return Levenshtein(
        scaling.layers(layers, depth),
        scaling.channels(hidden, width),
        scaling.channels(feed_forward, width),
        dropout,
        vocabulary,
        padding,
        placeholder,
        positions,
    )


def _places(table: nn.Embedding) -> Places:
    return lambda positions: table(positions + FIRST_POSITION)


def _initialize(module: nn.Module) -> None:
    """Draw a module's weights as fairseq's init_bert_params does; norms keep ones and zeros.

    The tied projection comes after the embedding and draws its weights again, padding's included.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=SPREAD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx].detach())
