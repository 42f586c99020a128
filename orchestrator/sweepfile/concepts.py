"""Reads concepts: one on its own, a list that is erased jointly, or a set with a name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.config.fields import known, text, texts
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.concepts import ConceptSet, joined
from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import as_list, suggest
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.text import LONGEST_TEXT

KEYS = ("name", "concepts", "file", "anchors")
MAX_CONCEPTS = 1_000
MAX_FILE_BYTES = 1_000_000
_FORMS = "a concept, a list of concepts to erase jointly, or {name: …, concepts: […]}"


def concepts(at: At, base: BasePlugin | None, others: Iterable[str] = ()) -> tuple[str, ...]:
    """One concept or a list of them, which the base knows and can tell from each other.

    `others` stand elsewhere in the file: they may be named again, but not in other letters.
    """
    found = texts(at)
    _check(at.items(), base, _as_read(base, others))
    return found


def concept_sets(
    at: At, base: BasePlugin | None, others: Mapping[str, ConceptSet]
) -> tuple[ConceptSet, ...]:
    """The values of the concept axis; `others` are those that stand elsewhere, by name."""
    if not at.items():
        at.say("must have at least one value but is empty")
    before = _as_read(base, (c for other in others.values() for c in other.concepts))
    found: dict[str, ConceptSet] = {}
    for item in at.items():
        made = _set(item, base, others, before)
        if made is None:
            continue
        if made.name in found:
            item.say(f"duplicate value {show(made.name)}")
        elif others.get(made.name, made) != made:
            item.say(f"{made.name!r} stands elsewhere for other concepts; give it another name")
        else:
            _say_same(item, made, found.values())
            found[made.name] = made
    return tuple(found.values())


def edit_sets(
    at: At, base: BasePlugin | None, others: Mapping[str, ConceptSet]
) -> tuple[ConceptSet, ...]:
    """What an unlearning erases: a concept, a list of them erased together, or a named set. A list
    with lists or sets in it is an axis, of which each value is one of these.
    """
    is_axis = isinstance(at.value, list) and any(
        isinstance(item.value, list | dict) for item in at.items()
    )
    before = _as_read(base, (c for other in others.values() for c in other.concepts))
    found: dict[str, ConceptSet] = {}
    for item in at.items() if is_axis else [at]:
        made = _set(item, base, others, before)
        if made is None:
            continue
        if made.name in found:
            item.say(f"duplicate value {show(made.name)}")
        elif others.get(made.name, made) != made:
            item.say(f"{made.name!r} stands elsewhere for other concepts; give it another name")
        found.setdefault(made.name, made)
    return tuple(found.values())


def _set(
    at: At, base: BasePlugin | None, others: Mapping[str, ConceptSet], before: dict[str, str]
) -> ConceptSet | None:
    if isinstance(at.value, list):
        made = _jointly(at, base, before)
    elif isinstance(at.value, dict):
        made = _named(at, base, before)
    elif isinstance(at.value, str) and at.value in others:
        return others[at.value]
    elif (concept := text(at)) is None:
        return None
    else:
        _check([at], base, before)
        return ConceptSet.of(concept)
    if made is not None and not made.is_plain:
        _say_taken(at, made, base)
    return made


def _jointly(at: At, base: BasePlugin | None, before: dict[str, str]) -> ConceptSet | None:
    """A list in the list: its concepts, joined to a name."""
    found = _members(at, base, before)
    name = joined(found)
    if len(name) > LONGEST_TEXT:
        at.say(
            f"needs a name, because its {len(found)} concepts are too long for one "
            f"({len(name)} characters, at most {LONGEST_TEXT}): write "
            "{name: …, concepts: […]}"
        )
    return ConceptSet(name, found) if found else None


def _named(at: At, base: BasePlugin | None, before: dict[str, str]) -> ConceptSet | None:
    given = known(at, KEYS, required=("name",))
    name = text(given["name"]) if "name" in given else None
    if name is not None and len(name) > LONGEST_TEXT:
        given["name"].say(f"must have at most {LONGEST_TEXT} characters but has {len(name)}")
    if ("concepts" in given) == ("file" in given):
        at.say("must have either concepts: […] or file: a text file of one concept a line")
        return None
    anchors: dict[str, str] = {}
    file = None
    if "file" in given:
        found, anchors, file = _from_file(given["file"], base, before)
    else:
        found = _members(given["concepts"], base, before)
    if "anchors" in given:
        anchors |= _anchors(given["anchors"], found, base)
    return ConceptSet(name, found, anchors, file) if name and found else None


def _members(at: At, base: BasePlugin | None, before: dict[str, str]) -> tuple[str, ...]:
    if any(isinstance(item.value, list | dict) for item in at.items()):
        at.say(f"must be {_FORMS}, and a set's concepts are texts, but got {show(at.node.plain())}")
        return ()
    found = texts(at)
    if len(at.items()) > MAX_CONCEPTS:
        at.say(f"must have at most {MAX_CONCEPTS:,} concepts but has {len(found):,}")
    _check(at.items(), base, before)
    return found


def _check(items: Iterable[At], base: BasePlugin | None, before: dict[str, str]) -> None:
    """Report concepts that the base does not know, or reads as one that stands before."""
    for item in items:
        if base is not None and isinstance(item.value, str):
            for what in _faults(item.value, base, before):
                item.say(what)


def _unknown(concept: str, base: BasePlugin | None) -> list[str]:
    allowed = base.concepts() if base else None
    if allowed is None or concept in allowed:
        return []
    return [f"unknown concept {concept!r}{as_list(concept) or suggest(concept, list(allowed))}"]


def _faults(concept: str, base: BasePlugin, before: dict[str, str]) -> list[str]:
    if found := _unknown(concept, base):
        return found
    if (other := before.setdefault(base.as_read(concept), concept)) != concept:
        return [f"{concept!r} is the same to the model as {other!r}, which stands before"]
    return []


def _as_read(base: BasePlugin | None, concepts: Iterable[str]) -> dict[str, str]:
    return {} if base is None else {base.as_read(concept): concept for concept in concepts}


def _say_taken(at: At, made: ConceptSet, base: BasePlugin | None) -> None:
    """A set of several that is called as a concept would be taken for it in every table."""
    names = {*made.concepts, *((base.concepts() if base else None) or ())}
    if made.name in names and made.concepts != (made.name,):
        at.say(f"a set of concepts cannot be called {made.name!r}, which is a concept")


def _say_same(at: At, made: ConceptSet, before: Iterable[ConceptSet]) -> None:
    for other in before:
        if set(other.concepts) == set(made.concepts) and other.anchors == made.anchors:
            at.say(f"{made.name!r} erases the same as {other.name!r}, which stands before")


def _anchors(at: At, erased: tuple[str, ...], base: BasePlugin | None) -> dict[str, str]:
    """`{concept: the concept to map it to}`."""
    if not isinstance(at.value, dict) or not at.value:
        at.say(f"must map concepts to their anchors but got {show(at.node.plain())}")
        return {}
    found = {}
    for concept in at.value:
        anchor = text(at.key(concept))
        if concept not in erased:
            at.say_key(concept, f"{concept!r} is no concept of the set{suggest(concept, erased)}")
        elif anchor is not None:
            found[concept] = anchor
            for what in _unknown(anchor, base):
                at.key(concept).say(what)
    return found


def _from_file(
    at: At, base: BasePlugin | None, before: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, str], str | None]:
    """A file's concepts and anchors; what is wrong in it is said with its line."""
    path = text(at)
    if path is None:
        return (), {}, None
    found: dict[str, int] = {}
    anchors: dict[str, str] = {}
    try:
        for line, concept, anchor in _rows(path):
            place = f"{path}, line {line}"
            faults = _faults(concept, base, before) if base is not None else []
            if concept in found:
                faults = [f"{concept!r} stands on line {found[concept]} already"]
            if anchor:
                faults += _unknown(anchor, base)
            for what in faults:
                at.say(f"{place}: {what}")
            found.setdefault(concept, line)
            if anchor:
                anchors[concept] = anchor
    except ResurgeError as error:
        at.say(str(error))
        return (), {}, None
    if not 0 < len(found) <= MAX_CONCEPTS:
        at.say(f"{path} must have 1 to {MAX_CONCEPTS:,} concepts but has {len(found):,}")
    return tuple(found), anchors, path


def _rows(path: str) -> list[tuple[int, str, str]]:
    """(line, concept, anchor or '') of a text file of one concept a line, or of a CSV file with
    the columns `concept` and, if it has one, `anchor`.
    """
    lines = _read(path)
    if Path(path).suffix.lower() != ".csv":
        return [
            (n, line.strip(), "") for n, line in enumerate(lines.split("\n"), 1) if line.strip()
        ]
    reader = csv.DictReader(io.StringIO(lines), skipinitialspace=True)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if "concept" not in columns:
        raise ResurgeError(f"{path} has no column 'concept' (it has: {', '.join(columns)})")
    reader.fieldnames = columns
    rows = []
    for row in reader:
        concept, anchor = ((row.get(name) or "").strip() for name in ("concept", "anchor"))
        if concept:
            rows.append((reader.line_num, concept, anchor))
    return rows


def _read(path: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ResurgeError(
                f"{path} is larger than {MAX_FILE_BYTES:,} bytes: no list of concepts"
            )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ResurgeError(f"{path} must be UTF-8 text but byte {error.start} is not") from None
    except OSError as error:
        raise ResurgeError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:  # a NUL; the home of a user who is not known
        raise ResurgeError(f"{path} cannot be read: {error}") from None
