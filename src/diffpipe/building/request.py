"""A build request, resolved once: its pins serve the plan, the choice of a placement, and the build alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from ..cache.store import Store
from ..catalog import pipelines
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec
from ..core.canonical import JsonObject, JsonValue, digest
from ..core.source import Role, Source
from ..sources import hub_client
from ..sources.key import Report, Resolved, resolve
from ..sources.pin import Context, Pinned, pin
from ..storage.disk import user_path
from .command import absolute
from .marks import marked

LATER = frozenset({"no_safety_checker", "lora_partial"})  # options that are younger than the pins of some requests


@dataclass
class Request:
    """What was asked for, and what it is pinned to, looked up at most once.

    `fresh`: look branches and tags up again, whatever an earlier build of the same request was pinned to. `commits`: of
    a pipeline that is built again, see `Context`; nothing is pinned by it for other builds. `check_classes`: whether
    diffusers is asked, before anything is fetched, if the pipeline has the components that are named.
    """

    spec: BuildSpec
    row: PipelineType
    store: Store
    offline: bool = False
    fresh: bool = False
    commits: Mapping[Role, str] = field(default_factory=dict)
    check_classes: bool = True

    @cached_property
    def pinned(self) -> Pinned:
        """The request's sources. Raises UsageError, NotFoundError or AccessError in the user's terms."""
        known = not self.spec.trust_remote_code  # a class of the model's own is not known yet
        check = _check_names if self.check_classes and known else None
        offline = hub_client.is_offline(self.offline)
        pinned = marked(pin(self.spec, self.row, Context(self._known(), offline, self.commits, check)), offline)
        if known:
            pipelines.check(pinned.pipeline, self.row)
        return pinned

    def resolved(self, spec: BuildSpec, report: Report | None = None) -> Resolved:
        """What it comes to with the placement of `spec`; local files are read here."""
        return resolve(self.pinned, spec, self.store.digests, report)

    def _known(self) -> Mapping[Role, Source]:
        """What an earlier build of the same request was pinned to, while what it built is still there."""
        return {} if self.fresh or self.commits else self.store.pins(self._digest())

    def remember(self, resolved: Resolved) -> None:
        """Pin later builds of the same request to the commits of this one."""
        if not self.commits:
            hub_sources = [source for source in resolved.sources if source.kind == "hub"]
            self.store.set_pins(self._digest(), resolved.key, hub_sources)

    def _digest(self) -> str:
        """A request with local sources by content or place: what comes from the hub can depend on what they hold.

        A file that was not read yet goes by its place: it is read once, when it is digested for the key.
        """

        def named(source: str) -> str:
            path = user_path(source)
            known = self.store.digests.known(path) if path.is_file() else None
            return known.digest if known else absolute(source)

        words: JsonObject = {n: value for n, value in asdict(self.spec).items() if value or n not in LATER}
        loras: list[JsonValue] = [named(lora) for lora in self.spec.loras]
        parts: JsonObject = {name: named(source) for name, source in self.spec.components.items()}
        return digest({**words, "model": named(self.spec.model), "loras": loras, "components": parts})


def _check_names(pipeline: str, names: Collection[str]) -> None:
    from ..engine.classes import lookup
    from ..engine.loading import library_logs

    library_logs.listen()
    lookup.check_names(lookup.pipeline_class(pipeline), names)
