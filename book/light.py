"""A Sphinx extension: pages that load at most 2 MiB, theme and mathematics with them.

The theme draws its icons by a style sheet with fonts, and again by a script of 1.5 MB. The style
sheet is enough, and a browser fetches those of its fonts that a page uses. Figures have few
colours: with a palette each takes a third of the bytes.
"""

import base64
import io
import re
from pathlib import Path

from PIL import Image

TWICE = re.compile(
    r'\s*<script src="[^"]*/fontawesome/[^"]*/js/all\.min\.js[^"]*"></script>'
    r'|\s*<link rel="preload" as="font"[^>]*/fontawesome/[^>]*/fa-(?:brands|regular)[^>]*/>'
)
SLIDER = 32
"""Colours of a drawing under a slider, of which a page holds many."""
INSIDE = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")


def lighten(app, error: Exception | None) -> None:
    """Make the written pages and their figures lighter."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir)
        for page in folder.rglob("*.html"):
            text = TWICE.sub("", page.read_text(encoding="utf-8"))
            page.write_text(INSIDE.sub(_encoded, text), encoding="utf-8")
        for picture in (folder / "_images").glob("*.png"):
            picture.write_bytes(paletted(picture.read_bytes()))


def paletted(data: bytes, colours: int = 256) -> bytes:
    """Write a PNG with a palette; as it was where that is no smaller."""
    held, picture = io.BytesIO(), Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    flat.quantize(colours, dither=Image.Dither.NONE).save(held, "png", optimize=True)
    return min(data, held.getvalue(), key=len)


def _encoded(found: re.Match) -> str:
    return base64.b64encode(paletted(base64.b64decode(found[0]), SLIDER)).decode()


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True}
