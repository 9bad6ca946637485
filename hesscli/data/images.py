"""Images and their classes, as `pixel_values` of one shape."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import torch

from hesscli.data.slice import Sequence
from hesscli.data.values import describe
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hesscli.data.labels import Labels
    from hesscli.data.reading import Request
    from hesscli.data.rows import Row


def read_images(request: Request, labels: Labels) -> list[Sequence]:
    """The first `limit` rows: images through the checkpoint's processor, or `pixel_values` as they stand.

    Raises:
        UsageError: a row that holds no image, pixels that are not finite, images of different shapes, or no label.
    """
    model, column = request.model, request.column
    as_they_stand = column == "pixel_values"
    pixels = _as_they_stand if as_they_stand else _through(model.image_processor(), model.num_channels)
    kept: list[Sequence] = []
    for number, row in zip(range(request.limit), request.source.rows, strict=False):
        values = pixels(number, row, column)
        if kept and values.shape != kept[0].inputs["pixel_values"].shape:
            first = _times(kept[0].inputs["pixel_values"])
            remedy = "give images of one shape" if as_they_stand else "have the image processor crop them to one shape"
            raise UsageError(column, f"row {number} is {_times(values)}, the first is {first}", remedy)
        if values.shape[0] != model.num_channels:
            what = f"row {number} is {_times(values)}, and the model reads {model.num_channels} channels"
            raise UsageError(column, what, "give channels first")
        kept.append(Sequence({"pixel_values": values}, labels.target(number, row)))
        request.advance(len(kept))
    return kept


def _as_they_stand(number: int, row: Row, column: str) -> torch.Tensor:
    try:
        values = torch.as_tensor(row.get(column), dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if values.dim() != 3 or not values.numel():
        what = f"row {number} holds no numbers of (channels, height, width)"
        raise UsageError(column, what, "give three levels of lists of one length each")
    if not values.isfinite().all():
        raise UsageError(column, f"row {number} holds NaN or Inf", "give numbers")
    return values


def _through(processor: Callable[..., Any], channels: int) -> Callable[[int, Row, str], torch.Tensor]:
    def pixels(number: int, row: Row, column: str) -> torch.Tensor:
        picture = _coloured(number, _picture(number, row.get(column), column), column, channels)
        values = processor(images=[picture], return_tensors="pt")["pixel_values"][0]
        if values.dim() != 3:
            what = f"the image processor gives {_times(values)} for row {number}, not channels x height x width"
            raise UsageError(column, what, "give a dataset with a column pixel_values")
        return values.to(torch.float32)

    return pixels


def _coloured(number: int, picture: Any, column: str, channels: int) -> Any:
    """In colours, or in grey for a model of one channel; what is transparent keeps the colour that it has.

    Numbers wider than 8 bits are refused: Pillow would cut them off at 255, and the image would be white.
    """
    if picture.mode[0] in "IF":  # I;16 of a medical or depth image, I, F
        what = f"row {number} holds {'fractions' if picture.mode == 'F' else 'numbers of more than 8 bits'}"
        raise UsageError(column, what, "scale it to 0 ... 255 and save it so, or give a column pixel_values")
    if picture.mode in ("P", "PA"):  # whose transparency Pillow would warn of
        picture = picture.convert("RGBA")
    return picture.convert("L" if channels == 1 else "RGB")


def _picture(number: int, value: Any, column: str) -> Any:
    """A Pillow image, turned as its camera was held, from what `datasets` or a file gives."""
    from PIL import Image, ImageOps

    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # the storage of `datasets.Image`
        value = value["bytes"]
    if not isinstance(value, bytes | Image.Image):
        raise UsageError(column, f"row {number} holds {describe(value)}, no image", "name a column of images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that are cut off: the picture is whole, or an error is raised
            picture = Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = f"row {number} cannot be read as an image"
        raise UsageError(column, what, "leave it out, or save it as png") from error


def _times(values: torch.Tensor) -> str:
    return "x".join(str(n) for n in values.shape)
