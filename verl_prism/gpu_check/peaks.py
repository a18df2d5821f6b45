"""Speeds that the makers of GPUs state."""

from typing import NamedTuple


class Peak(NamedTuple):
    """Peak speeds of a GPU."""

    tflops: float  # dense bf16, per second
    bandwidth: float  # of its memory, in TB/s


# By a part of the device's name; the first that fits counts. Without a suffix, the SXM version.
PEAKS = {
    "H100 PCIe": Peak(756, 2.0),
    "H100": Peak(989, 3.35),
    "H200": Peak(989, 4.8),
    "B200": Peak(2250, 8.0),
    "A100": Peak(312, 2.039),  # with 80 GB
    "L40S": Peak(362, 0.864),
}


def peak_of(device_name: str) -> Peak | None:
    """Return the peak speeds of a GPU, None if they are not known here."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)
