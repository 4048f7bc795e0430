"""The genotype notation: reading, printing, refusing, and the nets behind it."""

import random
from collections.abc import Iterator

import pytest
import timm
import torch

from asvit_plugin import AsViTGenotype

SMALL = "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88"
SPACE = {
    "K": [(4, 5, 6, 7, 8), (2, 3, 4), (2, 3, 4), (2, 3, 4)],
    "S": [(2, 4, 8), (1, 2, 4), (1, 2), (1,)],
    "E": [(2, 3, 4, 5, 6)] * 4,
}
HEADS = (16, 32, 64)


def search_space(count: int, seed: int = 0) -> Iterator[str]:
    """Short genotypes from the paper's search space, which has 4,556,250 of them."""
    rng = random.Random(seed)
    for _ in range(count):
        fields = zip(*([rng.choice(options) for options in stages] for stages in SPACE.values()))
        yield "|".join([*(",".join(map(str, stage)) for stage in fields), str(rng.choice(HEADS))])


def test_size_of_the_search_space() -> None:
    size = len(HEADS)
    for stages in SPACE.values():
        for options in stages:
            size *= len(options)
    assert size == 4_556_250


def test_long_form() -> None:
    gene = AsViTGenotype.parse(SMALL)
    assert gene.kernel_sizes == (8, 4, 4, 4)
    assert gene.splits == (2, 1, 1, 1)
    assert gene.mlp_ratios == (3, 2, 4, 6)
    assert gene.depths == (3, 1, 4, 2)
    assert (gene.num_heads, gene.embed_dim) == (32, 88)
    assert gene.dims == (88, 176, 352, 704)
    assert gene.heads == (4, 8, 16, 32)
    assert str(gene) == SMALL


def test_short_form_takes_depth_1_and_width_32() -> None:
    gene = AsViTGenotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|64")
    assert gene.depths == (1, 1, 1, 1)
    assert gene.dims == (32, 64, 128, 256)
    assert gene.heads == (8, 16, 32, 64)
    assert str(gene) == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|64,32"


def test_forms_mix_and_spaces_are_read_over() -> None:
    assert AsViTGenotype.parse(" 8, 2,3|4,1,2|4,1,4|4,1,6|32, 88\n").embed_dim == 88
    assert AsViTGenotype.parse("8,2,3,2|4,1,2,2|4,1,4,2|4,1,6,2|32").depths == (2, 2, 2, 2)


def test_a_genotype_parses_to_itself() -> None:
    gene = AsViTGenotype.parse(SMALL)
    assert AsViTGenotype.parse(gene) is gene
    assert AsViTGenotype((8, 4, 4, 4), (2, 1, 1, 1), (3, 2, 4, 6), (3, 1, 4, 2), 32, 88) == gene
    assert len({gene, AsViTGenotype.parse(SMALL)}) == 1


def test_channels_are_capped_at_1024() -> None:
    assert AsViTGenotype.parse(SMALL.replace("88", "180")).dims == (180, 360, 720, 1024)


def test_round_trips_over_the_search_space() -> None:
    for text in search_space(200):
        gene = AsViTGenotype.parse(text)
        assert AsViTGenotype.parse(str(gene)) == gene
        stages, heads = text.rsplit("|", 1)
        assert str(gene) == stages.replace("|", ",1|") + f",1|{heads},32"


@pytest.mark.parametrize("text", list(search_space(6, seed=1)))
@pytest.mark.parametrize("width", [8, 16])
def test_forward_over_the_search_space(text: str, width: int) -> None:
    gene = AsViTGenotype.parse(f"{text},{width}")
    model = gene.build(num_classes=3, img_size=64).eval()
    assert model.genotype == str(gene)
    assert [info["num_chs"] for info in model.feature_info] == list(gene.dims)
    for stage, heads, ratio, dim in zip(model.stages, gene.heads, gene.mlp_ratios, gene.dims):
        assert stage.blocks[0].attn.num_heads == heads
        assert stage.blocks[0].mlp.fc1.out_features == ratio * dim
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


REFUSED = {
    "empty": ("", "has 0 stages"),
    "heads_alone": ("32", "has 0 stages"),
    "three_stages": ("8,2,3|4,1,2|4,1,4|32", "has 3 stages"),
    "five_stages": ("8,2,3|4,1,2|4,1,4|4,1,4|4,1,4|32", "has 5 stages"),
    "too_few_fields": ("8,2|4,1|4,1|4,1|32", r"stages of \[2\] fields"),
    "too_many_fields": ("8,2,3,1,1|4,1,2,1,1|4,1,4,1,1|4,1,6,1,1|32", r"stages of \[5\] fields"),
    "mixed_lengths": ("8,2,3,3|4,1,2|4,1,4,4|4,1,6,2|32,88", r"stages of \[3, 4\] fields"),
    "long_tail": ("8,2,3|4,1,2|4,1,4|4,1,6|32,88,1", "ends in 3 fields"),
    "empty_tail": ("8,2,3|4,1,2|4,1,4|4,1,6|", "H is ''; it must be a whole number"),
    "kernel_1": ("8,2,3|1,1,2|4,1,4|4,1,6|32", r"K2 \(kernel size\) is 1; .* at least 2"),
    "split_0": ("8,2,3|4,1,2|4,0,4|4,1,6|32", r"S3 \(window split\) is 0; .* at least 1"),
    "ratio_0": ("8,2,0|4,1,2|4,1,4|4,1,6|32", r"E1 \(MLP ratio\) is 0"),
    "depth_0": ("8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,0|32,88", r"L4 \(depth\) is 0"),
    "negative": ("8,-2,3|4,1,2|4,1,4|4,1,6|32", r"S1 \(window split\) is -2"),
    "underscore": ("8_0,2,3|4,1,2|4,1,4|4,1,6|32", "K1 is '8_0'; it must be a whole number"),
    "float": ("8,2,3.5|4,1,2|4,1,4|4,1,6|32", "E1 is '3.5'; it must be a whole number"),
    "text": ("8,2,3|4,one,2|4,1,4|4,1,6|32", "S2 is 'one'; it must be a whole number"),
    "heads_4": ("8,2,3|4,1,2|4,1,4|4,1,6|4", r"H \(heads of the last stage\) is 4; .* at least 8"),
    "width_0": ("8,2,3|4,1,2|4,1,4|4,1,6|32,0", r"width \(channels of the first stage\) is 0"),
    "width_below_heads": ("8,2,3|4,1,2|4,1,4|4,1,6|64,4", "width is 4, which gives stage 1 4 channels for 8 heads"),
    "cap_below_heads": ("8,2,3|4,1,2|4,1,4|4,1,6|2048,512", "stage 4 1024 channels for 2048 heads"),
    "width_text": ("8,2,3|4,1,2|4,1,4|4,1,6|32,wide", "width is 'wide'; it must be a whole number"),
    "none": (None, "genotype is None; it must be a string"),
    "list": ([8, 2, 3], r"genotype is \[8, 2, 3\]; it must be a string"),
}


@pytest.mark.parametrize("value, words", REFUSED.values(), ids=REFUSED)
def test_bad_genotype_is_refused_in_one_sentence(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        AsViTGenotype.parse(value)
    assert "\n" not in str(caught.value)


def test_create_model_refuses_a_bad_genotype() -> None:
    with pytest.raises(ValueError, match="E1 is '3.5'"):
        timm.create_model("as_vit", genotype=REFUSED["float"][0], device="meta")


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(splits=(1, 1, 1)), "field S has 3 values; 4 stages"),
        (dict(kernel_sizes=(4, 2, 2, 2.5)), r"K4 \(kernel size\) is 2.5"),
        (dict(num_heads="32"), "H .* is '32'"),
    ],
    ids=["length", "float", "text"],
)
def test_fields_are_checked_without_parsing_too(kwargs: dict, words: str) -> None:
    fields = dict(kernel_sizes=(4, 2, 2, 2), splits=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
    with pytest.raises(ValueError, match=words):
        AsViTGenotype(**{**fields, **kwargs})
