"""Write the shell completions and the manual pages from the command tree.

    python tools/generate_docs.py            writes completions/ and man/
    python tools/generate_docs.py --check    exits 1, naming the files that are not current

What is written depends on the code alone: not on the user's cache, plug-ins, terminal or environment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from completion_scripts import scripts
from manual_text import BUILD_OPTIONS, CALL_FLAGS, ENVIRONMENT, EXAMPLES, EXIT, FIELDS, FILES, SWITCHES

from diffpipe import __version__
from diffpipe.batch import output_paths
from diffpipe.catalog import BUILTIN, plugins
from diffpipe.cli import app, flags, generate, tree
from diffpipe.core.errors import Exit

ROOT = Path(__file__).resolve().parents[1]

# The last lets a line end between choices.
ESCAPES = {
    "\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq", "|": "|\\:"
}  # fmt: skip


def roff(text: str) -> str:
    """Text for a line of a manual page: what roff would read as something else escaped, `code` in bold."""
    for plain, escaped in ESCAPES.items():
        text = text.replace(plain, escaped)
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text).replace("`", "\\(ga")
    text = "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in text)
    return re.sub(r"^\.", r"\\&.", " ".join(text.split()))


def item(name: str, text: str) -> str:
    """A tagged paragraph: flags and literal names bold, placeholders after a flag italic."""
    found = re.fullmatch(r"((?:-\S+ ?|/ )*)(.*?)(?: <str>)?", name)
    assert found
    bold, rest = (found[1].strip(), found[2]) if found[1] else (found[2], "")
    return f".TP\n\\fB{roff(bold)}\\fR" + (f" \\fI{roff(rest)}\\fR" if rest else "") + f"\n{roff(text)}\n"


def items(rows: dict[str, str]) -> str:
    return "".join(item(name, text) for name, text in rows.items())


def paragraphs(texts: Iterable[str]) -> str:
    return "\n.PP\n".join(roff(text) for text in texts) + "\n"


def _one_space(text: str) -> str:
    return " ".join(text.split())


def records(command: Any) -> list[tuple[str, str, str, str]]:
    """(parameter's name, heading, flags with placeholder, help with default) of every parameter of a command."""
    context = typer.Context(command, **command.context_settings)
    return [
        (parameter.name, getattr(parameter, "rich_help_panel", None) or "Options", *map(_one_space, record))
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context))
    ]


def options(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Tagged paragraphs under their headings."""
    headings: dict[str, str] = {}
    for _, heading, name, text in rows:
        headings[heading] = headings.get(heading, "") + item(name, text)
    return "".join((f".SS {roff(heading)}\n" if len(headings) > 1 else "") + text for heading, text in headings.items())


def usage(name: str, command: Any) -> str:
    """`diffpipe pipelines show [OPTIONS] PIPELINE` in roff."""
    arguments = [row for row in command.params if row.param_type_name == "argument"]
    words = "".join(f" \\fI{row.metavar}\\fR" if row.required else f" [\\fI{row.metavar}\\fR]" for row in arguments)
    return f"\\fB{roff(name)}\\fR [\\fIOPTIONS\\fR]{words}\n"


def page(name: str, brief: str, sections: dict[str, str]) -> str:
    """A manual page in man(7). It has no date: it would change with no change of content."""
    source = f'"diffpipe {__version__}" "User Commands"'
    head = f'.\\" Written by tools/generate_docs.py.\n.TH {roff(name.upper())} 1 "" {source}\n.nh\n.ad l\n'
    title = f".SH NAME\n{roff(name)} \\- {roff(brief[0].lower() + brief[1:].rstrip('.'))}\n"
    return head + title + "".join(f".SH {heading}\n{text}" for heading, text in sections.items())


def see_also(own: str) -> str:
    names = [name for name in ("diffpipe", *(f"diffpipe-{name}" for name in app.COMMANDS)) if name != own]
    return ",\n".join(f"\\fB{roff(name)}\\fR(1)" for name in names) + "\n"


def common(commands: list[Any]) -> list[tuple[str, str, str, str]]:
    """The parameters that all commands have; what differs between them is left out of their flags and help."""
    tables = [{row[0]: row for row in records(command)} for command in commands]
    found = []
    for name in tables[0]:
        if all(name in table for table in tables):
            flags_shown = {table[name][2] for table in tables}
            shown = flags_shown.pop() if len(flags_shown) == 1 else f"--{name} {name.upper()}"
            texts = {table[name][3] for table in tables}
            sentences = [part for part in re.split(r"(?<=\.) ", tables[0][name][3]) if all(part in t for t in texts)]
            found.append((name, tables[0][name][1], shown, " ".join(sentences)))
    return found


def provider_sections(group: Any) -> dict[str, str]:
    """The sections of `build PROVIDER` and its like: what all providers take, then what each adds."""
    commands = {name: group.make(name) for name in BUILTIN}
    shared = common(list(commands.values()))
    providers = ""
    for name, command in commands.items():
        own = [row for row in records(command) if row not in shared]
        providers += f".SS {roff(name)}\n{paragraphs(command.help.split(chr(10) * 2))}" + options(
            (key, "", shown, text) for key, _, shown, text in own
        )
    return {"OPTIONS": paragraphs(BUILD_OPTIONS) + options(shared), "PROVIDERS": providers}


def command_page(name: str) -> str:
    """The page of one command."""
    command = app.root().make(name)
    full = f"diffpipe {name}"
    if name == "generate":
        runner = tree.command(name, flags.with_parameters(lambda **_: None, generate.options("image")), command.help)
        sections = {
            "SYNOPSIS": f"\\fB{full}\\fR \\fIPIPELINE\\fR [\\fICALL FLAGS\\fR] [\\fIRUN OPTIONS\\fR]\n",
            "DESCRIPTION": paragraphs([command.help, "PIPELINE is a name, a key, or 6 or more digits of a key."]),
            "OPTIONS": options(records(runner)),
            "CALL FLAGS": paragraphs(CALL_FLAGS),
            "OUTPUT TEMPLATES": paragraphs(["The fields of --output; format specs are Python's, as in {index:03d}:"])
            + items({f"{{{field}}}": FIELDS[field] for field in output_paths.FIELDS}),
        }
    elif name in ("build", "plan"):
        sections = {
            "SYNOPSIS": f"\\fB{full}\\fR \\fIPROVIDER\\fR [\\fIOPTIONS\\fR]\n",
            "DESCRIPTION": paragraphs([command.help]),
            **provider_sections(command),
        }
    elif isinstance(command, tree.LazyGroup):
        parts = {row: command.make(row) for row in command.rows()}
        sections = {
            "SYNOPSIS": ".br\n".join(usage(f"{full} {row}", part) for row, part in parts.items()),
            "DESCRIPTION": paragraphs([command.help]),
            "COMMANDS": "".join(
                f".SS {row}\n{roff(part.help)}\n{options(records(part))}" for row, part in parts.items()
            ),
        }
    else:
        sections = {
            "SYNOPSIS": usage(full, command),
            "DESCRIPTION": paragraphs(filter(None, [command.help, command.epilog])),
            "OPTIONS": options(records(command)),
        }
    return page(f"diffpipe-{name}", app.COMMANDS[name], {**sections, "SEE ALSO": see_also(f"diffpipe-{name}")})


def main_page() -> str:
    """diffpipe(1)."""
    examples = "".join(
        f"{roff(text)}\n.PP\n.RS 4\n.nf\n" + "".join(f"{roff(line)}\n" for line in lines) + ".fi\n.RE\n.PP\n"
        for text, lines in EXAMPLES.items()
    ).removesuffix(".PP\n")
    exits = {str(int(code)): EXIT[code] for code in Exit}
    sections = {
        "SYNOPSIS": "\\fBdiffpipe\\fR \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n",
        "DESCRIPTION": paragraphs([app.HELP, "Results go to standard output, all else to standard error."]),
        "COMMANDS": "".join(
            f".TP\n\\fB{roff('diffpipe-' + name)}\\fR(1)\n{roff(text)}\n" for name, text in app.COMMANDS.items()
        ),
        "OPTIONS": items(SWITCHES),
        "ENVIRONMENT": items(ENVIRONMENT),
        "FILES": paragraphs(["In the cache folder ($DIFFPIPE_HOME):"]) + items(FILES),
        "EXIT STATUS": items(exits),
        "EXAMPLES": examples,
        "SEE ALSO": see_also("diffpipe"),
    }
    return page("diffpipe", app.HELP, sections)


def files() -> dict[str, str]:
    """Path in the repository -> text."""
    plugins.entry_points = lambda **_: ()  # type: ignore[assignment]  # what this machine has added is not documented
    pages = {"diffpipe": main_page(), **{f"diffpipe-{name}": command_page(name) for name in app.COMMANDS}}
    return {
        **{f"completions/{name}": text for name, text in scripts("diffpipe", app.COMPLETE).items()},
        **{f"man/{name}.1": text for name, text in pages.items()},
    }


def stale(written: dict[str, str]) -> list[str]:
    """The files that are not as they would be written, and those that would not be written at all."""
    there = {str(path.relative_to(ROOT)) for folder in ("completions", "man") for path in (ROOT / folder).iterdir()}
    changed = [name for name, text in written.items() if name not in there or (ROOT / name).read_text("utf-8") != text]
    return sorted(changed + list(there - set(written)))


def main() -> None:
    written = files()
    names = stale(written)
    if "--check" in sys.argv[1:]:
        if names:
            sys.exit(f"not current: {' '.join(names)}\n  run: python tools/generate_docs.py")
        return
    for name in names:
        if name in written:
            (ROOT / name).write_text(written[name], "utf-8", newline="\n")
        else:
            (ROOT / name).unlink()
        print(name)


if __name__ == "__main__":
    main()
