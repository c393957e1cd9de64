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
from functools import cache
from types import ModuleType
from typing import Any

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
    plain = _plain_phones(ids, key.country or "") if key.normalise == "phone" else pa.nulls(len(ids), pa.string())
    coded = pc.if_else(plain.is_valid(), _null(), ids).dictionary_encode()
    known = [None if text is None else convert(text.strip()) for text in coded.dictionary.to_pylist()]
    others = pa.DictionaryArray.from_arrays(coded.indices, pa.array(known, pa.string())).cast(pa.string())
    return pc.coalesce(plain, others)


def is_known(key: Key) -> bool:
    """Whether the key's normalisation can tell that something is no identifier."""
    return key.normalise not in ("digits", "text", "exact")


def invalid(before: pa.StringArray, after: pa.StringArray) -> pa.BooleanArray:
    """Where something stood that is no identifier."""
    stood = pc.not_equal(pc.utf8_trim_whitespace(before), "").fill_null(False)
    return pc.and_(stood, after.is_null())


@cache
def _null() -> pa.StringScalar:
    """Made when it is needed: the first scalar of a process imports pandas, where that is installed."""
    return pa.scalar(None, pa.string())


def _converter(key: Key) -> Convert:
    if key.normalise == "phone":
        return _phone(key.country or "")
    if key.normalise == "national-id":
        return _national(key.scheme or "")
    return {"email": _email, "uuid": _uuid, "integer": _integer}[key.normalise]


def _phone(country: str) -> Convert:
    """E.164 (ITU-T): plus sign, country code, number. Numbers of an impossible length are none."""
    import phonenumbers  # here and below: most runs have no such keys, and need not wait for its tables

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


def _plain_phones(ids: pa.StringArray, country: str) -> pa.StringArray:
    """What :func:`_phone` gives, column-wise, for numbers that are plain; null for all others.

    Plain is a number of this country in digits and the usual separators, with or without its code behind ``+`` or the
    international prefix, and its national prefix, whose length is one that the country's numbers have. The steps are
    those of ``phonenumbers.parse`` where nothing is ambiguous.
    """
    import phonenumbers

    nothing = pa.nulls(len(ids), pa.string())
    own = phonenumbers.PhoneMetadata.metadata_for_region(country, None)
    if own is None or own.country_code is None:
        return nothing
    code = str(own.country_code)
    main_region = phonenumbers.region_code_for_country_code(own.country_code)
    main = phonenumbers.PhoneMetadata.metadata_for_region(main_region, own)
    text = pc.ascii_trim_whitespace(ids)
    text = pc.if_else(pc.match_substring_regex(text, r"^\+?[0-9(][0-9 ().-]{1,60}$"), text, _null())
    digits = pc.replace_substring_regex(text, "[ ().-]+", "")
    prefix = own.international_prefix or ""
    if prefix.isdigit():
        digits = pc.replace_substring_regex(digits, f"^{prefix}{code}", f"+{code}")
    abroad, local = f"^[+]{code}([0-9]+)$", f"^(?:{prefix or '[^0-9]'}|{code}|[+])"
    international = pc.if_else(pc.match_substring_regex(digits, abroad), digits, _null())
    national = pc.if_else(pc.match_substring_regex(digits, local), _null(), digits)
    significant = pc.coalesce(
        _significant(pc.utf8_slice_codeunits(international, len(code) + 1), main, main),
        _significant(national, own, main),
    )
    return pc.binary_join_element_wise(f"+{code}", significant, "")


def _significant(digits: pa.StringArray, region: Any, main: Any) -> pa.StringArray:
    """Digits behind the national prefix, if they are of a possible length; null where that takes more thought."""
    prefix, pattern = region.national_prefix_for_parsing, region.general_desc.national_number_pattern
    lengths = set(region.general_desc.possible_length) & set(main.general_desc.possible_length)
    if prefix and all(part.isdigit() for part in prefix.split("|")) and not region.national_prefix_transform_rule:
        stripped = pc.replace_substring_regex(digits, f"^(?:{prefix})", "")
        viable = pc.match_substring_regex(digits, f"^(?:{pattern})$")
        digits = pc.if_else(pc.equal(stripped, digits), digits, pc.if_else(viable, _null(), stripped))
    elif prefix:
        digits = pc.if_else(pc.match_substring_regex(digits, f"^(?:{prefix})"), _null(), digits)
    possible = pc.is_in(pc.utf8_length(digits), value_set=pa.array(sorted(lengths), pa.int32()))
    return pc.if_else(possible, digits, _null())


def _national(scheme: str) -> Convert:
    """The compact form of a number whose check digit is right."""
    module = _scheme(scheme)

    def convert(text: str) -> str | None:
        try:
            return str(module.validate(unicodedata.normalize("NFKC", text)))
        except ValueError:  # a ValidationError; or what a module did not foresee, such as digits of other scripts
            return None

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
    digits = text.replace("urn:", "").replace("uuid:", "").strip("{}").replace("-", "")
    # uuid.UUID strips the same, but then takes whatever int() does: underscores, 0x, digits of other scripts.
    return str(uuid.UUID(digits)) if re.fullmatch(r"[0-9a-fA-F]{32}", digits) else None


def _integer(text: str) -> str | None:
    return str(int(text)) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else None
