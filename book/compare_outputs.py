"""Compare what a chapter shows with its stored outputs: numbers nearly, pictures by sight.

nbval compares texts letter by letter and pictures not at all. Another processor rounds
differently, so a number may differ in its last digits and a line by less than one can see.
"""

import base64
import io
import re
from itertools import zip_longest

import numpy as np
from nbval.plugin import IPyNbCell
from PIL import Image

NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
UNITS = 2  # of the last digit printed, that a number with a decimal point may differ by
NOISE = 1e-5  # numbers below are rounding errors, whatever their digits
SHARE = 0.01  # that a whole number may differ by: 734 neurons or 741, never 2 groups or 3
PICTURE = "image/png"
WITHIN = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")  # a picture inside a page
BLOCK = 8  # pixels; a picture is compared block by block
VISIBLE = 40  # of 255: a block that differs by more looks different
CHANGED = 0.005  # share of blocks that may look different


def compare(cell: IPyNbCell, found: list, stored: list) -> bool:
    """Compare as nbval does, after replacing what is close to the stored output by it."""
    found = [close_to(cell, *pair) for pair in zip_longest(found, stored) if pair[0] is not None]
    exempt = tuple(kind for kind in cell.parent.skip_compare if kind != PICTURE)
    return IPyNbCell.compare_outputs(cell, found, stored, exempt)


def close_to(cell: IPyNbCell, found: dict, stored: dict | None) -> dict:
    """Copy an output, with every text or picture that is close to the stored one replaced by it."""
    copy = found.copy()
    for kind, value in found.items():
        other = (stored or {}).get(kind)
        if kind == "data" and other is not None:
            copy[kind] = close_to(cell, value, other)
        elif kind == PICTURE and other is not None and same_picture(value, other):
            copy[kind] = other
        elif isinstance(value, str) and isinstance(other, str) and kind != PICTURE:
            value = without_pictures(value, other)
            if value == other or same_text(cell.sanitize(value), cell.sanitize(other)):
                copy[kind] = other
    return copy


def without_pictures(found: str, stored: str) -> str:
    """Put the stored text's pictures in the place of those that look like them."""
    others = iter(WITHIN.findall(stored))

    def replaced(match: re.Match) -> str:
        other = next(others, None)
        same = other is not None and same_picture(match[1], other)
        return match[0].replace(match[1], other) if same else match[0]

    return WITHIN.sub(replaced, found)


def same_text(one: str, other: str) -> bool:
    """Tell whether two texts are equal but for the last digits of numbers and for spaces."""
    one, other = NUMBER.split(one), NUMBER.split(other)
    words = [[" ".join(part.split()) for part in text[::2]] for text in (one, other)]
    return words[0] == words[1] and all(map(same_number, one[1::2], other[1::2]))


def same_number(one: str, other: str) -> bool:
    """Tell whether two numbers, as printed, are close."""
    if "e-" in one and "e-" in other and max(abs(float(one)), abs(float(other))) < NOISE:
        return True
    if "." not in one and "." not in other:
        allowed = SHARE * abs(float(other))
    else:
        allowed = UNITS * max(last_digit(one), last_digit(other)) * 1.001
    return abs(float(one) - float(other)) <= allowed


def last_digit(number: str) -> float:
    """Find what one unit of the last digit is worth: 0.01 for 3.14, 100 for 4.2e3."""
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def same_picture(one: str, other: str) -> bool:
    """Tell whether two pictures (base64 of PNG) look the same."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in (one, other)]
    sizes = np.array([picture.size for picture in pictures])
    if (np.abs(sizes[0] - sizes[1]) > 0.02 * sizes[1]).any():
        return False
    blocks = [
        np.asarray(picture.convert("RGB").resize(sizes[1] // BLOCK, Image.Resampling.BOX), float)
        for picture in pictures
    ]
    different = np.abs(blocks[0] - blocks[1]).max(-1) > VISIBLE
    return bool(different.mean() <= CHANGED)
