"""Everything that is wrong with a workspace, collected, so that it can be mended in one go."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import check_name
from foundation.reasons import Reason
from policies.lifecycle.strict_yaml import Document, parse_yaml

MAX_ITEMS = 20_000


class Findings:
    """Faults of the workspace's files, each at file and line."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def parse(self, files: Mapping[str, bytes], name: str) -> Document:
        """The document of the file `name`; an empty one, and a finding, when there is none or it does not parse."""
        try:
            if name not in files:
                raise Fault(Reason.POLICY_DATA_INVALID, "the file is missing", field=name)
            return parse_yaml(files[name], name)
        except Fault as fault:
            self.faults.append(fault)
            return Document(name, {}, {})

    @contextmanager
    def collecting(self, document: Document) -> Iterator[None]:
        """Whatever fault is raised within is a finding in `document`; the work goes on after it."""
        try:
            yield
        except Fault as fault:
            self.faults.append(document.located(fault))

    def each(self, document: Document, fields: Fields, name: str, read: Callable[[Fields], None]) -> None:
        """`read` applied to each mapping of the list `name`, which may be missing; what it raises is a finding."""
        for item in fields.each(name, lambda item: item, most=MAX_ITEMS, optional=True):
            with self.collecting(document):
                read(item)
                item.finish()

    def add(self, document: Document, path: str, detail: str) -> None:
        self.faults.append(document.located(Fault(Reason.POLICY_DATA_INVALID, detail, field=path)))

    def name(self, fields: Fields, key: str, *, taken: Container[str] = ()) -> str:
        """The name in field `key`, which must not be in `taken`. Raises `Fault`."""
        text = check_name(fields.text(key), field=f"{fields.path}.{key}")
        if text in taken:
            raise fields.fault(key, f"{text!r} stands twice")
        return text
