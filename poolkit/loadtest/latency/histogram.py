"""Latencies as HdrHistograms: 1 µs to 1 h with three significant digits, and they add up.

The histogram of several processes is the sum of their histograms, count by count: nothing is
averaged. A figure is the upper end of a bucket, at most 0.1 % above the measured value.

The buckets and the encoding are those of HdrHistogram (hdrhistogram.org), so other tools read the
files. The package of that name is not used: it reserves 184 kB for each histogram, which is too
much for thousands of names with a few requests each. Here a histogram is a dict of the buckets in
use, about 75 bytes each. When one is added to another, the sum of more than `DENSE_FROM` buckets is
an array of all, so that no histogram of a run needs more than 190 kB.
"""

from __future__ import annotations

import binascii
import math
import struct
import zlib
from array import array
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LOWEST_US = 1
HIGHEST_US = 3_600_000_000
DIGITS = 3

# For three digits HdrHistogram has 2048 steps of 1 µs, then 1024 steps each of 2, 4, 8 ... µs.
_HALF_BITS = 10
BUCKETS = 23_552
"""The number of buckets up to `HIGHEST_US`, as HdrHistogram counts them."""
DENSE_FROM = 2_000
"""A dict of more buckets than these needs more memory than the array of all of them."""

_PAYLOAD, _PAYLOAD_COOKIE = struct.Struct(">IIIIQQd"), 0x1C849313
_WRAPPER, _WRAPPER_COOKIE = struct.Struct(">II"), 0x1C849314
_LONGEST_COUNT_BYTES = 9

Counts: TypeAlias = "dict[int, int] | array[int]"


def bucket_of(ms: float) -> int:
    """Return HdrHistogram's index of the bucket of a latency."""
    us = int(ms * 1000 + 0.5)
    if not 0 <= us <= HIGHEST_US:
        us = 0 if us < 0 else HIGHEST_US
    shift = us.bit_length() - 1 - _HALF_BITS
    return us if shift <= 0 else (shift << _HALF_BITS) + (us >> shift)


class LatencyHistogram:
    """The number of requests by latency; all times in ms.

    A time below 1 µs counts as 0, one above an hour as an hour. Another thread may read it while
    it is recorded in: a reader copies the counts first, in one step of the interpreter.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counts = {}
        """The number of requests by bucket; see `bucket_of`."""

    @classmethod
    def of(cls, latencies_ms: Iterable[float]) -> Self:
        """Return the histogram of some latencies."""
        found = cls()
        for ms in latencies_ms:
            found.record(ms)
        return found

    def record(self, ms: float, times: int = 1) -> None:
        """Count a request, or several of the same latency."""
        counts, bucket = self.counts, bucket_of(ms)
        if isinstance(counts, dict):
            # No exception for a missing key: most buckets of a microsecond are new.
            counts[bucket] = counts.get(bucket, 0) + times
        else:
            counts[bucket] += times

    def add(self, other: LatencyHistogram) -> None:
        """Add the counts of another histogram."""
        if self.counts:
            self.add_buckets(other.buckets_in_use())
        elif isinstance(other.counts, array):
            self.counts = other.counts[:]
        else:
            self.counts = other.counts.copy()

    def add_buckets(self, buckets: Iterable[tuple[int, int]]) -> None:
        """Add counts by HdrHistogram's index of the bucket."""
        counts = self.counts
        if isinstance(counts, array):
            for bucket, count in buckets:
                counts[bucket] += count
            return
        for bucket, count in buckets:
            counts[bucket] = counts.get(bucket, 0) + count
        if len(counts) > DENSE_FROM:
            dense = array("Q", [0]) * BUCKETS
            for bucket, count in counts.items():
                dense[bucket] = count
            self.counts = dense

    def buckets_in_use(self) -> list[tuple[int, int]]:
        """Return index and count of every bucket in use; in order only if it is an array."""
        if isinstance(self.counts, array):
            return [(bucket, count) for bucket, count in enumerate(self.counts) if count]
        return list(self.counts.items())

    def buckets(self) -> list[tuple[int, int]]:
        """Return index and count of every bucket in use, in order."""
        used = self.buckets_in_use()
        return used if isinstance(self.counts, array) else sorted(used)

    @property
    def count(self) -> int:
        """The number of requests."""
        counts = self.counts
        return sum(counts if isinstance(counts, array) else counts.values())

    @property
    def max(self) -> float | None:
        """The longest; None without a request."""
        used = self.buckets_in_use()
        return _highest_us(max(used)[0]) / 1000 if used else None

    def count_above(self, ms: float) -> int:
        """Return the number of longer requests, to the histogram's three digits."""
        us = ms * 1000
        return sum(count for bucket, count in self.buckets_in_use() if _highest_us(bucket) > us)

    @property
    def mean(self) -> float | None:
        """The mean, each request taken as the middle of its bucket; None without a request."""
        # The first 2048 buckets are 1 µs wide: their middle is their number. The middle of the
        # others is computed inline, since a page asks for the mean every second.
        total, requests = 0.0, 0
        for bucket, count in self.buckets_in_use():
            requests += count
            shift = (bucket >> _HALF_BITS) - 1
            if shift <= 0:
                total += bucket * count
            else:
                total += (((bucket - (shift << _HALF_BITS) + 0.5) * (1 << shift)) - 0.5) * count
        return total / requests / 1000 if requests else None

    def percentile(self, p: float) -> float | None:
        """Return the smallest latency with `p` percent of the requests at or below it.

        Nearest rank, as in the reports of `poolkit compare`; None without a request.

        Raises:
            ValueError: `p` is not from 0 to 100.
        """
        return self.percentiles((p,))[0]

    def percentiles(self, wanted: Sequence[float]) -> list[float | None]:
        """Return several percentiles, given in rising order; see `percentile`."""
        if not all(0 <= p <= 100 for p in wanted):
            raise ValueError(f"a percentile is from 0 to 100, not {wanted!r}")
        used = self.buckets()
        count = sum(number for _, number in used)
        if not count:
            return [None] * len(wanted)
        rising = iter(used)
        bucket, seen = next(rising)
        found: list[float | None] = []
        for p in wanted:
            # 99.9 * 1000 / 100 is slightly above 999 in floating point, and means 999.
            rank = max(1, math.ceil(p * count / 100 - 1e-9))
            while seen < rank:
                bucket, number = next(rising)
                seen += number
            found.append(_highest_us(bucket) / 1000)
        return found

    def encode(self) -> str:
        """Return it in HdrHistogram's compressed form V2, in base64; values are in µs.

        The form is described in the source of HdrHistogram's `encodeIntoByteBuffer`: a header, then
        the counts from bucket 0 on as variable-length integers, a run of empty buckets as the
        negative of its length.
        """
        numbers = bytearray()
        following = 0
        for bucket, count in self.buckets():
            if bucket > following:
                _append_varint(numbers, 2 * (bucket - following) - 1)
            _append_varint(numbers, 2 * count)
            following = bucket + 1
        header = _PAYLOAD.pack(
            *(_PAYLOAD_COOKIE, len(numbers), 0, DIGITS, LOWEST_US, HIGHEST_US, 1.0)
        )
        payload = zlib.compress(header + numbers)
        return b64encode(_WRAPPER.pack(_WRAPPER_COOKIE, len(payload)) + payload).decode("ascii")

    @classmethod
    def decode(cls, encoded: str | bytes) -> Self:
        """Return the histogram of a text that `encode`, or another tool, returned.

        Raises:
            ValueError: it is no histogram, or has other buckets.
        """
        try:
            wrapped = b64decode(encoded, validate=True)
            cookie, length = _WRAPPER.unpack_from(wrapped)
            payload = zlib.decompress(wrapped[_WRAPPER.size : _WRAPPER.size + length])
            inner, length, _, digits, lowest, highest, _ = _PAYLOAD.unpack_from(payload)
        except (binascii.Error, struct.error, zlib.error, ValueError) as error:
            raise ValueError(f"not an HdrHistogram in base64 (V2): {error}") from None
        if (cookie, inner) != (_WRAPPER_COOKIE, _PAYLOAD_COOKIE):
            raise ValueError(f"not an HdrHistogram in base64 (V2): its cookie is {cookie:#x}")
        if (lowest, highest, digits) != (LOWEST_US, HIGHEST_US, DIGITS):
            raise ValueError(
                f"wanted a histogram from {LOWEST_US} to {HIGHEST_US} µs to {DIGITS} digits, "
                f"found one from {lowest} to {highest} to {digits}"
            )
        counts: dict[int, int] = {}
        bucket = 0
        for number in _varints(payload[_PAYLOAD.size : _PAYLOAD.size + length]):
            if number & 1:  # a run of empty buckets
                bucket += (number + 1) // 2
                continue
            if number:
                counts[bucket] = number // 2
            bucket += 1
        histogram = cls()
        histogram.add_buckets(counts.items())
        return histogram

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyHistogram) and self.buckets() == other.buckets()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"<LatencyHistogram of {self.count} requests>"


def _highest_us(bucket: int) -> int:
    shift = max(0, (bucket >> _HALF_BITS) - 1)
    return ((bucket - (shift << _HALF_BITS) + 1) << shift) - 1


def _append_varint(to: bytearray, number: int) -> None:
    """Append an integer in groups of seven bits, lowest first (LEB128)."""
    while number > 0x7F:
        to.append(number & 0x7F | 0x80)
        number >>= 7
    to.append(number)


def _varints(encoded: bytes) -> Iterable[int]:
    number = shift = 0
    for byte in encoded:
        # HdrHistogram's longest number has nine bytes, and the last of them eight bits.
        if shift == 7 * (_LONGEST_COUNT_BYTES - 1):
            yield number | byte << shift
            number = shift = 0
            continue
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
