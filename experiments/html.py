"""A figure as part of an HTML page; the other parts are `frcnn.survey.html`'s."""

import base64

from experiments.style import DPI


def figure(title: str, caption: str, png: bytes) -> str:
    """A figure of `experiments.style.png` under a heading."""
    data = base64.b64encode(png).decode()
    # Its size on paper: then its text is as large as the page's.
    width = int.from_bytes(png[16:20]) * 96 // DPI
    image = f'<img alt="{caption}" width="{width}" src="data:image/png;base64,{data}">'
    return f'<h2>{title}</h2>\n{image}\n<p class="note">{caption}</p>'
