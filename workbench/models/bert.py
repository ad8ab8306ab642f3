"""BERT of transformers, randomly initialized, with its pretraining or question-answering head."""

from typing import Literal, get_args

from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertForQuestionAnswering
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from workbench.models import scaling

Head = Literal["masked_language_model", "question_answering"]


class Pretraining(BertForPreTraining):
    """Both pretraining heads; words are told of all positions, or only of those asked for.

    As gather_indexes in run_pretraining.py of google-research/bert: the vocabulary's logits of 85 %
    of the positions would be thrown away. It is in `forward`, since what wraps the model to
    train it in several processes hooks into that.
    """

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> BertForPreTrainingOutput:
        """Logits of words [batch, length, vocabulary] and of the next sentence [batch, 2].

        With `positions` [rows], which count through the batch, sequence after sequence, those of
        words are [rows, vocabulary].
        """
        states, pooled = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )[:2]
        if positions is not None:
            states = states.flatten(0, 1).index_select(0, positions)
        words, follows = self.cls(states, pooled)
        return BertForPreTrainingOutput(prediction_logits=words, seq_relationship_logits=follows)


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
        return Pretraining(config)
    return BertForQuestionAnswering(config)
