"""BERT: sizes of the originals, tied embedding, names shared by the two heads."""

import pytest
import torch
from torch import nn
from transformers import BertForPreTraining

from workbench.models import bert

BASE = {"layers": 12, "hidden": 768, "heads": 12, "feed_forward": 3072}
TINY = {"layers": 2, "hidden": 64, "heads": 2, "feed_forward": 96, "vocabulary": 50}


# networks.csv, rows 33 and 34: with the question-answering head, which has no pooler
@pytest.mark.parametrize(
    ("sizes", "parameters", "linears", "linear_weights"),
    [(BASE, 108_893_186, 73, 84_936_192), ({}, 334_094_338, 145, 301_991_936)],
)
def test_the_networks_have_the_size_of_the_originals(
    sizes: dict[str, int], parameters: int, linears: int, linear_weights: int
) -> None:
    with torch.device("meta"):
        model = bert.build(head="question_answering", **sizes)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (len(weights), sum(w.numel() for w in weights)) == (linears, linear_weights)


def test_pretraining_ties_its_decoder_to_the_word_embedding_by_identity() -> None:
    model = bert.build(head="masked_language_model", **TINY)
    words = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is words
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    model.tie_weights()
    assert model.cls.predictions.decoder.weight is words


def test_pretraining_answers_both_questions() -> None:
    model = bert.build(head="masked_language_model", **TINY).eval()
    output = model(torch.randint(1, 50, (2, 7)))
    assert output.prediction_logits.shape == (2, 7, 50)
    assert output.seq_relationship_logits.shape == (2, 2)


def test_without_positions_pretraining_is_that_of_transformers_and_with_them_its_rows() -> None:
    model = bert.build(head="masked_language_model", **TINY).eval()
    tokens = torch.randint(1, 50, (2, 7), generator=torch.manual_seed(0))
    inputs = {"attention_mask": torch.ones_like(tokens), "token_type_ids": tokens % 2}
    theirs = BertForPreTraining.forward(model, tokens, **inputs)
    ours = model(tokens, **inputs)
    assert torch.equal(ours.prediction_logits, theirs.prediction_logits)
    assert torch.equal(ours.seq_relationship_logits, theirs.seq_relationship_logits)
    asked = torch.tensor([9, 0, 6])  # the third of the second sequence, two of the first
    few = model(tokens, **inputs, positions=asked)
    rows = torch.stack([theirs.prediction_logits[at] for at in ((1, 2), (0, 0), (0, 6))])
    torch.testing.assert_close(few.prediction_logits, rows)
    assert torch.equal(few.seq_relationship_logits, theirs.seq_relationship_logits)


def test_the_encoder_has_the_same_names_under_either_head() -> None:
    names = [
        {n for n, _ in bert.build(head=head, **TINY).named_parameters() if n.startswith("bert.")}
        for head in ("masked_language_model", "question_answering")
    ]
    assert names[0] - names[1] == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not names[1] - names[0]


def test_padding_does_not_change_the_answer() -> None:
    model = bert.build(head="question_answering", **TINY).eval()
    tokens = torch.randint(1, 50, (2, 7), generator=torch.manual_seed(0))
    padded = nn.functional.pad(tokens, (0, 3))
    logits = model(padded, attention_mask=(padded != 0).long()).start_logits[:, :7]
    torch.testing.assert_close(logits, model(tokens).start_logits)


def test_attention_is_sdpa_and_dropout_reaches_both_places() -> None:
    config = bert.build(head="question_answering", dropout=0.3, **TINY).config
    assert config._attn_implementation == "sdpa"
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("width", "hidden", "heads"), [(0.01, 32, 1), (0.125, 128, 2), (0.2, 224, 2), (0.5, 512, 8)]
)
def test_width_keeps_the_size_of_a_head(width: float, hidden: int, heads: int) -> None:
    # 0.2 * 1024 = 204.8 -> 224 = 3.5 heads of 64; 3 does not divide 224, 2 does.
    with torch.device("meta"):
        config = bert.build(head="question_answering", width=width, depth=0.25).config
    assert (config.hidden_size, config.num_attention_heads) == (hidden, heads)
    assert config.num_hidden_layers == 6
    assert config.vocab_size == 30522  # neither scaled nor padded


def test_an_unknown_head_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="question_answering"):
        bert.build(head="answers", **TINY)
