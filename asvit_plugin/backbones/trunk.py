"""A bare timm model that gives maps at power-of-two strides: what the backbones of all detector libraries are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models import get_model_input_config
from torch import nn

from ..checks import check_choice
from ..schedules.tokenizers import Tokenizer, find_tokenizer
from .alignment import StrideAlignment, cover
from .building import TrunkRecipe, build_model, plain
from .freezing import check_frozen_stages, freeze
from .net_file import resolve_net

NORMS = ("", "trunk", "LN")


class FeatureTrunk(nn.Module):
    """A timm model without classifier, cut behind the last map that is asked for.

    The model itself is ``model``, with all that timm's models offer (``group_matcher``, ``set_grad_checkpointing``,
    schedules, ``finish``); the maps are those of its ``forward_intermediates``. Where its strides are no powers of two
    it gets a resized image, see :class:`StrideAlignment`.

    Args:
        name: Name of a timm model, or ``local-dir:FOLDER`` or ``hf-hub:ID``, whose weights are always loaded; or the
            file net_STEP.yaml of a net that a search found, see :func:`resolve_net`.
        pretrained: Load timm's weights of that name.
        weights: Load others: a file, a folder or ``hf-hub:ID``, in any layout that the model reads. They must cover it.
        out_indices: Maps by their index in timm, negative ones from the end; None for the last of every stride from
            4 pixels on, which for plain ViTs is the last block.
        frozen_stages: Parts that learn nothing and stay in evaluation mode: -1 for none, 0 for the stem, n for the
            first n stages too (of plain ViTs, blocks).
        window_policy: "split" or "size" for models that have one (As-ViT); None for the model's own.
        img_size: Nominal image size for models that have one, in pixels of the model's own input; None for the
            model's own. Position embeddings are resampled to it.
        norm: "" for the maps as they are, "trunk" for the model's final norm where timm applies it, "LN" for a new
            layer norm over the channels of every map.
        drop_path_rate: Stochastic depth of the last block.
        grad_checkpointing: Recompute activations in the backward pass.
        in_chans: Image channels.
        model_kwargs: Further arguments of the model.

    Raises:
        ValueError: for a model without maps, and for what it does not take or have.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str = "",
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        window_policy: str | None = None,
        img_size: int | Sequence[int] | None = None,
        norm: str = "",
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        in_chans: int = 3,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        if not isinstance(model_kwargs or {}, Mapping):
            raise ValueError(f"model_kwargs is {model_kwargs!r}; it must be arguments by name")
        name, img_size, model_kwargs = resolve_net(name, img_size, model_kwargs or {})
        asked = dict(window_policy=window_policy, img_size=plain(img_size), drop_path_rate=drop_path_rate)
        asked = {field: value for field, value in asked.items() if value}  # the rest is the model's own
        arguments = {"in_chans": in_chans, **asked, **model_kwargs}
        arguments.pop("num_classes", None)  # a trunk has none
        if arguments.pop("features_only", False):
            raise ValueError("features_only is True; leave it out: a trunk gives its maps by itself")
        self.recipe = TrunkRecipe(name, bool(pretrained), weights or "", arguments)
        self.norm = norm
        self.frozen_stages = frozen_stages

        model = build_model(self.recipe)
        info = _feature_info(name, model)
        self.indices = _take(out_indices, info)
        self.model = self._prune(model)
        self._tokenizer = _find_tokenizer(self.model)
        self.alignment = StrideAlignment(name, [each["reduction"] for each in info])
        self.channels = tuple(info[index]["num_chs"] for index in self.indices)
        self.strides = tuple(self.alignment.stride(info[index]["reduction"]) for index in self.indices)
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in self.channels) if norm == "LN" else None
        if grad_checkpointing:
            self._checkpoint_gradients()
        if frozen_stages != -1:
            check_frozen_stages(self.model, frozen_stages)
        self.train()

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, C, H, W) of any size to maps (B, C_i, ceil(H / stride_i), ceil(W / stride_i)), finest first.

        Raises:
            ValueError: for images of another size than a model takes that takes only one.
        """
        height, width = x.shape[2], x.shape[3]
        maps = self._intermediates(self.alignment.align(x))
        coarseness = self._coarseness()
        maps = [cover(each, height, width, stride, coarseness) for each, stride in zip(maps, self.strides)]
        return maps if self.norms is None else [norm(each) for norm, each in zip(self.norms, maps)]

    def _coarseness(self) -> float:
        """Stride of the present tokens over that of the model's own: above 1 while a schedule shows it fewer."""
        return 1.0 if self._tokenizer is None else self._tokenizer.get()[0] / self._tokenizer.base_stride

    def _intermediates(self, x: torch.Tensor) -> list[torch.Tensor]:
        try:
            return self.model.forward_intermediates(
                x,
                indices=list(self.indices),
                norm=self.norm == "trunk",
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        except (AssertionError, IndexError, RuntimeError) as error:
            config = get_model_input_config(self.model)
            size, given = tuple(config["input_size"][1:]), tuple(x.shape[2:])
            # timm calls some models fixed that take other sizes nonetheless: hence only where it went wrong
            wrong_size = config["fixed_input_size"] and given != size
            if not wrong_size or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"the images are {given} in height and width; {self.recipe.name} takes only {size}: pad "
                "them to squares of that size, or set img_size if the model has one"
            ) from error

    def train(self, mode: bool = True) -> "FeatureTrunk":
        """As usual, except for what is frozen."""
        super().train(mode)
        if self.frozen_stages >= 0:  # again each time: castling and finishing change what there is to freeze
            freeze(self.model, self.frozen_stages)
        return self

    def keep_maps(self, indices: Sequence[int]) -> None:
        """Give only some of the maps from now on, and drop what only the others needed.

        Args:
            indices: Some of ``self.indices``.
        """
        places = [place for place, index in enumerate(self.indices) if index in indices]
        self.indices = tuple(self.indices[place] for place in places)
        self.channels = tuple(self.channels[place] for place in places)
        self.strides = tuple(self.strides[place] for place in places)
        if self.norms is not None:
            self.norms = nn.ModuleList(self.norms[place] for place in places)
        self._prune(self.model)

    def load_weights(self, weights: str) -> None:
        """Read weights into the trunk as at construction: a file, a folder or ``hf-hub:ID``; all of it or an error.

        Raises:
            ValueError: if they cannot be read, or do not cover the trunk.
        """
        recipe = TrunkRecipe(self.recipe.name, False, weights, self.recipe.arguments)
        state = self._prune(build_model(recipe)).state_dict()
        own = self.model.state_dict()
        differing = [name for name in own if name not in state or state[name].shape != own[name].shape]
        differing += [name for name in state if name not in own]
        if differing:
            raise ValueError(
                f"weights is {weights!r}; {recipe.name} with it differs in {differing[0]} from the trunk, "
                "which has changed since it was built"
            )
        self.model.load_state_dict(state)

    def _prune(self, model: nn.Module) -> nn.Module:
        """The model without what its maps do not need, so that no parameter is left without a gradient."""
        if self.norm == "trunk" and not list(getattr(model, "norm", nn.Identity()).parameters()):
            raise ValueError(f"norm is 'trunk'; {self.recipe.name} has no final norm of tokens, take '' or 'LN'")
        if hasattr(model, "prune_intermediate_layers"):
            model.prune_intermediate_layers(list(self.indices), prune_norm=self.norm != "trunk", prune_head=True)
        elif hasattr(model, "reset_classifier"):
            model.reset_classifier(0)
        return model

    def _checkpoint_gradients(self) -> None:
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ValueError(f"grad_checkpointing is True; {self.recipe.name} cannot recompute activations") from error


def _find_tokenizer(model: nn.Module) -> Tokenizer | None:
    """What progressive tokenization drives in a model; None where it cannot."""
    try:
        return find_tokenizer(model)
    except ValueError:
        return None


def _feature_info(name: str, model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"name is {name!r}; it must be a model with feature maps (timm's forward_intermediates)")
    return list(info)


def _take(out_indices: Sequence[int] | None, info: list[dict[str, Any]]) -> tuple[int, ...]:
    """Indices of maps, non-negative and in order."""
    if out_indices is None:
        last = {each["reduction"]: index for index, each in enumerate(info) if each["reduction"] >= 4}
        return tuple(sorted(last.values()))
    indices = plain(out_indices)
    count = len(info)
    whole = isinstance(indices, tuple) and all(isinstance(index, int) and -count <= index < count for index in indices)
    if not whole or not indices or len({index % count for index in indices}) < len(indices):
        raise ValueError(
            f"out_indices is {out_indices!r}; it must be different whole numbers from {-count} to {count - 1}: "
            f"the model has {count} maps"
        )
    return tuple(sorted(index % count for index in indices))
