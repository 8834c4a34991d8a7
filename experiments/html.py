"""Figures for a self-contained HTML page; its other parts are those of ``frcnn.survey.html``."""

import base64

from experiments.style import DPI
from frcnn.survey.html import heading


def figure(title: str, caption: str, png: bytes) -> str:
    """A figure of `experiments.style.png` under a heading, if it has one."""
    data = base64.b64encode(png).decode()
    # Its size on paper: then its text is as large as the page's.
    width = int.from_bytes(png[16:20]) * 96 // DPI
    image = f'<img alt="{caption}" width="{width}" src="data:image/png;base64,{data}">'
    return f'{heading(title)}{image}\n<p class="note">{caption}</p>'
