"""What a pipeline's docstring says of each argument, as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Documented(NamedTuple):
    """What a docstring says of an argument: its type as written there (a hint at best), and one readable paragraph."""

    type: str
    help: str


_SECTION = re.compile(r"^([ \t]*)(?:Args|Arguments|Parameters)[ \t]*:[ \t]*$", re.MULTILINE)
_HEAD = re.compile(r"[`*]*(\w+)[`*]*\s*(?=[:(])")
_HELP_LENGTH = 200


def docstring_arguments(docstring: str) -> dict[str, Documented]:
    """What a Google-style docstring says of each argument. Never raises: a docstring is prose.

    The `Args:` section is cut out by its own indentation before anything else, because `replace_example_docstring`
    splices less indented examples into the pipelines' docstrings, and after that no common margin is left.
    """
    found: dict[str, Documented] = {}
    for section in _SECTION.finditer(docstring):
        for entry in _entries(_indented(docstring[section.end() :].splitlines(), len(section[1].expandtabs()))):
            name, documented = _read_entry(entry)
            found.setdefault(name, documented)
    return found


def _indent(line: str) -> int:
    expanded = line.expandtabs()
    return len(expanded) - len(expanded.lstrip())


def _indented(lines: Iterable[str], margin: int) -> Iterator[str]:
    for line in lines:
        if line.strip() and _indent(line) <= margin:
            return
        yield line


def _entries(lines: Iterator[str]) -> Iterator[list[str]]:
    """The section's entries: lines from a `name (type):` at the section's own margin to the next one."""
    margin, entry = None, list[str]()
    for line in lines:
        if margin is None and line.strip():
            margin = _indent(line)
        if margin is not None and _indent(line) <= margin and _HEAD.match(line.strip()):
            if entry:
                yield entry
            entry = [line.strip()]
        elif entry:
            entry.append(line.strip())
    if entry:
        yield entry


def _read_entry(lines: list[str]) -> tuple[str, Documented]:
    """The name, type and help of one entry: `name (type): text`, `name: (type): text` or `name: text`, where the type
    may run over several lines."""
    text = "\n".join(lines)
    head = _HEAD.match(text)
    assert head is not None
    kind, rest = _split_parenthesis(text[head.end() :].lstrip(": \n"))
    # `name (`A`), `list[A]`: text` closes the parenthesis too soon.
    rest = re.sub(r"^,[^:]*:", "", rest).lstrip(": \\\n")
    repeated = _HEAD.match(rest)
    if repeated and repeated[1] == head[1]:
        return _read_entry([rest])
    return head[1], Documented(_first_type(kind), _readable(rest))


def _split_parenthesis(text: str) -> tuple[str, str]:
    """The leading (balanced) parenthesis, without its brackets, and what follows it; "" where there is none."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[1:index], text[index + 1 :] if index else text
    return "", text


def _first_type(text: str) -> str:
    """`str` or `list[str]`, *optional*, defaults to x  ->  str | list[str]"""
    text = re.split(r",?\s*\*?optional|,?\s*defaults? to", text)[0]
    return re.sub(r"\s+or\s+|,\s+(?![^\[]*\])", " | ", text.replace("`", "").strip(" ,\n"))


def _readable(text: str) -> str:
    """The first paragraph as plain text, cut at a sentence's end near 200 characters."""
    paragraph = next((part for part in re.split(r"\n\s*\n|\n(?=[-*] )", text) if part.strip()), "")
    sentences = _sentences(_plain_text(paragraph))
    short = next(sentences, "")
    for sentence in sentences:
        # What only Python can pass is no help on a command line.
        if len(short) + len(sentence) >= _HELP_LENGTH or re.search(r"_embeds\b|[Tt]ensor", sentence):
            break
        short = f"{short} {sentence}"
    if len(short) <= _HELP_LENGTH * 1.5:
        return short
    return short[:_HELP_LENGTH].rpartition(" ")[0].rstrip(",;: ") + " …"


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for stop in re.finditer(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bvs\.) (?=[A-Z\"'(])", text):
        yield text[start : stop.start()]
        start = stop.end()
    yield text[start:]


_MARKUP = (
    (re.compile(r"!?\[`~[\w.]*?(\w+)`\](?:\([^)]*\))?"), r"\1"),  # [`~pipelines.flux.FluxPipelineOutput`]
    (re.compile(r"!?\[([^\]\[]+)\]\([^)\s]*\)"), r"\1"),  # [text](address)
    (re.compile(r"\[`([^`]+)`\]"), r"\1"),  # [`ClassName`]
    (re.compile(r":\w+:`~?([^`]+)`"), r"\1"),  # :class:`ClassName`
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{1,2}"), r"\1"),  # `text <address>`__
    (re.compile(r"`+"), ""),
    (re.compile(r"</?[A-Za-z][^<>]*>"), ""),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])(.+?)(?<=[^\s*])\1(?![\w*])"), r"\2"),  # *e.g.*, **not**
)


def _plain_text(text: str) -> str:
    """RST and Markdown as plain text, white space normalised."""
    text = " ".join(text.split())
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())
