"""An index of a tar shard: where the members of each sample are, so that samples are read in any order.

A shard is an uncompressed tar file in WebDataset's layout. The name of a member up to the first dot of its file name
is the key, the rest is the field: ``a/0001.left.png`` is the field ``left.png`` of the sample ``a/0001``. A sample is a
run of members with one key. `build_index` reads the headers of a shard once, `save_index` keeps what it found.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tarfile
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from xmodal_jax.core.text_files import distinct_fields, parse_json, shorten
from xmodal_jax.data import media
from xmodal_jax.data.columns import COMMON_NAMES, TEXT_FIELDS, common_field
from xmodal_jax.data.metadata import hash_name, parse_captions, parse_group, parse_label, parse_label_cell
from xmodal_jax.types import is_measured, kind_of

TEXT_SUFFIXES = ("txt", *TEXT_FIELDS)
"""Last parts of fields that hold a caption."""
MAX_TEXT_BYTES = 2**24
"""Longest member with a caption, a label or JSON."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin."""
_FORMAT = 1
"""Version of the index files; other versions are made anew."""
_MEMBER_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]+)", re.DOTALL)
"""Key and field of a member. Files without a dot, or that begin with one, belong to no sample."""
_META_NAME = re.compile(r"__[^/]*__($|/)")
"""Members that describe the shard, such as ``__index__/0``."""


IN_WORDS = ("label", "group", "json")
"""Roles, besides the text modalities, of members that are read for the index."""


class Ambiguous(ValueError):
    """Two members of a sample, or two JSON fields, could be the same thing."""


class Facts(NamedTuple):
    """What the members of a sample say in words."""

    captions: dict[str, list[str]]
    """By text modality."""
    label: str | int | None = None
    """The name or the index of the class; None: they say none."""
    group: str | None = None
    """What is equal for samples that show the same picture; None: they do not say."""
    guessed: Mapping[str, str] = {}
    """What was found by a common name (`columns.COMMON_NAMES`) in the JSON member: ``{"text": "json.sentence"}``."""
    unread: tuple[str, ...] = ()
    """The JSON fields that are not read."""


class FieldRoles:
    """What the fields of a sample are.

    The role of a field is a modality (by its last part, as ``png`` in ``left.png``), ``label`` or ``json``. ``columns``
    says otherwise: ``{"image_2": "right.png"}`` names a field, ``{"text": "json.alt"}`` a field of the JSON member. No
    other field then has this role. Only ``columns`` can say which field is the ``group``, equal for samples that show
    the same picture. ::

        FieldRoles({}).role_of("jpg")  # "image"

    Raises:
      ValueError: ``columns`` has a name that is no role.
    """

    def __init__(self, columns: Mapping[str, str]):
        self.columns = dict(columns)
        for name, field in columns.items():
            if name not in ("file_name", "label", "group") and is_measured(name):
                raise ValueError(f"--columns {name}={field}: tar shards hold no measured quantities.")
            in_words = name in ("file_name", "label", "group") or kind_of(name) == "text"
            if name == "file_name" or (field.startswith("json.") and not in_words):
                raise ValueError(
                    f"--columns {name}={field}: in tar shards files are members, as in image_2=right.png; a JSON field "
                    "can be a text, the label or the group."
                )
        named = {
            name: field.partition(".")[2] for name, field in columns.items() if field.startswith("json.")
        }
        self._json = named  # by name the path in a JSON member
        self._members = {field.lower(): name for name, field in columns.items() if name not in named}

    @property
    def stamp(self) -> str:
        """A text that changes with anything that decides what an index holds."""
        suffixes = (media.IMAGE_SUFFIXES, media.AUDIO_SUFFIXES, media.VIDEO_SUFFIXES, TEXT_SUFFIXES)
        return json.dumps([_FORMAT, self.columns, suffixes, COMMON_NAMES])

    def role_of(self, field: str) -> str | None:
        """The role of a field in lower case; None: it is not read."""
        if field in self._members:
            return self._members[field]
        suffix = field.rpartition(".")[2]
        role = media.modality_of_file(f"x.{suffix}")
        if role is None:
            role = "text" if suffix in TEXT_SUFFIXES else {"cls": "label", "json": "json"}.get(suffix)
        return None if role in self.columns else role

    def facts(self, members: Mapping[str, tuple[str, bytes]], skip: Collection[str] = ()) -> Facts:
        """What members of the roles `IN_WORDS` and of text modalities say: ``members`` by role, each with its field and
        content. A JSON member says what no other member does, and nothing about ``skip``.

        Raises:
          ValueError: one cannot be used; the message is the reason.
        """
        captions, values, in_json = {}, {}, Facts({})
        for role, (field, content) in members.items():
            # `surrogateescape` marks a byte that is not UTF-8, which `parse_captions` describes.
            text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
            try:
                if role == "json":
                    in_json = self._json_facts(text, {*members, *skip})
                elif role == "label":
                    values["label"] = _parse_class(field, text.strip())
                elif role == "group":
                    values["group"] = parse_group(text)
                else:
                    captions[role] = parse_captions(text)
            except ValueError as error:
                raise type(error)(f"the {field}: {error}") from error
        return in_json._replace(captions=in_json.captions | captions, **values)

    def _json_facts(self, text: str, skip: Collection[str]) -> Facts:
        """What a JSON member says: in fields that metadata have, and in those that ``columns`` names."""
        fields = parse_json(text, pairs=distinct_fields)
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
        paths = {name: [path] for name, path in self._json.items()}
        guessed = {}
        for name, usual in (("text", TEXT_FIELDS), ("label", ("label",))):
            if name in self.columns or name in skip:
                continue
            paths[name] = [field for field in usual if field in fields]
            if not paths[name] and (guess := _guess(name, fields)) is not None:
                paths[name], guessed[name] = [guess], f"json.{guess}"
        captions: dict[str, list[str]] = {}
        values, read = {}, set()
        for name, path in ((name, path) for name, of_name in paths.items() for path in of_name):
            value = _json_value(fields, path)
            read.add(path if path in fields else path.partition(".")[0])
            if value is None or name in skip:
                continue
            if name == "label":
                values["label"] = parse_label(value)
            elif name == "group":
                values["group"] = parse_group(value)
            else:
                captions[name] = captions.get(name, []) + parse_captions(value)
        unread = tuple(name for name in fields if name not in read)
        return Facts(captions, guessed=guessed, unread=unread, **values)


def _parse_class(field: str, text: str) -> str | int:
    """The label in a member; that of a ``.cls`` is a number."""
    number = parse_label_cell(text)
    if number is None and field.rpartition(".")[2] == "cls":
        raise ValueError(f"the class must be a whole number, not {shorten(text)}")
    return parse_label(text) if number is None else number


def _guess(name: str, fields: Mapping[str, Any]) -> str | None:
    """The JSON field with a common name of ``text`` or ``label``; None: there is none.

    Raises:
      Ambiguous: there are two.
    """
    types = (str, list) if name == "text" else (str, int)
    names = [f for f, value in fields.items() if isinstance(value, types) and _common_field(f) == name]
    if len(names) > 1:
        raise Ambiguous(
            f"the fields {' and '.join(names)} can each be the {name}: choose by --columns {name}=json.{names[0]}"
        )
    return names[0] if names else None


_common_field = functools.lru_cache(4096)(common_field)


def _json_value(fields: dict[str, Any], path: str) -> Any:
    """The value at ``path`` in a JSON object: a field of that name, or one of nested objects, as in ``meta.alt``. None
    if there is none."""
    if path in fields or "." not in path:
        return fields.get(path)
    name, _, rest = path.partition(".")
    inner = fields.get(name)
    return _json_value(inner, rest) if isinstance(inner, dict) else None


class ShardIndex(NamedTuple):
    """Where the usable samples of a shard are, and what is known of them. Arrays ``[S]`` have one element for each."""

    size: int
    """The shard's size in bytes when the index was made."""
    modified: int
    """When the shard had been modified then, in nanoseconds."""
    samples: int
    """The number of samples, those that cannot be used included."""
    numbers: np.ndarray
    """The number of each sample within the shard, from 1: int32 ``[S]``."""
    keys: np.ndarray
    """The keys in UTF-8, one after the other: uint8 ``[bytes]``."""
    key_ends: np.ndarray
    """Where each key ends in ``keys``: int64 ``[S]``."""
    hashes: np.ndarray
    """The last digit (in decimal) of the SHA-1 of each key, or of the group if there is one, and its first 64 bits:
    uint64 ``[S, 2]``. See `choose_test`."""
    groups: np.ndarray
    """A hash of the group, above 0; 0: there is none. uint64 ``[S]``."""
    roles: tuple[str, ...]
    """The roles that members have (see `FieldRoles`), R of them."""
    offsets: np.ndarray
    """Where the content of each role begins in the shard, -1: the sample has none; int64 ``[R, S]``."""
    sizes: np.ndarray
    """Its number of bytes, int64 ``[R, S]``."""
    texts: tuple[str, ...]
    """The text modalities, T of them."""
    caption_counts: np.ndarray
    """The number of captions, int32 ``[T, S]``."""
    label_numbers: np.ndarray
    """The label, where it is a number: int64 ``[S]``, -2**63 where it is none."""
    label_names: np.ndarray
    """The label, where it is a name: its index in ``names``, int32 ``[S]``, -1 where it is none."""
    names: tuple[str, ...]
    """The names of classes."""
    bad: tuple[tuple[int, str, bool], ...]
    """The samples that cannot be used: the number, the reason, and whether it is that two members have one role."""
    guessed: Mapping[str, str]
    """What was found by a common name, see `Facts`."""
    unread: Mapping[str, int]
    """The fields that are not read, each with the number of samples that have it."""

    def key(self, sample: int) -> str:
        """The key of a usable sample, 0..S-1."""
        start = self.key_ends[sample - 1] if sample else 0
        return self.keys[start : self.key_ends[sample]].tobytes().decode("utf-8", "surrogateescape")


NO_NUMBER = -(2**63)
"""The element of ``label_numbers`` for a label that is no number."""


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    reason: str | None = None
    """Why its content cannot be read; None: it can."""


def _plain_member(header: bytes, offset: int) -> _Member | None:
    """The member of a header at ``offset``, if it is a regular file and the header is of the plainest kind; None:
    otherwise. This is what `tarfile` finds too, at a fifth of the time."""
    if len(header) < tarfile.BLOCKSIZE or header[156:157] not in (b"0", b"\0") or header[345]:
        return None
    name, _, _ = header[:100].partition(b"\0")
    try:
        size, written = int(header[124:136].strip(b" \0"), 8), int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    if (
        not name
        or name.endswith(b"/")
        or size < 0
        or written != sum(header) - sum(header[148:156]) + 8 * ord(" ")
    ):
        return None
    return _Member(name.decode("utf-8", "surrogateescape"), offset + tarfile.BLOCKSIZE, size)


class _Damage(NamedTuple):
    """What is wrong with a shard from some place on."""

    reason: str
    cut: bool = True
    """Whether the sample before that place may be incomplete."""


def _read_members(file: BinaryIO, size: int) -> Iterator[_Member | _Damage]:
    """Yields the members of a tar file of ``size`` bytes; at last, if it is damaged, how."""
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        yield _Damage("the file is empty" if size == 0 else f"the file is no tar file ({error})")
        return
    tar.offset = 0
    while True:
        start = tar.offset
        file.seek(start)
        plain = None if tar.pax_headers else _plain_member(file.read(tarfile.BLOCKSIZE), tar.offset)
        if plain is not None:
            tar.offset = plain.offset + -(-plain.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            yield plain
        else:
            file.seek(tar.offset)
            try:
                info = tar.tarinfo.fromtarfile(tar)
            except tarfile.EOFHeaderError:
                if _has_content(file):
                    reason = (
                        "there are data behind the end mark (several tar files in one?), which are not read"
                    )
                    yield _Damage(reason, cut=False)
                return
            except tarfile.EmptyHeaderError:
                yield _Damage("the file ends without an end mark: it was not written to its end")
                return
            except (tarfile.HeaderError, ValueError, OverflowError) as error:
                yield _Damage(
                    f"a header cannot be read ({error}): the file is damaged or truncated from here on"
                )
                return
            plain = _member_of(info)
            if plain is not None:
                yield plain
        if tar.offset <= start:
            yield _Damage("a header states a negative size: the file is damaged from here on")
            return
        if tar.offset > size:
            yield _Damage(f"the file is truncated: it has {size:,} bytes, the content of a member ends later")
            return


def _member_of(info: tarfile.TarInfo) -> _Member | None:
    """The member of what `tarfile` found; None for a folder, which has no content."""
    if info.isdir():
        return None
    reason = None
    if info.issparse():
        reason = "is a sparse file, which is stored in pieces: write the tar without --sparse"
    elif info.islnk() or info.issym():
        reason = f"is a link to {shorten(info.linkname)}: write the tar with --dereference --hard-dereference"
    elif not info.isreg():
        reason = "is no regular file"
    return _Member(info.name, info.offset_data, info.size, reason)


def _has_content(file: BinaryIO) -> bool:
    """Whether the rest of a file has a byte that is not 0."""
    return any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b""))


class _Sample:
    """The members of a sample, as they come."""

    def __init__(self, key: str, number: int):
        self.key, self.number = key, number
        self.fields: dict[str, str] = {}  # by role
        self.unread: set[str] = set()
        self.places: dict[str, tuple[int, int]] = {}  # by role: offset and size
        self.texts: dict[str, tuple[str, bytes]] = {}  # by role: field and content
        self.reason: str | None = None
        """Why it cannot be used."""
        self.ambiguous = False
        """Whether that is because two members have one role."""

    def add(self, field: str, member: _Member, roles: FieldRoles, file: BinaryIO) -> None:
        """Adds a member that has the sample's key."""
        role = roles.role_of(field)
        if field in self.unread or field in self.fields.values():
            return self.refuse(f"the member {shorten(member.name)} is there twice")
        if role is None:
            return self.unread.add(field)
        if member.reason is not None:
            return self.refuse(f"the member {shorten(member.name)} {member.reason}")
        if role in self.fields:
            kind = {"label": "class", "json": "JSON member"}.get(role, role)
            return self.refuse(
                f"{self.fields[role]} and {field} are both its {kind}: --columns {role}={self.fields[role]} chooses "
                "one",
                ambiguous=True,
            )
        self.fields[role], self.places[role] = field, (member.offset, member.size)
        if role in IN_WORDS or kind_of(role) == "text":
            if member.size > MAX_TEXT_BYTES:
                return self.refuse(f"the {field} has more than {MAX_TEXT_BYTES:,} bytes")
            file.seek(member.offset)
            self.texts[role] = field, file.read(member.size)

    def facts(self, roles: FieldRoles) -> Facts:
        """What the sample says in words; it is refused if that cannot be used."""
        facts = Facts({})
        try:
            facts = roles.facts(self.texts)
        except ValueError as error:
            self.refuse(str(error), ambiguous=isinstance(error, Ambiguous))
        if len(self.fields) == len(self.texts) and not facts.captions:
            self.refuse(f"the sample {shorten(self.key)} has no file and no caption that is read")
        return facts

    def refuse(self, reason: str, *, ambiguous: bool = False) -> None:
        """States why the sample cannot be used; the first reason stands."""
        if self.reason is None:
            self.reason, self.ambiguous = reason, ambiguous


class _Builder:
    """Collects the samples of a shard into arrays, which hold the usable ones."""

    def __init__(self, roles: FieldRoles):
        self._roles = roles
        self._numbers, self._key_ends, self._hashes = array("i"), array("q"), array("Q")
        self._keys, self._groups = bytearray(), array("Q")
        self._places: dict[str, array] = {}  # by role: number in the arrays, offset and size of each member
        self._counts: dict[str, array] = {}  # by text modality: number in the arrays and number of captions
        self._label_numbers, self._label_names = array("q"), array("i")
        self._names: dict[str, int] = {}
        self._bad: dict[int, tuple[str, bool]] = {}  # by number
        self._unread: Counter[str] = Counter()
        self._guessed: dict[str, str] = {}
        self._number_of: dict[str, int] = {}  # by key
        self._samples = 0
        self._current: _Sample | None = None

    def add(self, member: _Member, file: BinaryIO) -> None:
        """Adds the next member of the shard."""
        match = _MEMBER_NAME.fullmatch(member.name)
        if _META_NAME.match(member.name) or match is None:
            self._unread["(members without a key or a field)"] += 1
            return
        key, field = match[1], match[2].lower()
        if self._current is None or self._current.key != key:
            self.finish_sample()
            self._begin(key)
        self._current.add(field, member, self._roles, file)

    def _begin(self, key: str) -> None:
        """Begins the next sample. If its key was there before, neither of the two is whole."""
        self._samples += 1
        self._current = _Sample(key, self._samples)
        before = self._number_of.setdefault(key, self._samples)
        if before != self._samples:
            reason = (
                f"the members of the sample {shorten(key)} are in several places: write them one after the other "
                "(tar --sort=name)"
            )
            self._current.refuse(reason)
            self._bad.setdefault(before, (reason, False))

    def end(self, damage: _Damage) -> None:
        """States that the shard is damaged after the last member."""
        if self._current is None or not damage.cut:
            self._bad[self._samples + 1] = (damage.reason, False)
        else:
            self._current.refuse(damage.reason)

    def finish_sample(self) -> None:
        """Puts the current sample into the arrays, or among those that cannot be used."""
        sample, self._current = self._current, None
        if sample is None:
            return
        facts = sample.facts(self._roles)
        self._unread.update({*sample.unread, *(f"json.{name}" for name in facts.unread)})
        self._guessed |= facts.guessed
        if sample.reason is not None:
            self._bad.setdefault(sample.number, (sample.reason, sample.ambiguous))
            return
        row = len(self._numbers)
        self._numbers.append(sample.number)
        self._keys += sample.key.encode("utf-8", "surrogateescape")
        self._key_ends.append(len(self._keys))
        self._groups.append(0 if facts.group is None else 1 + (hash_name(facts.group) >> 97))
        sha1 = hash_name(sample.key if facts.group is None else facts.group)
        self._hashes.extend((sha1 % 10, sha1 >> 96))
        for role, place in sample.places.items():
            if role in ("label", "group"):
                continue  # what they say stands below
            self._places.setdefault(role, array("q")).extend((row, *place))
        for modality, captions in facts.captions.items():
            self._counts.setdefault(modality, array("q")).extend((row, len(captions)))
        self._add_label(facts.label)

    def _add_label(self, label: str | int | None) -> None:
        """Adds the label of a sample. A number of more than 64 bits becomes the largest one: it is no class either."""
        is_number = isinstance(label, int)
        self._label_numbers.append(max(NO_NUMBER + 1, min(label, 2**63 - 1)) if is_number else NO_NUMBER)
        name = label if isinstance(label, str) else None
        self._label_names.append(-1 if name is None else self._names.setdefault(name, len(self._names)))

    def build(self, size: int, modified: int) -> ShardIndex:
        """The index of the shard, all of whose members were added."""
        count = len(self._numbers)
        offsets, sizes = np.full((2, len(self._places), count), -1, np.int64)
        for k, places in enumerate(self._places.values()):
            rows, offset, length = np.array(places, np.int64).reshape(-1, 3).T
            offsets[k, rows], sizes[k, rows] = offset, length
        counts = np.zeros((len(self._counts), count), np.int32)
        for k, of_modality in enumerate(self._counts.values()):
            rows, captions = np.array(of_modality, np.int64).reshape(-1, 2).T
            counts[k, rows] = captions
        index = ShardIndex(
            size=size,
            modified=modified,
            samples=self._samples,
            numbers=np.array(self._numbers, np.int32),
            keys=np.frombuffer(bytes(self._keys), np.uint8),
            key_ends=np.array(self._key_ends, np.int64),
            hashes=np.array(self._hashes, np.uint64).reshape(-1, 2),
            groups=np.array(self._groups, np.uint64),
            roles=tuple(self._places),
            offsets=offsets,
            sizes=sizes,
            texts=tuple(self._counts),
            caption_counts=counts,
            label_numbers=np.array(self._label_numbers, np.int64),
            label_names=np.array(self._label_names, np.int32),
            names=tuple(self._names),
            bad=tuple((number, *reason) for number, reason in sorted(self._bad.items())),
            guessed=self._guessed,
            unread=dict(self._unread),
        )
        return _drop_samples(index, np.isin(index.numbers, list(self._bad)))


def _drop_samples(index: ShardIndex, bad: np.ndarray) -> ShardIndex:
    """An index without its ``bad`` samples, bool ``[S]``: those whose key occurs again later in the shard."""
    if not bad.any():
        return index
    keys = [index.key(k).encode("utf-8", "surrogateescape") for k in np.flatnonzero(~bad).tolist()]
    return index._replace(
        numbers=index.numbers[~bad],
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
        hashes=index.hashes[~bad],
        groups=index.groups[~bad],
        offsets=index.offsets[:, ~bad],
        sizes=index.sizes[:, ~bad],
        caption_counts=index.caption_counts[:, ~bad],
        label_numbers=index.label_numbers[~bad],
        label_names=index.label_names[~bad],
    )


def build_index(
    path: Path, roles: FieldRoles, advance: Callable[[int], None] = lambda nbytes: None
) -> ShardIndex:
    """The index of a shard, made from its headers and its texts.

    ``advance`` is called with the number of further bytes of the shard that are done.

    Raises:
      ValueError: the shard is compressed.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        refuse_compressed(path, file.read(8))
        builder, done = _Builder(roles), 0
        for member in _read_members(file, status.st_size):
            if isinstance(member, _Damage):
                builder.end(member)
                break
            builder.add(member, file)
            if member.offset > done + 2**24:
                advance(member.offset - done)
                done = member.offset
        builder.finish_sample()
        advance(status.st_size - done)
    return builder.build(status.st_size, status.st_mtime_ns)


def refuse_compressed(path: Path, head: bytes = b"") -> None:
    """Raises ValueError if a shard is compressed, by its name or by how it begins: its members have no place that could
    be read alone."""
    kind = next((kind for start, kind in COMPRESSED.items() if head.startswith(start)), None)
    if kind is None and path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        kind = path.suffix[1:]
    if kind is not None:
        raise ValueError(
            f"{path} is compressed ({kind}), so that its samples cannot be read in any order: decompress it (such as "
            "gunzip). Images and recordings are compressed already."
        )


def index_paths(shard: Path, roles: FieldRoles) -> tuple[Path, Path]:
    """Where the index of a shard can be: beside it, or in the cache if its folder cannot be written to."""
    columns = json.dumps(roles.columns, sort_keys=True).encode()
    mark = f"-{hashlib.sha1(columns).hexdigest()[:8]}" if roles.columns else ""
    folder_mark = hashlib.sha1(str(shard.resolve().parent).encode("utf-8", "surrogateescape")).hexdigest()[
        :16
    ]
    root = Path(os.environ.get("XMODAL_CACHE") or Path.home() / ".cache" / "xmodal_jax")
    name = f"{shard.name}.index{mark}.npz"
    return shard.with_name(name), root / "tar" / folder_mark / name


def load_index(shard: Path, roles: FieldRoles) -> ShardIndex | None:
    """The index of a shard that was saved; None if there is none, or none of the shard as it is now."""
    status = shard.stat()
    for path in index_paths(shard, roles):
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                values = dict(file)
            about = json.loads(bytes(values.pop("about")))
            if about.pop("stamp") != roles.stamp:
                continue
            index = ShardIndex(**values, **about)
            index = index._replace(
                roles=tuple(index.roles),
                texts=tuple(index.texts),
                names=tuple(index.names),
                bad=tuple(map(tuple, index.bad)),
            )
        except Exception:  # there is none, or it is damaged: it is made anew
            continue
        if (index.size, index.modified) == (status.st_size, status.st_mtime_ns):
            return index
    return None


def save_index(shard: Path, roles: FieldRoles, index: ShardIndex) -> Path | None:
    """Saves an index beside its shard, else in the cache; returns where. Other processes see all of it or nothing.
    None: neither place can be written to, so that the next process has to make it again."""
    values = index._asdict()
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    about = {name: value for name, value in values.items() if name not in arrays} | {"stamp": roles.stamp}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    for path in index_paths(shard, roles):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    np.savez(file, **arrays)
                os.chmod(name, 0o644)  # mkstemp sets 0600, with which colleagues could not read it
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            return path
        except OSError:
            continue
    return None
