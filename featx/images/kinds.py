"""Files that are not images: their kind, from their first bytes and their name, and what to do."""

from __future__ import annotations

import os

START_BYTES = 512
"""Bytes of a file that `kind_in_words` needs."""

SIGNATURES = (  # start of the file, what it is and what to do
    (b"<!DOCTYPE", "a web page, not an image; the download failed"),
    (b"<html", "a web page, not an image; the download failed"),
    (b"<svg", "an SVG drawing; convert it to PNG"),
    (b"<?xml", "an XML file, perhaps an SVG drawing; convert it to PNG"),
    (b"%PDF", "a PDF; convert its pages to PNG"),
    (b"%!PS", "a PostScript file; convert it to PNG"),
    (b"8BPS", "a Photoshop file; convert it to PNG"),
    (b"version https://git-lfs", "a Git LFS pointer, not the image; run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"PAR1", "a parquet table; name it .parquet to give it as a manifest"),
    (b"\x89HDF", "an HDF5 file; save its images as PNG"),
    (b"\x93NUMPY", "a NumPy array; load it in Python and give the array"),
    (b"SQLite format 3", "an SQLite database; export a table of paths and labels as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Office document; save the table as CSV"),
    (b"\x80\x04", "a pickle, which featx does not open; give folders, a manifest or arrays"),
    (b"\x80\x05", "a pickle, which featx does not open; give folders, a manifest or arrays"),
)

ZIPPED = {
    ".xlsx": "an Excel workbook; save the table as CSV",
    ".ods": "a spreadsheet; save the table as CSV",
    ".docx": "a Word document; save the table as CSV",
    ".npz": "a NumPy archive; load it in Python and give the array",
    ".featx": "a saved model; give images",
    ".pt": "a file of PyTorch; give images",
    ".pth": "a file of PyTorch; give images",
}
"""What a zip archive is, by the ending of its name."""

VIDEO_BRANDS = (b"isom", b"mp41", b"mp42", b"qt  ", b"avc1", b"M4V ", b"3gp4", b"3gp5")

UNKNOWN = "not an image of a kind that is known"


def kind_in_words(start: bytes, name: str = "") -> str:
    """Say what a file is that is no image, and what to do.

    Parameters
    ----------
    start : bytes
        Its first `START_BYTES` bytes, or all of it.
    name : str
        Its name.
    """
    ending = os.path.splitext(name)[1].lower()
    text = start[:64].lstrip()
    for signature, words in SIGNATURES:
        if text[: len(signature)].lower() == signature.lower():
            return words
    if start.startswith(b"PK\x03\x04"):
        return ZIPPED.get(ending, "a zip archive; unpack it")
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if (start[4:8] == b"ftyp" and start[8:12] in VIDEO_BRANDS) or start.startswith(b"\x1a\x45\xdf\xa3"):
        return "a video; save its frames as images"
    if not start or not _is_text(start):
        return UNKNOWN
    if ending in (".json", ".jsonl") or text.startswith((b"{", b"[")):
        return "a JSON file, not an image; write a CSV table with the columns path and label"
    if ending in (".yaml", ".yml"):
        return "a YAML file, not an image; write a CSV table with the columns path and label"
    return "text, not an image"


def _is_text(start: bytes) -> bool:
    if all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in start[:256]):
        return True
    try:
        words = start[:256].decode("utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" and error.start < len(start[:256]) - 3:
            return False
        words = start[: error.start].decode("utf-8-sig", "ignore")
    return bool(words) and all(character.isprintable() or character in "\t\r\n" for character in words)
