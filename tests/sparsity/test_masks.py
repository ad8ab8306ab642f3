import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from workbench.sparsity import Layout, Masks, prune


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 5))


@pytest.fixture
def masks(model):
    return prune(model, {"kind": "nm", "keep": 2, "of": 4})


def test_masks_survive_a_round_trip_with_the_same_digest(masks, tmp_path):
    masks.save(tmp_path / "masks.safetensors")
    loaded = Masks.load(tmp_path / "masks.safetensors")
    assert list(loaded) == list(masks)
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert (loaded.pattern, loaded.rule) == (masks.pattern, "c4")
    assert loaded.digest() == masks.digest()


def test_a_file_takes_two_bits_per_kept_weight_of_two_of_four(tmp_path):
    model = nn.Linear(256, 256)
    prune(model).save(tmp_path / "m")
    kept = int(model.weight.count_nonzero())
    header = int.from_bytes((tmp_path / "m").read_bytes()[:8], "little")
    assert (tmp_path / "m").stat().st_size == 8 + header + 2 * kept // 8


def test_layouts_survive_a_round_trip_and_follow_names(tmp_path):
    model = nn.ModuleDict({"up": nn.ConvTranspose2d(8, 8, 2, groups=2), "out": nn.Linear(8, 8)})
    masks = prune(model, rule="c4+")
    masks.save(tmp_path / "m")
    loaded = Masks.load(tmp_path / "m")
    assert loaded.layout("up.weight") == Layout(0, 2)
    assert loaded.layout("out.weight") == Layout()
    moved = loaded.renamed({"": "net."}).select(["net.up.weight"]).to("cpu")
    assert moved.layout("net.up.weight") == Layout(0, 2)


def test_files_of_the_format_before_this_one_are_read(masks, tmp_path):
    masks.save(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        header = json.loads(file.metadata()["workbench-masks-3"])
        packed = {name: file.get_tensor(name) for name in masks}
    del header["layouts"]
    save_file(packed, tmp_path / "old", metadata={"workbench-masks-2": json.dumps(header)})
    assert Masks.load(tmp_path / "old").digest() == masks.digest()
    save_file(packed, tmp_path / "later", metadata={"workbench-masks-4": json.dumps(header)})
    with pytest.raises(ValueError, match="header has \\['workbench-masks-4'\\]; only mask files"):
        Masks.load(tmp_path / "later")


def test_empty_masks_survive_a_round_trip(tmp_path):
    Masks({}, {"kind": "none"}, "c4").save(tmp_path / "m")
    assert dict(Masks.load(tmp_path / "m")) == {}


def test_the_digest_ignores_order_and_memory_format_but_sees_names_shapes_and_bits():
    mask = torch.rand(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5

    def digest(**masks):
        return Masks(masks, {}, "c4").digest()

    reference = digest(a=mask, b=mask)
    assert digest(b=mask, a=mask.to(memory_format=torch.channels_last)) == reference
    flipped = mask.clone()
    flipped[7, 3, 2, 2] ^= True
    others = [digest(a=mask, c=mask), digest(a=mask, b=mask.view(8, 36)), digest(a=mask, b=flipped)]
    assert len({reference, *others}) == 4


def test_the_digest_of_a_slice_that_starts_at_an_odd_byte_is_that_of_its_copy():
    mask = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    odd = mask.flatten()[1:17]
    assert Masks({"a": odd}, {}, "c4").digest() == Masks({"a": odd.clone()}, {}, "c4").digest()


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_by_name(masks, tmp_path, length):
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="masks.safetensors: not a whole safetensors file"):
        Masks.load(path)


def test_foreign_and_altered_files_are_refused_by_name(masks, tmp_path):
    save_file({"weight": torch.ones(4)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="weights: header has \\[\\]; only mask files"):
        Masks.load(tmp_path / "weights")
    (tmp_path / "text").write_text("a mask, but not quite\n" * 9)
    with pytest.raises(ValueError, match="text: not a whole"):
        Masks.load(tmp_path / "text")
    masks.save(tmp_path / "altered")
    content = bytearray((tmp_path / "altered").read_bytes())
    content[-1] ^= 1
    (tmp_path / "altered").write_bytes(content)
    with pytest.raises(ValueError, match="altered: the masks do not match their digest"):
        Masks.load(tmp_path / "altered")


def test_verify_names_the_layer_and_the_count(model, masks):
    masks.verify(model)
    with torch.no_grad():
        model[2].weight[~masks["2.weight"]] = 1.0
    with pytest.raises(ValueError, match=r"2\.weight \(30 of 60\)"):
        masks.verify(model)
    masks.apply(model)
    masks.verify(model)


def test_a_nan_outside_the_mask_does_not_pass_for_zero(model, masks):
    with torch.no_grad():
        model[2].weight[~masks["2.weight"]] = float("nan")
    with pytest.raises(ValueError, match=r"2\.weight"):
        masks.verify(model)


def test_apply_names_missing_parameters_and_wrong_shapes(model, masks):
    with pytest.raises(ValueError, match=r"absent from the model: 2\.weight; nearest"):
        masks.apply(model[:2])
    with pytest.raises(ValueError, match=r"0\.weight has shape \[3, 4, 3, 3\]"):
        masks.apply(nn.Sequential(nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(12, 5)))


def test_masks_follow_a_backbone_into_a_detector_and_report_what_they_leave(model, masks):
    detector = nn.ModuleDict(
        {"backbone": nn.ModuleDict({"body": model[:2]}), "head": nn.Linear(4, 4)}
    )
    renamed = masks.renamed({"": "backbone.body."})
    kept, dropped = renamed.fitted_to(detector)
    assert list(kept) == ["backbone.body.0.weight"]
    assert dropped == ["backbone.body.2.weight"]
    assert kept.pattern == masks.pattern
    kept.verify(detector)


def test_masks_of_which_nothing_fits_are_refused(model, masks):
    with pytest.raises(ValueError, match=r"all of them\): backbone\.0\.weight"):
        masks.renamed({"": "backbone."}).fitted_to(model)


def test_renaming_takes_the_longest_prefix_or_a_function_and_refuses_merges(masks):
    assert list(masks.renamed({"": "x.", "2.": "head."})) == ["x.0.weight", "head.weight"]
    assert list(masks.renamed({"2.": "head."})) == ["0.weight", "head.weight"]
    assert list(masks.renamed(str.upper)) == ["0.WEIGHT", "2.WEIGHT"]
    with pytest.raises(ValueError, match="merges 2 names into 1"):
        masks.renamed(lambda name: "same")


def test_select_keeps_the_named_and_refuses_the_unknown(masks):
    assert list(masks.select(["2.weight"])) == ["2.weight"]
    with pytest.raises(ValueError, match="unknown mask: 2.wieght; nearest.*2.weight"):
        masks.select(["2.wieght"])


def test_only_bool_masks_are_accepted():
    with pytest.raises(ValueError, match="torch.float32; only torch.bool"):
        Masks({"w": torch.ones(4, 4)}, {}, "c4")


def test_masks_on_another_device_keep_their_description(masks):
    moved = masks.to("meta")
    assert moved["0.weight"].is_meta
    assert (moved.pattern, moved.rule) == (masks.pattern, masks.rule)
