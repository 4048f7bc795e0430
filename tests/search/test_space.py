"""Spaces: those that come with the package, the YAML schema, and what it refuses."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from asvit_plugin import AsViTGenotype, NetworkDef
from asvit_plugin.search import Space, list_spaces, load_space
from asvit_plugin.search.expressions import Expression
from asvit_plugin.search.space_schema import parse_space

PUBLISHED = dict(K1=8, K2=4, K3=4, K4=4, S1=2, S2=1, S3=1, E1=3, E2=2, E3=4, E4=6, H=32)

BLOCKS = """
model: scaled_vit
for_each: {block: [1, 2, 3]}
decisions:
  depth: [2, 3]
  heads_{block}: [2, 4]
constraints: ["heads_{block} >= depth or depth == 3"]
arguments:
  embed_dim: 32
  head_dim: "{32 // 4}"
  depth: "{depth}"
  num_heads: {for: block, of: "{heads_{block}}", if: "{block} <= depth"}
"""

SUPERNET = """
model: vit_resnas
for_each: {block: [1, 2, 3], last: [3]}
decisions:
  dim1: [32, 24]
  dim2: [64, 48]
  heads1_{block}: [2, 1]
  heads2_{block}: [4, 3]
  mlp{block}: [96, 64]
  exists{last}: [1, 0]
arguments:
  network_def:
    join: ", "
    of:
      - "((4, {dim1})"
      - {for: block, of: "(1, ({dim1}, {heads1_{block}}, 16), ({dim1}, {mlp{block}}), 1)", join: ", "}
      - "(3, {dim1}, {dim2})"
      - {for: block, of: "(1, ({dim2}, {heads2_{block}}, 16), ({dim2}, {2 * mlp{block}}), {exists3})", join: ", "}
      - "(2, {dim2}, 10))"
"""


def test_the_papers_space() -> None:
    space = load_space("as_vit")
    assert space.size == 4_556_250
    assert len(space.decisions) == 12
    assert sum(map(len, space.decisions.values())) == 45
    assert space.arguments(PUBLISHED) == ("as_vit", {"genotype": "8,2,3|4,1,2|4,1,4|4,1,6|32"})
    assert space.fingerprint == "2c67b39015fd55cc"  # studies begun with one release go on with the next


def test_every_drawn_topology_is_a_genotype() -> None:
    space, rng = load_space("as_vit"), np.random.default_rng(0)
    for _ in range(50):
        choice = space.sample(rng)
        genotype = AsViTGenotype.parse(space.arguments(choice)[1]["genotype"])
        assert genotype.kernel_sizes == tuple(choice[f"K{stage}"] for stage in (1, 2, 3, 4))
        assert genotype.splits == (choice["S1"], choice["S2"], choice["S3"], 1)
        assert genotype.mlp_ratios == tuple(choice[f"E{stage}"] for stage in (1, 2, 3, 4))
        assert genotype.num_heads == choice["H"]


def test_plain_vits_are_built() -> None:
    space, rng = load_space("plain_vit"), np.random.default_rng(0)
    assert space.size == sum(
        space.allows(dict(zip(space.decisions, point))) for point in product(*space.decisions.values())
    )
    for _ in range(3):
        choice = space.sample(rng)
        name, arguments = space.arguments(choice)
        with torch.device("meta"):
            model = timm.create_model(name, **arguments)
        assert len(model.blocks) == choice["depth"]
        assert model.embed_dim == choice["num_heads"] * choice["head_dim"]
        assert model.patch_embed.grid_size == (choice["img_size"] // choice["patch_size"],) * 2


def test_blocks_are_repeated_and_dropped() -> None:
    space = parse_space(BLOCKS, "blocks")
    assert list(space.decisions) == ["depth", "heads_1", "heads_2", "heads_3"]
    assert space.constraints == tuple(f"heads_{block} >= depth or depth == 3" for block in (1, 2, 3))
    choice = dict(depth=2, heads_1=2, heads_2=4, heads_3=4)
    expected = {"embed_dim": 32, "head_dim": 8, "depth": 2, "num_heads": [2, 4]}
    assert space.arguments(choice) == ("scaled_vit", expected)
    assert len(timm.create_model("scaled_vit", **expected).blocks) == 2


def test_a_supernets_space_fits_the_schema() -> None:
    space, rng = parse_space(SUPERNET, "supernet"), np.random.default_rng(0)
    assert space.size == 2 ** len(space.decisions)
    for _ in range(10):
        choice = space.sample(rng)
        net = NetworkDef.parse(space.arguments(choice)[1]["network_def"])
        assert net.dims == (choice["dim1"], choice["dim2"])
        assert [block.num_heads for block in net.stages[1]] == [choice[f"heads2_{block}"] for block in (1, 2, 3)]
        assert all(block.exists == bool(choice["exists3"]) for block in net.stages[1])


def test_points_are_drawn_evenly() -> None:
    space = Space("s", "m", {"a": (1, 2, 3), "b": (1, 2, 3), "c": ("x", "y")}, {}, ("a < b",))
    assert space.size == 6
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(space.sample(rng).values()) for _ in range(3000))
    assert len(drawn) == 6
    assert all(400 < times < 600 for times in drawn.values())


def test_too_many_tied_decisions_are_not_counted() -> None:
    names = [f"d{i}" for i in range(20)]
    rule = f"{' + '.join(names)} >= 10"
    space = Space("s", "m", dict.fromkeys(names, (0, 1)), {}, (rule,))
    assert space.size is None
    assert space.allows(space.sample(np.random.default_rng(0)))


@pytest.mark.parametrize(
    "choice, message",
    [
        (PUBLISHED | {"K1": 9}, r"decision 'K1' is 9; it must be one of \[4, 5, 6, 7, 8\]"),
        ({"K1": 8}, r"choice has the decisions \['K1'\]; it must have"),
        (PUBLISHED | {"K9": 1}, "'K9'"),
    ],
)
def test_choices_outside_are_refused(choice: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_space("as_vit").check(choice)


def test_a_broken_constraint_is_named() -> None:
    choice = dict(depth=12, num_heads=3, head_dim=64, mlp_ratio=4, patch_size=14, img_size=256)
    with pytest.raises(ValueError, match="'img_size % patch_size == 0'.*patch_size=14, img_size=256"):
        load_space("plain_vit").arguments(choice)


MINIMAL = "model: m\ndecisions: {a: [1, 2], b: [1, 2]}\narguments: {x: '{a}'}\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: m", "space 's' lacks the key 'decisions'"),
        (MINIMAL + "sizes: 3", "unknown key 'sizes'"),
        (MINIMAL + "model: n", "the key 'model' twice"),
        ("[1, 2", "is no YAML"),
        ("just text", "must be a mapping"),
        ("model: m\ndecisions: {}\narguments: {}", "no decisions"),
        ("model: m\ndecisions: []\narguments: {}", "decisions of space 's' is \\[\\]; it must be a mapping"),
        ("model: m\ndecisions: {a: []}\narguments: {}", "decision 'a' of space 's' has no choices"),
        ("model: m\ndecisions: {a: 3}\narguments: {}", "decision 'a' is 3; it must be a list"),
        ("model: m\ndecisions: {a: [1, 1]}\narguments: {}", "has a choice twice"),
        ("model: m\ndecisions: {a: [[1]]}\narguments: {}", "scalars only"),
        ("model: m\ndecisions: {a b: [1]}\narguments: {}", "'a b' of space 's' must be a name"),
        ("model: m\nfor_each: {i: [1]}\ndecisions: {'a{i}': [1], a1: [2]}\narguments: {}", "'a1'.*declared twice"),
        ("model: 3\ndecisions: {a: [1]}\narguments: {}", "model of space 's' is 3"),
        (MINIMAL + "constraints: [a > b, b > a]", "contradicts itself: none of 4 points meets .* a > b; b > a"),
        (MINIMAL + "constraints: [a > c]", "names 'c', which is no decision"),
        (MINIMAL + "constraints: [a >]", "cannot be read"),
        (MINIMAL + "constraints: [a % 0 == 1]", "cannot be computed for a=1"),
        (MINIMAL.replace("{a}", "{a"), "brace without its partner"),
        (MINIMAL.replace("'{a}'", "{each: b}"), "argument 'x' has a mapping of \\['each'\\]"),
        (MINIMAL.replace("'{a}'", "{for: i, of: 1}"), "argument 'x' repeats over 'i'"),
        (MINIMAL.replace("'{a}'", "{of: [1], join: 2}"), "argument 'x' has join 2"),
    ],
)
def test_bad_spaces_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space(text, "s")


def test_contradictions_are_found_where_points_are_too_many() -> None:
    names = [f"d{i}" for i in range(20)]
    with pytest.raises(ValueError, match="none of 10000 random points"):
        Space("s", "m", dict.fromkeys(names, (0, 1)), {}, (f"{' + '.join(names)} > 20",))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "a.real",
        "[x for x in a]",
        "a ** 9",
        "a[0]",
        "(lambda: 1)()",
        "f'{a}'",
        "open(a)",
        "max(a, key=b)",
        "a := 1",
        "a << 9",
    ],
)
def test_expressions_are_no_programs(text: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        Expression(text)


def test_texts_are_not_multiplied() -> None:
    with pytest.raises(ValueError, match="'aaaa' is no number"):
        Expression("'aaaa' * n")({"n": 10**12})


@pytest.mark.parametrize(
    "text, value",
    [
        ("a * (b + 1) // 2 % 5", 4),
        ("a if b > 5 else max(a, b)", 3),
        ("not a in [1, 2] and -b < 0", True),
        ("1 < b <= 2", True),
        ("str(a) + 1 if False else int(b / 2)", 1),
    ],
)
def test_expressions(text: str, value: int) -> None:
    assert Expression(text)({"a": 3, "b": 2}) == value


def test_files_and_names(tmp_path: Path) -> None:
    assert {"as_vit", "plain_vit", "sr_tiny_mh"} <= set(list_spaces())
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL)
    assert load_space(file).name == "mine"
    assert load_space(file).fingerprint == parse_space(MINIMAL + "name: other", "x").fingerprint
    assert load_space(file).fingerprint != parse_space(MINIMAL.replace("[1, 2]}", "[2, 1]}"), "x").fingerprint
    with pytest.raises(ValueError, match="'nosuch'; it must be one of as_vit, .*, or a YAML file"):
        load_space("nosuch")
    with pytest.raises(ValueError, match="no such file"):
        load_space(tmp_path / "nosuch.yaml")
