"""Find, read and decode images: upright RGB, and a digest of the file's content for each.

A file is read once, and the same bytes are hashed and decoded, so that features always belong to the digest
under which they are stored. Images that cannot be used are skipped, with the reason. torch is only imported
when an image is decoded, and only if the chosen decoder needs it.
"""

from __future__ import annotations

from featx.images.columns import ManifestOptions
from featx.images.decode import decode_picture, picture_size
from featx.images.decoders import DECODERS, resolve_decoder
from featx.images.empty import absent_images, likely_cause, nothing_left
from featx.images.find import ImageSet, Skipped, load_images, load_paths
from featx.images.golden import GOLDEN_PICTURES, golden_pictures
from featx.images.labels import match_labels
from featx.images.picture import ImageSource, Picture, image_digest, read_digests, read_picture
from featx.images.policy import MAX_PIXELS, DecodePolicy
from featx.images.ranges import choose_range, decode_to_see
from featx.remote import RemotePath
from featx.tables import escape_name

__all__ = [
    "DECODERS",
    "GOLDEN_PICTURES",
    "MAX_PIXELS",
    "DecodePolicy",
    "ImageSet",
    "ImageSource",
    "ManifestOptions",
    "Picture",
    "RemotePath",
    "Skipped",
    "absent_images",
    "choose_range",
    "decode_picture",
    "decode_to_see",
    "escape_name",
    "golden_pictures",
    "image_digest",
    "likely_cause",
    "load_images",
    "load_paths",
    "match_labels",
    "nothing_left",
    "picture_size",
    "read_digests",
    "read_picture",
    "resolve_decoder",
]
