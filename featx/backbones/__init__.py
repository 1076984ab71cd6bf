"""A timm network with its weights' origin, its cuts, its transform and its runtime. No torch at import."""

from featx.backbones.card import BackboneCard, Tap
from featx.backbones.catalog import (
    ModelRow,
    count_operations,
    download,
    list_models,
    local_names,
    nearest_names,
)
from featx.backbones.finetuned import is_model_file
from featx.backbones.loading import load_backbone, open_card

__all__ = [
    "BackboneCard",
    "ModelRow",
    "Tap",
    "count_operations",
    "download",
    "is_model_file",
    "list_models",
    "load_backbone",
    "local_names",
    "nearest_names",
    "open_card",
]
