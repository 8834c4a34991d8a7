"""Parts of a self-contained HTML page: pictures are embedded, and nothing else is loaded."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto;
  padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
code { font: 13px ui-monospace, monospace; background: #f3f3f3; padding: .1em .3em; }
li { margin: .25rem 0; }
.problems { background: #fff6e0; border-left: 4px solid #e69f00; padding: .2rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } tbody tr:hover { background: #f8f8f8; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { white-space: normal; min-width: 11rem; max-width: 20rem; }
td code { background: none; padding: 0; }
p.note { color: #555; font-size: 13px; max-width: 75ch; }
img { max-width: 100%; } .whole img { max-width: none; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(var(--side), 1fr)); }
.pictures figure { margin: 0; } .pictures img { width: 100%; height: var(--side);
  object-fit: contain; background: #f3f3f3; }
.pictures figcaption { color: #555; font-size: 13px; overflow-wrap: anywhere; }
/* The answer of a comparison, on the first screen. */
.facts { color: #555; font-size: 13px; margin: 0; } .headline { font-size: 1.15rem;
  font-weight: 600; margin: .4rem 0 .6rem; max-width: 75ch; }
.forest { font-size: 12px; line-height: 1.3; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.forest .row { display: grid; grid-template-columns: minmax(7rem, 19rem) 1fr 2.8rem; gap: .5rem;
  align-items: center; break-inside: avoid; }
.forest .row:hover { background: #f3f3f3; }
.forest code { background: none; padding: 0; font-size: 11px; text-align: right;
  overflow-wrap: anywhere; }
.forest .group { font-weight: 600; margin: .4rem 0 .1rem; }
.forest .value { text-align: right; font-variant-numeric: tabular-nums; }
.track, .axis { position: relative; align-self: stretch; min-height: 15px; }
.track i, .axis i { position: absolute; font-style: normal; }
.bar { height: 2px; top: calc(50% - 1px); } .region { height: 100%; background: #009e7320; }
.zero { height: 100%; border-left: 1px solid #222; }
.seen { height: 100%; border-left: 1px dotted #888; }
.mark { top: 50%; transform: translate(-50%, -50%); font-size: 11px; line-height: 1; }
.tick { transform: translateX(-50%); color: #555; font-size: 11px; }
details { border-top: 1px solid #ddd; padding: .4rem 0; }
summary { cursor: pointer; font-weight: 600; }
thead th { cursor: pointer; }
@media (max-width: 600px) {
  body { margin: .5rem auto; padding: 0 .7rem; } h1 { margin: .2rem 0; }
  .forest .row { grid-template-columns: 8.5rem 1fr 2.2rem; gap: .3rem; }
  .headline { font-size: 1rem; } .forest code { font-size: 9px; }
  td:first-child { min-width: 8rem; } }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
  code { font-size: inherit; } table { font-size: 9px; }
  th, td { padding: .15rem .3rem; } .wide { overflow: visible; }
  td:first-child { min-width: 6rem; } }
"""
# A click on a column's name sorts by it, a second one the other way; paper has everything open.
SCRIPT = """
document.querySelectorAll('thead th').forEach(th => th.onclick = () => {
  const body = th.closest('table').tBodies[0], at = th.cellIndex;
  const key = row => { const text = row.cells[at].textContent.replace('< ', '');
    const value = parseFloat(text); return isNaN(value) ? text : value; };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : +(a > b))
    : typeof a === 'string' ? 1 : -1;
  const sign = th.dataset.up = -(th.dataset.up || -1);
  [...body.rows].sort((a, b) => sign * compare(key(a), key(b))).forEach(row => body.append(row));
});
addEventListener('beforeprint', () => {
  document.querySelectorAll('details').forEach(part => part.open = true); });
"""
JPEG_QUALITY = 85


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page with its title as first heading."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    lines = "\n".join([f"<h1>{escape(title)}</h1>", *parts, f"<script>{SCRIPT}</script>"])
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{lines}\n</body></html>\n'
    )


def folded(title: str, content: str) -> str:
    """Content that a click on its title opens."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def heading(title: str) -> str:
    """A heading; nothing without a title."""
    return f"<h2>{escape(title)}</h2>\n" if title else ""


def listed(title: str, texts: Sequence[str], kind: str = "said") -> list[str]:
    """A heading with a list; nothing without texts."""
    items = "\n".join(f"<li>{code(text)}</li>" for text in texts)
    return [f'{heading(title)}<div class="{kind}"><ul>\n{items}\n</ul></div>'] if texts else []


def code(text: str) -> str:
    """Escaped text; names between backquotes become code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def pictures(
    title: str, note: str, shown: Iterable[tuple[Image.Image, str]], side: int = 340
) -> str:
    """Photographs with a caption each under a heading, in squares of ``side`` pixels or more."""
    figures = "\n".join(_picture(image, caption) for image, caption in shown)
    return (
        f'<h2>{title}</h2>\n<p class="note">{code(note)}</p>\n'
        f'<div class="pictures" style="--side: {side}px">\n{figures}\n</div>'
    )


def _picture(image: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    data, text = base64.b64encode(file.getvalue()).decode(), escape(caption)
    image_tag = f'<img alt="{text}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image_tag}<figcaption>{text}</figcaption></figure>"


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """Rows of text under a heading. The first column is code; notes stand below the table."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "\n".join(_row(row) for row in rows)
    below = "\n".join(f'<p class="note">{code(note)}</p>' for note in notes)
    content = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>"
    return f'{heading(title)}<div class="wide"><table>\n{content}\n</table></div>\n{below}'


def _row(row: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    return f"<tr><td><code>{escape(row[0])}</code></td>{cells}</tr>"
