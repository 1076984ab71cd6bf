"""Several networks as one extractor: the blocks of all networks for the same images.

Blocks of the first network are named ``cut:pool:resize``; those of another network begin with its name, such
as ``resnet50.a1_in1k/layer3:avg:crop``. The digest of the weights in a spec identifies its network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.backbones import is_model_file
from featx.backbones.card import BackboneCard
from featx.extractor.extraction import Extraction
from featx.extractor.fixed import SpecExtractor
from featx.features import FeatureBlocks
from featx.images import ImageSource
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids

if TYPE_CHECKING:
    from featx.extractor import FeatureExtractor

Specs = dict[Any, FeatureSpec]
"""By `BlockName`."""


class Networks:
    """Fitted extractors of different networks that are called together.

    Parameters
    ----------
    extractors : sequence of FeatureExtractor or SpecExtractor
        Fitted; their blocks have different names.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor | SpecExtractor]) -> None:
        self.extractors = tuple(extractors)

    @property
    def card_(self) -> BackboneCard:
        """Card of the first network."""
        return self.cards_[0]

    @property
    def cards_(self) -> tuple[BackboneCard, ...]:
        """Cards of the networks."""
        return tuple(extractor.card_ for extractor in self.extractors)

    @property
    def backbone_files(self) -> dict[str, str]:
        """For digests of weights that came from a saved model: its path."""
        return {
            extractor.card_.weights: str(extractor.backbone)
            for extractor in self.extractors
            if is_model_file(extractor.backbone)
        }

    @property
    def specs_(self) -> Specs:
        """How each block is computed."""
        return {name: spec for extractor in self.extractors for name, spec in extractor.specs_.items()}

    def extract(
        self,
        sources: Sequence[ImageSource],
        *,
        on_error: str = "raise",
        names: Sequence[str] | None = None,
        store: FeatureStore | None = None,
        ids: Ids | None = None,
    ) -> Extraction:
        """See `FeatureExtractor.extract`. An image that one network cannot use is left out of all."""
        first = self.extractors[0].extract(sources, on_error=on_error, names=names, store=store, ids=ids)
        for extractor in self.extractors[1:]:
            kept = [sources[row] for row in first.kept]
            kept_names = None if names is None else [names[row] for row in first.kept]
            second = extractor.extract(kept, on_error=on_error, names=kept_names, store=store, ids=first.ids)
            first = _joined(first, second)
        return first


def gather(
    specs: Mapping[Any, FeatureSpec],
    cards: Sequence[BackboneCard],
    machine: Mapping[str, Any],
    *,
    backbones: Mapping[str, Any] | None = None,
    graphs: Mapping[str, bytes] | None = None,
) -> Networks:
    """Return an extractor of exactly these blocks, of one network or several.

    Parameters
    ----------
    specs : mapping of str to FeatureSpec
        How each block is computed.
    cards : sequence of BackboneCard
        Their networks.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    backbones : mapping of str to object, optional
        For digests of weights: the backbone to load, if it is not the one that the card names.
    graphs : mapping of str to bytes, optional
        For digests of weights: the converted network.
    """
    found = []
    for card in cards:
        own = {name: spec for name, spec in specs.items() if is_of(spec, card)}
        if own:
            backbone = (backbones or {}).get(card.weights, card.name)
            graph = (graphs or {}).get(card.weights)
            found.append(SpecExtractor(own, card, backbone=backbone, graph=graph, **machine))
    return Networks(found)


def side_by_side(extractors: Sequence[FeatureExtractor]) -> Networks:
    """Join extractors; blocks of all but the first get the name of their network."""
    for extractor in extractors[1:]:
        network = extractor.card_.name
        extractor.specs_ = {name.with_fields(network=network): s for name, s in extractor.specs_.items()}
    return Networks(extractors)


def is_of(spec: FeatureSpec, card: BackboneCard) -> bool:
    """Whether a spec belongs to a network."""
    return (spec.architecture, spec.weights) == (card.architecture, card.weights)


def _joined(first: Extraction, second: Extraction) -> Extraction:
    """Join the features of two networks, for the images that both could use."""
    widths = {name: blocks.width(name) for blocks in (first.blocks, second.blocks) for name in blocks}
    left = first.blocks.take(second.kept)
    owner = {name: blocks for blocks in (left, second.blocks) for name in blocks}
    return dataclasses.replace(
        first,
        ids=second.ids,
        kept=first.kept[np.asarray(second.kept)],
        skipped=[*first.skipped, *second.skipped],
        blocks=FeatureBlocks(
            {name: partial(blocks.__getitem__, name) for name, blocks in owner.items()},
            second.blocks.n_rows,
            widths=widths,
            readers={name: partial(blocks.part, name) for name, blocks in owner.items()},
        ),
        specs={**first.specs, **second.specs},
        computed=max(first.computed, second.computed),
        canaries=first.canaries + second.canaries,
        remarks=tuple(dict.fromkeys([*first.remarks, *second.remarks])),
        seconds=first.seconds + second.seconds,
        loading_s=first.loading_s + second.loading_s,
    )
