"""All conversions of units: integers stay integers where the result is whole, everything else is a float.

Names say the unit: ``_ns _us _ms _s`` time, ``_uj _mj _j`` energy, ``_uw _mw`` power, ``_uah`` and ``_uc`` charge,
``_ua _ma`` current, ``_uv _mv`` voltage, ``_hz _khz`` rate, ``_bytes`` size.
"""

from __future__ import annotations

import re

NS_PER_US = 1_000
US_PER_MS = 1_000
US_PER_S = 1_000_000
SECONDS_PER_HOUR = 3_600

_SIZE = re.compile(r"\s*(\d{1,15})\s*(?:([KMGT])(?:i?B)?|B)?\s*", re.IGNORECASE)
_SIZE_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s|m|h)")
_DURATION_US = {"us": 1, "ms": US_PER_MS, "s": US_PER_S, "m": 60 * US_PER_S, "h": SECONDS_PER_HOUR * US_PER_S}


def us_from_ns(duration_ns: float) -> float:
    """
    >>> us_from_ns(1_500)
    1.5
    """
    return duration_ns / NS_PER_US


def ns_from_us(duration_us: float) -> float:
    """
    >>> ns_from_us(1.5)
    1500.0
    """
    return duration_us * NS_PER_US


def ms_from_us(duration_us: float) -> float:
    """
    >>> ms_from_us(2_500)
    2.5
    """
    return duration_us / US_PER_MS


def us_from_ms(duration_ms: float) -> float:
    """
    >>> us_from_ms(2.5)
    2500.0
    """
    return duration_ms * US_PER_MS


def s_from_us(duration_us: float) -> float:
    """
    >>> s_from_us(250_000)
    0.25
    """
    return duration_us / US_PER_S


def us_from_s(duration_s: float) -> int:
    """Rounded to a whole microsecond.

    >>> us_from_s(0.25)
    250000
    """
    return round(duration_s * US_PER_S)


def mj_from_uj(energy_uj: float) -> float:
    """
    >>> mj_from_uj(1_200)
    1.2
    """
    return energy_uj / 1e3


def uj_from_mj(energy_mj: float) -> float:
    """
    >>> uj_from_mj(1.5)
    1500.0
    """
    return energy_mj * 1e3


def j_from_uj(energy_uj: float) -> float:
    """
    >>> j_from_uj(2_500_000)
    2.5
    """
    return energy_uj / 1e6


def uj_from_j(energy_j: float) -> float:
    """
    >>> uj_from_j(2.5)
    2500000.0
    """
    return energy_j * 1e6


def energy_uj(*, power_uw: float, duration_us: float) -> float:
    """Energy of constant power over a span.

    >>> energy_uj(power_uw=2_000_000, duration_us=500_000)  # 2 W for half a second
    1000000.0
    """
    return power_uw * duration_us / 1e6


def power_uw(*, current_ua: float, voltage_uv: float) -> float:
    """Power of a current at a voltage.

    >>> power_uw(current_ua=500_000, voltage_uv=4_000_000)  # 0.5 A at 4 V
    2000000.0
    """
    return current_ua * voltage_uv / 1e6


def mean_power_uw(*, energy_uj: float, duration_us: float) -> float:
    """Mean power of an energy spent over a span; ZeroDivisionError where the span is empty.

    >>> mean_power_uw(energy_uj=1_000_000, duration_us=500_000)
    2000000.0
    """
    return energy_uj / duration_us * 1e6


def uc_from_uah(charge_uah: float) -> float:
    """Microcoulombs, which are microampere-seconds.

    >>> uc_from_uah(2.5)
    9000.0
    """
    return charge_uah * SECONDS_PER_HOUR


def uah_from_uc(charge_uc: float) -> float:
    """
    >>> uah_from_uc(9_000)
    2.5
    """
    return charge_uc / SECONDS_PER_HOUR


def charge_uc(*, current_ua: float, duration_us: float) -> float:
    """Charge of a constant current over a span.

    >>> charge_uc(current_ua=100_000, duration_us=20_000)
    2000.0
    """
    return current_ua * duration_us / 1e6


def uj_from_uc(charge_uc: float, *, voltage_uv: float) -> float:
    """Energy of a charge that moves at a constant voltage.

    >>> uj_from_uc(9_000, voltage_uv=4_000_000)
    36000.0
    """
    return charge_uc * voltage_uv / 1e6


def uc_from_uj(energy_uj: float, *, voltage_uv: float) -> float:
    """
    >>> uc_from_uj(36_000, voltage_uv=4_000_000)
    9000.0
    """
    return energy_uj / voltage_uv * 1e6


def uj_from_uah(charge_uah: float, *, voltage_uv: float) -> float:
    """
    >>> uj_from_uah(2.5, voltage_uv=4_000_000)
    36000.0
    """
    return uj_from_uc(uc_from_uah(charge_uah), voltage_uv=voltage_uv)


def uah_from_uj(energy_uj: float, *, voltage_uv: float) -> float:
    """
    >>> uah_from_uj(36_000, voltage_uv=4_000_000)
    2.5
    """
    return uah_from_uc(uc_from_uj(energy_uj, voltage_uv=voltage_uv))


def hz_from_khz(rate_khz: float) -> float:
    """
    >>> hz_from_khz(2_400_000)
    2400000000
    """
    return rate_khz * 1_000


def c_from_decidegrees(temp_dc: int) -> float:
    """Android's battery and many thermal zones count tenths of a degree.

    >>> c_from_decidegrees(314)
    31.4
    """
    return temp_dc / 10


def c_from_millidegrees(temp_mc: int) -> float:
    """Linux' thermal zones count thousandths of a degree.

    >>> c_from_millidegrees(31_400)
    31.4
    """
    return temp_mc / 1_000


def bytes_of(text: str) -> int | None:
    """A size as Linux writes it, in powers of 1024; None where it is not one.

    >>> bytes_of("32K"), bytes_of("16 kB"), bytes_of("512"), bytes_of("none")
    (32768, 16384, 512, None)
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    return int(match[1]) << 10 * _SIZE_POWERS.get((match[2] or "").upper(), 0)


def duration_us_of(text: str) -> int:
    """A span of time as a person writes it, "10m" or "1h30m"; ValueError where it is not one.

    >>> duration_us_of("1m30s"), duration_us_of("2.5ms")
    (90000000, 2500)
    """
    compact = text.replace(" ", "")
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f"{text!r} is not a duration such as 90s, 10m or 1h30m")
    return round(sum(float(number) * _DURATION_US[unit] for number, unit in parts))


def duration_text(duration_us: float) -> str:
    """A span of time for people, two parts at most.

    >>> duration_text(5_400_000_000), duration_text(61_400_000), duration_text(2_500), duration_text(999.9)
    ('1h30m', '1m01s', '2.5ms', '1000us')
    """
    seconds = round(duration_us / US_PER_S)
    if seconds >= SECONDS_PER_HOUR:
        minutes = round(duration_us / US_PER_S / 60)
        return f"{minutes // 60}h{minutes % 60:02d}m"
    if seconds >= 60:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    unit = next((unit for unit in ("s", "ms") if duration_us >= _DURATION_US[unit]), "us")
    amount = round(duration_us / _DURATION_US[unit], 3)
    return f"{amount:.3g}{unit}" if amount < 999.5 else f"{amount:.0f}{unit}"


def size_text(size_bytes: float) -> str:
    """A size for people, in powers of 1024.

    >>> size_text(512), size_text(1_048_576), size_text(1_500_000)
    ('512 B', '1.0 MiB', '1.4 MiB')
    """
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
