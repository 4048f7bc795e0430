"""Spaces as YAML files: the one schema that searching, growing, evolution and scaling read.

name: tiny                       # optional: the file's name
model: scaled_vit                # timm's name
for_each: {block: [1, 2, 3]}     # optional: variables; a name or constraint with {block} in it stands once for each
decisions:
  depth: [2, 3]
  heads_{block}: [2, 4]
constraints:                     # optional: all must hold
  - heads_{block} >= depth
arguments:                       # of timm.create_model
  depth: "{depth}"
  num_heads: {for: block, of: "{heads_{block}}", if: "{block} <= depth"}   # for: [a, b] goes through both at once
pools:                           # optional: how often each choice stands in the pool that a supernet draws from, else 1
  depth: [3, 1]
scoring: {class_token: false}    # optional: arguments that differ while proxies score a net
growth:                          # optional: how nets grow; the other decisions are the seed's
  depths: [depth]                # each step adds 1 to one of them
  width: head_dim                # and multiplies this by 1.05 to 1.2
  start: {depth: 1, head_dim: 8}
  width_factor: 4                # of the net over the thin one that is scored
  arguments: {depth: "{depth}", head_dim: "{head_dim}", num_heads: 3}
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from .growth_rule import GrowthRule
from .space import Space
from .templates import repeat, unroll

_REQUIRED = ("model", "decisions", "arguments")
_KEYS = ("name", *_REQUIRED, "for_each", "constraints", "pools", "scoring", "growth")
_GROWTH_KEYS = ("depths", "width", "start", "width_factor", "arguments")


def list_spaces() -> list[str]:
    """Names of the spaces that come with the package."""
    files = resources.files(__package__).joinpath("spaces").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_space(source: str | Path) -> Space:
    """A space by its name (see :func:`list_spaces`) or from a YAML file.

    Raises:
        ValueError: if there is no such space, or saying what is wrong with it.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise ValueError(f"space is {str(source)!r}; there is no such file")
        return parse_space(path.read_text(), path.stem)
    if str(source) not in list_spaces():
        raise ValueError(f"space is {str(source)!r}; it must be one of {', '.join(list_spaces())}, or a YAML file")
    return parse_space(
        resources.files(__package__).joinpath("spaces").joinpath(f"{source}.yaml").read_text(), str(source)
    )


def parse_space(text: str, name: str) -> Space:
    """A space from YAML text; ``name`` is what it is called where it does not say."""
    fields = _read(text, name)
    unknown, missing = sorted(set(fields) - set(_KEYS)), [key for key in _REQUIRED if key not in fields]
    if unknown or missing:
        what = f"has an unknown key {unknown[0]!r}" if unknown else f"lacks the key {missing[0]!r}"
        raise ValueError(f"space {name!r} {what}; its keys are {', '.join(_KEYS)}")
    for key in ("for_each", "decisions", "arguments", "pools", "scoring", "growth"):
        if not isinstance(fields.get(key, {}), Mapping):
            raise ValueError(f"{key} of space {name!r} is {fields[key]!r}; it must be a mapping")
    variables = {key: _list(f"for_each {key!r}", values) for key, values in fields.get("for_each", {}).items()}
    constraints = _list("constraints", fields.get("constraints", []))
    if not isinstance(fields["model"], str):
        raise ValueError(f"model of space {name!r} is {fields['model']!r}; it must be a model's name")
    return Space(
        name=str(fields.get("name", name)),
        model=fields["model"],
        decisions=_decisions(fields["decisions"], variables, name),
        template={key: unroll(f"argument {key!r}", node, variables) for key, node in fields["arguments"].items()},
        constraints=tuple(filled for each in constraints for _, filled in repeat(str(each), variables)),
        scoring=fields.get("scoring", {}),
        growth=_growth(fields["growth"], variables, name) if "growth" in fields else None,
        pools=_pools(fields.get("pools", {}), variables, name),
    )


def _growth(fields: Mapping[str, Any], variables: Mapping[str, list], space: str) -> GrowthRule:
    unknown, missing = sorted(set(fields) - set(_GROWTH_KEYS)), [key for key in _GROWTH_KEYS if key not in fields]
    if unknown or missing:
        what = f"has an unknown key {unknown[0]!r}" if unknown else f"lacks the key {missing[0]!r}"
        raise ValueError(f"growth of space {space!r} {what}; its keys are {', '.join(_GROWTH_KEYS)}")
    for key in ("start", "arguments"):
        if not isinstance(fields[key], Mapping):
            raise ValueError(f"{key} of the growth of space {space!r} is {fields[key]!r}; it must be a mapping")
    starts = [(name, value) for text, value in fields["start"].items() for _, name in repeat(str(text), variables)]
    depths = [name for text in _list("depths of growth", fields["depths"]) for _, name in repeat(str(text), variables)]
    arguments = {key: unroll(f"argument {key!r}", node, variables) for key, node in fields["arguments"].items()}
    return GrowthRule(tuple(depths), str(fields["width"]), dict(starts), arguments, fields["width_factor"])


def _decisions(fields: Mapping[str, Any], variables: Mapping[str, list], space: str) -> dict[str, tuple[Any, ...]]:
    decisions: dict[str, tuple[Any, ...]] = {}
    for template, choices in fields.items():
        for _, name in repeat(str(template), variables):
            if not name.isidentifier():
                raise ValueError(f"decision {name!r} of space {space!r} must be a name of letters, digits and _")
            if name in decisions:
                raise ValueError(f"decision {name!r} of space {space!r} is declared twice")
            decisions[name] = tuple(_list(f"decision {name!r}", choices))
    return decisions


def _pools(fields: Mapping[str, Any], variables: Mapping[str, list], space: str) -> dict[str, tuple[int, ...]]:
    pools: dict[str, tuple[int, ...]] = {}
    for template, counts in fields.items():
        for _, name in repeat(str(template), variables):
            if name in pools:
                raise ValueError(f"pool of decision {name!r} of space {space!r} is declared twice")
            pools[name] = tuple(_list(f"pool of decision {name!r}", counts))
    return pools


def _list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {value!r}; it must be a list")
    return value


def _read(text: str, name: str) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("spaces need pyyaml: pip install 'asvit-plugin[search]'") from error

    class Loader(yaml.SafeLoader):
        """YAML's own would let the second of two equal keys win in silence."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            doubled = next((key for key in keys if keys.count(key) > 1), None)
            if doubled is not None:
                raise ValueError(f"space {name!r} has the key {doubled!r} twice (line {node.start_mark.line + 1} on)")
            return super().construct_mapping(node, deep)

    try:
        fields = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"space {name!r} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"space {name!r} must be a mapping with the keys {', '.join(_KEYS)}")
    return fields
