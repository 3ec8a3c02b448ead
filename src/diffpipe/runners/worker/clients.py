"""A worker's clients: what each is connected by, has asked for, and has sent of input files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import DiffpipeError
from ...core.flag import Arguments, Flag
from ...core.parsing import Misfit
from ...core.request import Outcome, Request
from ...storage import urls
from .. import inputs
from ..job import Job
from ..settings import RunSettings
from .channel import Channel, Lost
from .protocol import Alive, Failed, FilePiece, FromWorker, Going, Make, Refused, Status, Welcome


class Spool:
    """A client's input files, in a temporary folder of this user's alone. The worker opens no others."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.folder: Path | None = None

    def path_of(self, number: int, name: str) -> Path:
        """Where a file lies. Raises Misfit for a name that leads elsewhere."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix=self.prefix))
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise Misfit("a name that leads elsewhere")
        return self.folder / str(number) / path

    def add(self, piece: FilePiece) -> None:
        path = self.path_of(piece.number, piece.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(piece.data)

    def remove(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class ConnectedClient:
    """A client, and what it has asked for. `waiting`: its groups of requests that are not finished. `settings`: how
    they are made, once the first is. `arguments`: of the request that came last."""

    channel: Channel
    spool: Spool
    left: bool = False
    waiting: int = 0
    job: Job | None = None
    umask: int = 0o077
    steps: bool = False
    settings: RunSettings | None = None
    arguments: Arguments = field(default_factory=dict)

    def send(self, message: FromWorker | Welcome | Refused | Going | Status) -> None:
        try:
            self.channel.send(message.to_json())
        except Lost:
            self.left = True

    def show_life(self) -> None:
        """Send a sign of life, where that can be done at once: who is stopped must not keep it from the others."""
        try:
            self.channel.offer(Alive().to_json())
        except Lost:
            self.left = True

    def fail(self, error: DiffpipeError) -> None:
        """Send an error that ends its work."""
        self.send(Failed(error))
        self.left = True

    def disconnect(self) -> None:
        self.left = True
        self.channel.close()
        self.spool.remove()

    def group(self, make: Make, flags: Mapping[str, Flag]) -> RequestGroup:
        """What it asks for, with its own files. Raises Misfit for a file that it did not send."""
        files = {name: str(self.spool.path_of(*sent)) for name, sent in make.files.items()}
        requests = [self._with_files(request, flags, files) for request in make.requests]
        forget = [self.spool.path_of(number, "") for number in make.forget]
        return RequestGroup(self, requests, files, forget)

    def _with_files(self, request: Request, flags: Mapping[str, Flag], files: Mapping[str, str]) -> Request:
        """A request with the paths of its client's files replaced by those of what the client sent."""
        media = inputs.media_of(request.arguments, flags)
        if unsent := [path for path in inputs.paths(media) if path not in files]:
            raise Misfit(f"{len(unsent)} files were not sent")
        here = {
            name: [files[path] for path in value] if isinstance(value, list) else files[value]
            for name, value in media.items()
        }
        arguments = {**request.arguments, **here}
        if arguments != self.arguments:  # else the same object, which need not be read again
            self.arguments = arguments
        return replace(request, arguments=self.arguments)


@dataclass(frozen=True)
class RequestGroup:
    """Requests that go together. `files`: the client's names of their input files -> where what it sent lies. `forget`:
    what lies of files that only earlier requests needed."""

    client: ConnectedClient
    requests: list[Request]
    files: Mapping[str, str]
    forget: list[Path]

    def named(self, text: str) -> str:
        """A text with the client's names of its files."""
        for name, spooled in self.files.items():
            text = text.replace(spooled, urls.shown(name))
        return text

    def renamed(self, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
        """Outcomes with the client's names of its files."""
        for outcome in outcomes:
            if outcome.error:
                outcome.error.message = self.named(outcome.error.message)
            yield replace(outcome, warnings=tuple(map(self.named, outcome.warnings)))
