"""The base of everything that is stored: a frozen, closed, strict record, and the kinds of text it holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

LONGEST_TEXT = 4_000


class Record(BaseModel):
    """Frozen, refuses unknown fields, converts nothing silently and stores no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def storable(text: object) -> object:
    """Text that JSON can hold: what is not Unicode becomes "?", and the middle of very long text is left out."""
    if not isinstance(text, str):
        return text
    clean = text.encode("utf-8", "replace").decode()
    if len(clean) <= LONGEST_TEXT:
        return clean
    half = LONGEST_TEXT // 2 - 10
    return f"{clean[:half]} [...] {clean[-half:]}"


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A hash in lower-case hexadecimal."""

Said = Annotated[str, BeforeValidator(storable)]
"""What a process or a person said: anything goes, only made storable."""
