"""The words of torch, oneDNN and OpenVINO for a lack of memory."""

from __future__ import annotations

MEMORY_RAN_OUT = (
    "out of memory",
    "not enough memory",
    "can't allocate",
    "cannot allocate",
    "allocate memory",
    "bad_alloc",
    "alloc_cpu",
)
"""Phrases of errors that have no other cause, in lower case."""

ONEDNN_FAILED = (
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory",
    "could not create a descriptor",
)
"""Phrases of oneDNN, which computes on CPUs for torch and OpenVINO.

Its errors carry a status, such as `dnnl_out_of_memory`, but torch passes on the text only. The text names the
call that failed. It is the same for a lack of memory, for a network that the CPU cannot run, and for code
that the system does not allow to be executed.
"""


def lack_of_memory(error: BaseException) -> str | None:
    """Words for a message if memory ran out, or probably did; None if the error has another cause.

    Parameters
    ----------
    error : BaseException
        What a network raised.

    Returns
    -------
    str or None
        oneDNN's errors may have another cause; they are called probable, and quoted.
    """
    text = str(error)
    words = text.lower()
    if isinstance(error, MemoryError) or any(phrase in words for phrase in MEMORY_RAN_OUT):
        return "not enough memory"
    if any(phrase in words for phrase in ONEDNN_FAILED):
        return f'probably not enough memory (oneDNN says "{text.strip().splitlines()[0]}")'
    return None
