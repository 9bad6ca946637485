"""Silence around libraries that print: hess speaks through events, and an error is one line."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging

_URL = re.compile(r"[a-z]+://\S+")
_LONGEST = 160  # characters of a library's own words inside one of our lines
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"  # transformers: modeling_utils._get_resolved_checkpoint_files


@contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers and huggingface_hub draw no bars, log errors only, and ask nobody to convert weights.

    Everything is as it was afterwards.
    """
    hub = logging.getLogger("huggingface_hub")
    hub_level, verbosity = hub.level, transformers_logging.get_verbosity()
    hub_bars, bars = not are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    conversion = os.environ.get(_NO_CONVERSION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub.setLevel(logging.ERROR)
        transformers_logging.set_verbosity_error()
        disable_progress_bars()
        transformers_logging.disable_progress_bar()
        os.environ[_NO_CONVERSION] = "1"
        try:
            yield
        finally:
            hub.setLevel(hub_level)
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
            # Last: transformers switches the hub's bars along with its own.
            (enable_progress_bars if hub_bars else disable_progress_bars)()
            if conversion is None:
                del os.environ[_NO_CONVERSION]
            else:
                os.environ[_NO_CONVERSION] = conversion


def in_short(error: BaseException) -> str:
    """The first sentence of a library's error on one line, without addresses (they may hold a token)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = _URL.sub("(address)", " ".join(lines[0].split())) if lines else type(error).__name__
    text = text.split(". ")[0].rstrip(".")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
