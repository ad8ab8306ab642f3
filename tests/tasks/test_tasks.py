"""Tasks: metrics against hand-computed cases and against a perfect and an idle predictor."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.inception import InceptionOutputs

from workbench import dag
from workbench.data.boxes import open_boxes
from workbench.data.source import DataError
from workbench.tasks import open_task
from workbench.tasks.proposals import average_recall, overlaps

CPU = torch.device("cpu")


@pytest.fixture
def task_of(experiments, tmp_path: Path):
    def of(network: str, phase: str):
        return open_task(dag.spec_of(network, "2to4", "smoke").phases[phase], 0, tmp_path)

    return of


class Fixed(nn.Module):
    """Answers with a function of its input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *inputs, **named):
        return self.answer(*inputs, **named)


def test_top1_of_a_constant_answer_is_the_chance_level(task_of) -> None:
    task = task_of("resnet50", "train")
    favourite = max(set(task.train.read.labels), key=task.train.read.labels.count)
    logits = torch.eye(10)[favourite]
    metrics = task.evaluate(Fixed(lambda x: logits.expand(len(x), 10)), CPU)
    assert metrics["top1"] == pytest.approx(task.chance())


def test_an_auxiliary_head_adds_four_tenths_of_its_loss(task_of) -> None:
    task = task_of("resnet50", "train")
    outputs = InceptionOutputs(torch.zeros(2, 10), torch.zeros(2, 10))
    loss, _ = task.loss(Fixed(lambda images: outputs), (None, torch.tensor([1, 2])), None)
    assert float(loss) == pytest.approx(1.4 * math.log(10))  # Inception v3: weight 0.4


def test_images_are_raised_to_the_least_size_a_network_takes(task_of, edit) -> None:
    assert task_of("inception_v3", "train").train[(0, 0)][0].shape == (3, 75, 75)  # the scale: 32
    edit("scales/smoke.yaml", "image_size: 32", "image_size: 128")
    assert task_of("inception_v3", "train").held_out[(0, 0)][0].shape == (3, 128, 128)


def test_detecting_the_truth_is_perfect_and_detecting_nothing_is_zero(task_of) -> None:
    task = task_of("fasterrcnn_rn50_fpn_1x", "detect")
    truth = [task.held_out[(index, 0)][1] for index in range(len(task.held_out))]
    shown = iter(truth)

    def perfect(images):
        found = [next(shown) for _ in images]
        return [
            {
                "boxes": t["boxes"].clone(),
                "labels": t["labels"],
                "scores": torch.ones(len(t["labels"])),
            }
            for t in found
        ]

    assert task.evaluate(Fixed(perfect), CPU)["box_ap"] == pytest.approx(100)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    assert task.evaluate(Fixed(lambda images: [nothing for _ in images]), CPU)["box_ap"] == 0


def test_showing_the_true_masks_is_perfect(task_of) -> None:
    task = task_of("maskrcnn_rn50_fpn_1x", "detect")
    assert "masks" in task.train[(0, 0)][1]
    truth = open_boxes(task.source, "held_out", masks=True)
    shown = iter(range(len(task.held_out)))

    def perfect(images):
        found = [truth[(next(shown), 0)][1] for _ in images]
        return [
            {
                "boxes": t["boxes"],
                "labels": t["labels"],
                "scores": torch.ones(len(t["labels"])),
                "masks": t["masks"][:, None].float(),
            }
            for t in found
        ]

    metrics = task.evaluate(Fixed(perfect), CPU)
    assert metrics["mask_ap"] == metrics["box_ap"] == pytest.approx(100)


def test_a_proposal_stands_for_one_box_and_the_best_pair_goes_first() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 8]])
    proposals = torch.tensor([[20.0, 0, 30, 5], [0, 0, 10, 10]])
    covered = overlaps(proposals, truth)
    # the second proposal is the first box; it overlaps the third by 0.8, but is taken
    assert covered.tolist() == [1.0, 0.5, 0.0]
    # IoU 1 passes all ten thresholds, 0.5 the lowest, 0 none: 11 of 30
    assert average_recall(covered) == pytest.approx(100 * 11 / 30)
    assert overlaps(torch.zeros(0, 4), truth).tolist() == [0.0, 0.0, 0.0]
    assert overlaps(proposals, torch.zeros(0, 4)).tolist() == []


def test_proposing_the_truth_is_perfect_and_only_the_first_count(task_of) -> None:
    task = task_of("rpn_rn50_fpn_1x", "detect")
    photos = range(len(task.held_out))
    wrong = torch.tensor([[0.0, 0, 1, 1]])

    def proposing(before: int) -> Fixed:
        shown = iter([task.held_out[(index, 0)][1]["boxes"] for index in photos])
        return Fixed(
            lambda images: [
                {"boxes": torch.cat([wrong.repeat(before, 1), next(shown)])} for _ in images
            ]
        )

    assert task.metric == "ar100"
    assert task.evaluate(proposing(0), CPU) == {"ar100": pytest.approx(100), "ar1000": 100}
    late = task.evaluate(proposing(100), CPU)
    assert late == {"ar100": 0.0, "ar1000": pytest.approx(100)}


def test_recall_of_half_right_proposals_is_as_by_hand(task_of) -> None:
    task = task_of("rpn_rn50_fpn_1x", "detect")
    truth = torch.tensor([[0.0, 0, 10, 10], [50, 50, 90, 70]])
    objects = [{"bbox": [0, 0, 10, 10], "category_id": 1}]
    objects += [{"bbox": [50, 50, 40, 20], "category_id": 1}]
    task.held_out.by_image = {task.held_out.ids[0]: objects}
    # IoU 0.62 with the first box, 0.83 with the second; the boxes themselves come after the 100th
    partial = torch.tensor([[0.0, 0, 10, 6.2], [50, 50, 83.2, 70]])
    away = torch.tensor([[200.0, 200, 201, 201]]).repeat(98, 1)
    answer = {"boxes": torch.cat([partial, away, truth])}
    metrics = task.evaluate(Fixed(lambda images: [answer for _ in images]), CPU)
    # 0.50 to 0.95 in steps of 0.05: 0.62 passes 3 thresholds of ten, 0.83 passes 7
    assert metrics == {"ar100": pytest.approx(50), "ar1000": pytest.approx(100)}


def test_text_is_judged_in_the_segments_and_with_the_reach_of_the_spec(task_of) -> None:
    task = task_of("transformer_xl", "train")
    seen: list[tuple[int, int, int, bool]] = []

    def uniform(x, memory, reach):
        seen.append((x.shape[1], reach, model.clamp, model.same_length))
        return torch.zeros(*x.shape, task.symbols), None

    model = Fixed(uniform)
    model.clamp, model.same_length = -1, False
    task.evaluate(model, CPU)
    assert set(seen) == {(80, 16, 820, True)}  # the script's, but the tiny scale's memory
    assert (model.clamp, model.same_length) == (-1, False)


def test_blocks_grow_longer_at_their_share_of_the_steps(task_of) -> None:
    task = task_of("bert_large", "pretrain")  # 25 steps, the last 40 % of them at 48, not at 32
    lengths = [batch["input_ids"].shape[1] for batch in task.training_batches(0, 25)]
    assert lengths == [31] * 15 + [47] * 10  # halves are equal: 3 + 2 x 14 and 3 + 2 x 22
    whole = [batch["labels"] for batch in task.training_batches(0, 25)][20:]
    resumed = [batch["labels"] for batch in task.training_batches(20, 25)]
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    drawn = sum((task.order()(step) for step in range(15, 25)), [])
    assert min(drawn) >= len(task.train) and max(drawn) < len(task.train) + len(task.train.longer)


def test_bad_data_names_the_network_and_the_phase(work_of, edit) -> None:
    edit("scales/smoke.yaml", "vocabulary: 512", "vocabulary: 4")
    with pytest.raises(DataError, match="^fairseq_transformer, phase train: data.vocabulary: 4 "):
        work_of("fairseq_transformer", "dense", "dense").task("train")


def test_uniform_guesses_cost_log2_of_the_alphabet(task_of) -> None:
    task = task_of("transformer_xl", "train")
    uniform = Fixed(lambda x, memory, reach: (torch.zeros(*x.shape, task.symbols), None))
    uniform.clamp, uniform.same_length = -1, False
    bits = task.evaluate(uniform, CPU)["bits_per_character"]
    assert bits == pytest.approx(math.log2(task.symbols), abs=1e-5)
    assert task.chance() < bits


def test_the_right_span_scores_100_and_the_passage_is_chance(task_of) -> None:
    task = task_of("bert_large", "finetune")
    batch_of = iter(range(10_000))

    def right(input_ids, **_):
        logits = torch.zeros(2, *input_ids.shape)
        for row in range(len(input_ids)):
            example = task.held_out[(next(batch_of), 0)]
            logits[0, row, example["start_positions"]] = 9
            logits[1, row, example["end_positions"]] = 9
        return type("Output", (), {"start_logits": logits[0], "end_logits": logits[1]})

    metrics = task.evaluate(Fixed(right), CPU)
    assert metrics["f1"] > 99  # word pieces may take in a neighboring sign
    assert 0 < task.chance() < 60


def test_squad_scores_normalize_articles_case_and_punctuation(task_of) -> None:
    task = task_of("bert_large", "finetune")
    task.held_out.rows = [
        {"context": "", "answers": {"text": ["The Eiffel Tower"], "answer_start": [0]}}
    ]
    assert task._score({0: "eiffel tower!"}) == {"f1": 100.0, "exact_match": 100.0}
    # two shared words of two and three: precision 1, recall 2/2 after dropping "the"
    assert task._score({0: "Eiffel"})["f1"] == pytest.approx(200 / 3)  # P 1, R 1/2


def test_bleu_of_the_reference_is_100(task_of, monkeypatch) -> None:
    from workbench.tasks import translation

    task = task_of("fairseq_transformer", "train")
    sentences = iter(task.held_out.targets)

    def copied(model, source, **_):
        return [task.tokenizer.encode(next(sentences)).ids for _ in source]

    monkeypatch.setattr(translation, "generate", copied)
    size = task.shape()["vocabulary"]
    idle = Fixed(lambda source, target: torch.zeros(*target.shape, size))
    metrics = task.evaluate(idle, CPU)
    assert metrics["bleu"] > 90  # rare signs are unknown to a vocabulary of 512
    assert metrics["loss"] == pytest.approx(math.log(size), abs=1e-4)
    assert task.chance() < 5


def test_training_pairs_may_be_left_out_by_length_and_held_out_ones_stay(task_of, edit) -> None:
    everything = task_of("gnmt", "train")
    edit("networks/gnmt.yaml", "train_sequence: 50", "train_sequence: 12")
    task = task_of("gnmt", "train")
    assert 0 < len(task.train) < len(everything.train)
    assert max(len(task.train[(index, 0)][1]) for index in range(99)) <= 12
    assert len(task.held_out) == len(everything.held_out)
    assert task.digests() == everything.digests()  # the vocabulary is that of all pairs


def test_a_spec_decides_how_translations_are_scored(task_of, monkeypatch) -> None:
    from workbench.tasks import translation

    asked = {}

    def noted(model, source, **scoring):
        asked.update(scoring)
        return [[] for _ in source]

    monkeypatch.setattr(translation, "generate", noted)
    for network, norm, coverage in (("fairseq_transformer", "fairseq", 0.0), ("gnmt", "gnmt", 0.1)):
        task = task_of(network, "train")
        size = task.shape()["vocabulary"]
        task.evaluate(Fixed(lambda source, target, n=size: torch.zeros(*target.shape, n)), CPU)
        assert (asked["length_norm"], asked["coverage_penalty"]) == (norm, coverage)
