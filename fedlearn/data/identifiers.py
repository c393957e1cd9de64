"""Identifiers as people write them, brought to the one form that both sides compare.

Plain ``digits``, ``text`` and ``exact`` are in :func:`fedlearn.data.table.normalise`; here are those that know what an
identifier is, and so can tell that something is none. What they give depends on the text alone, but for phone numbers
and national identifiers also on the release of ``phonenumbers`` or ``python-stdnum``: both sides should have the same.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
import uuid
from collections.abc import Callable
from types import ModuleType

import phonenumbers
import pyarrow as pa
import pyarrow.compute as pc

from fedlearn.contract import Key
from fedlearn.errors import BadConfig

Convert = Callable[[str], str | None]


def canonical(ids: pa.StringArray, key: Key) -> pa.StringArray:
    """Identifiers in one form, null where there is none.

    Args:
        ids: shape (n,), with nulls.
        key: says what they are.

    Returns:
        Shape (n,); null where the input is null, blank, or no such identifier.

    Raises:
        BadConfig: the scheme or the country is unknown.
    """
    convert = _converter(key)
    coded = ids.dictionary_encode()
    known = [None if text is None else convert(text.strip()) for text in coded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(coded.indices, pa.array(known, pa.string())).cast(pa.string())


def is_known(key: Key) -> bool:
    """Whether the key's normalisation can tell that something is no identifier."""
    return key.normalise not in ("digits", "text", "exact")


def invalid(before: pa.StringArray, after: pa.StringArray) -> pa.BooleanArray:
    """Where something stood that is no identifier."""
    stood = pc.not_equal(pc.utf8_trim_whitespace(before), "").fill_null(False)
    return pc.and_(stood, after.is_null())


def _converter(key: Key) -> Convert:
    if key.normalise == "phone":
        return _phone(key.country or "")
    if key.normalise == "national-id":
        return _national(key.scheme or "")
    return {"email": _email, "uuid": _uuid, "integer": _integer}[key.normalise]


def _phone(country: str) -> Convert:
    """E.164 (ITU-T): plus sign, country code, number. Numbers of an impossible length are none."""
    if country not in phonenumbers.SUPPORTED_REGIONS:
        raise BadConfig(f"phone numbers of country {country!r} are not known")

    def convert(text: str) -> str | None:
        try:
            number = phonenumbers.parse(unicodedata.normalize("NFKC", text), country)
        except phonenumbers.NumberParseException:
            return None
        if not phonenumbers.is_possible_number(number):
            return None
        number.extension = None
        return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))

    return convert


def _national(scheme: str) -> Convert:
    """The compact form of a number whose check digit is right."""
    module = _scheme(scheme)

    def convert(text: str) -> str | None:
        plain = unicodedata.normalize("NFKC", text)
        return str(module.validate(plain)) if module.is_valid(plain) else None

    return convert


def _scheme(name: str) -> ModuleType:
    try:
        module = importlib.import_module(f"stdnum.{name}")
        if callable(module.validate) and callable(module.is_valid):
            return module
    except (ImportError, AttributeError):
        pass
    raise BadConfig(f"national identifiers of scheme {name!r} are not known")


def _email(text: str) -> str | None:
    """Folded to lower case, the domain in ASCII (IDNA); dots and tags before the at sign count."""
    local, _, domain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).rpartition("@")
    try:
        ascii_domain = domain.encode("idna").decode()
    except UnicodeError:
        return None
    odd = re.search(r"[\s@]", local) or not re.fullmatch(r"[a-z0-9-]+([.][a-z0-9-]+)+", ascii_domain)
    return None if odd or not local else f"{local}@{ascii_domain}"


def _uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def _integer(text: str) -> str | None:
    return str(int(text)) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else None
