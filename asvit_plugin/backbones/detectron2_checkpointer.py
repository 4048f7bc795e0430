"""detectron2's checkpointer, for which weights of a timm model are no detector's."""

from pathlib import Path
from typing import Any

from timm.models import load_state_dict

from ..models.weight_sources import HUB
from ._detectron2 import DetectionCheckpointer
from .trunk import FeatureTrunk
from .weights import find_trunk, load_trunk_weights


class TimmCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that reads files in timm's layout into the trunk, strictly.

    detectron2's own finds none of their names in the detector, warns, and trains from random weights. Here a file,
    folder or ``hf-hub:ID`` with weights of the timm model goes through :func:`load_trunk_weights`; checkpoints of the
    detector, files of detectron2's model zoo and ``?matching_heuristics=True`` are read as ever.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As detectron2's; nothing but the trunk is read from a file in timm's layout.

        Raises:
            ValueError: for a file that is neither the detector's nor covers the trunk.
        """
        weights = self._timm_weights(path) if path else None
        if weights is None:
            return super().load(path, *args, **kwargs)
        load_trunk_weights(self.model, weights)
        return {}

    def _timm_weights(self, path: str) -> str | None:
        """Where the weights are on this machine or the hub; None for those that detectron2 reads itself."""
        if not any(isinstance(module, FeatureTrunk) for module in self.model.modules()):
            return None  # a detector of detectron2's own, which has no trunk to read them into
        if path.startswith(HUB) or Path(path).is_dir():
            return path
        if "?" in path or path.endswith((".pkl", ".pyth")):
            return None
        file = self.path_manager.get_local_path(path)
        if file.endswith((".safetensors", ".npz")):
            return file
        if not Path(file).is_file():
            return None  # detectron2 says so
        prefix = find_trunk(self.model)[0] + ".model."
        try:
            names = load_state_dict(file, use_ema=False)
        except Exception:  # detectron2 says what is wrong with it
            return None
        return None if any(name.startswith(prefix.lstrip(".")) for name in names) else file
