"""BERT of transformers, randomly initialized, with its pretraining or question-answering head."""

from typing import Literal, get_args

from torch import nn
from transformers import BertConfig, BertForPreTraining, BertForQuestionAnswering

from workbench.models import scaling

Head = Literal["masked_language_model", "question_answering"]


def build(
    *,
    layers: int = 24,
    hidden: int = 1024,
    heads: int = 16,
    feed_forward: int = 4096,
    dropout: float = 0.1,
    max_positions: int = 512,
    head: Head,
    vocabulary: int = 30522,
    padding: int = 0,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """BERT, whose encoder is named bert.* with either head; the vocabulary is taken as given.

    Width keeps the size of a head and scales their number, to the largest that divides hidden.
    "masked_language_model" carries the next-sentence head and, alone, the pooler.
    """
    if head not in get_args(Head):
        raise ValueError(f"head is {head!r}; it must be one of {', '.join(get_args(Head))}")
    if heads < 1 or hidden % heads:
        raise ValueError(f"hidden {hidden} is not divisible into {heads} heads")
    scaled = scaling.channels(hidden, width)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=scaled,
        num_hidden_layers=scaling.layers(layers, depth),
        num_attention_heads=scaling.heads(scaled, hidden // heads),
        intermediate_size=scaling.channels(feed_forward, width),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=max_positions,
        pad_token_id=padding,
        attn_implementation="sdpa",
    )
    if head == "masked_language_model":
        return BertForPreTraining(config)
    return BertForQuestionAnswering(config)
