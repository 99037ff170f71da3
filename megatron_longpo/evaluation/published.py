"""The paper's own results (arXiv 2502.13922, Tables 1 to 3), to stand beside ours. None of these numbers was measured here.

Its prompts, texts and samples are not ours: compare a model's gains with theirs rather than single numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

SOURCE = "arXiv 2502.13922"
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)


@dataclasses.dataclass(frozen=True)
class PublishedLengths:
    """A row of Table 2: RULER's groups and the mean of its 13 tasks, in percent, at each of `LENGTHS`."""

    model: str
    groups: Mapping[str, tuple[float, ...]]
    tasks: tuple[float, ...]


BY_LENGTH = (
    PublishedLengths(
        "Qwen2.5-7B-Instruct",
        {
            "NIAH": (99.69, 98.45, 97.82, 95.24, 74.56, 26.86),
            "VT": (99.88, 99.72, 96.24, 96.44, 81.44, 6.84),
            "AGG": (92.52, 89.78, 92.08, 81.93, 62.48, 28.23),
            "QA": (71.00, 65.30, 64.00, 58.70, 46.80, 19.99),
        },
        (94.19, 92.11, 91.61, 87.66, 68.96, 24.47),
    ),
    PublishedLengths(
        "Qwen2.5-7B-LongPO-128K",
        {
            "NIAH": (99.64, 98.97, 97.80, 95.54, 94.80, 88.15),
            "VT": (99.96, 99.92, 96.12, 86.24, 78.20, 77.80),
            "AGG": (95.50, 86.12, 91.75, 82.56, 66.31, 49.81),
            "QA": (70.00, 64.00, 62.70, 57.70, 53.00, 49.00),
        },
        (94.47, 91.69, 91.34, 87.00, 82.71, 75.43),
    ),
    PublishedLengths(
        "Mistral-7B-LongPO-128K",
        {
            "NIAH": (99.43, 98.64, 98.09, 97.84, 95.82, 91.44),
            "VT": (99.40, 99.16, 98.08, 96.36, 92.80, 93.12),
            "AGG": (88.31, 82.91, 92.23, 72.775, 46.305, 46.79),
            "QA": (71.10, 70.15, 66.60, 65.80, 61.00, 54.20),
        },
        (93.36, 91.88, 92.35, 88.94, 82.61, 78.97),
    ),
    PublishedLengths(
        "Mistral-7B-LongPO-256K",
        {
            "NIAH": (99.16, 97.79, 98.02, 97.76, 96.53, 91.54),
            "VT": (99.40, 99.20, 97.96, 97.72, 94.21, 93.52),
            "AGG": (87.40, 76.59, 89.03, 72.20, 45.17, 44.47),
            "QA": (71.50, 69.50, 66.70, 64.30, 60.80, 56.40),
        },
        (93.11, 90.28, 91.81, 88.68, 82.95, 79.04),
    ),
    PublishedLengths(
        "Mistral-7B-LongPO-512K",
        {
            "NIAH": (99.19, 97.78, 98.06, 97.69, 96.62, 94.36),
            "VT": (99.44, 99.16, 98.04, 97.80, 95.92, 94.52),
            "AGG": (87.56, 76.71, 88.95, 72.70, 44.93, 44.51),
            "QA": (71.40, 69.50, 66.40, 64.50, 60.60, 57.10),
        },
        (93.14, 90.29, 91.78, 88.75, 83.07, 80.97),
    ),
)


@dataclasses.dataclass(frozen=True)
class PublishedLong:
    """A row of Table 1: InfiniteBench (En.Sum, En.QA, En.MC, mean) and RULER over all lengths (NIAH, VT, QA, mean)."""

    model: str
    length: str
    infinitebench: tuple[float, float, float, float]
    ruler: tuple[float, float, float, float]


LONG = (
    PublishedLong("GPT-4-128K", "128K", (14.73, 22.44, 67.25, 34.81), (95.4, 99.9, 70.3, 88.53)),
    PublishedLong("Qwen2-72B", "128K", (24.32, 7.03, 72.05, 34.47), (88.6, 95.7, 66.7, 83.67)),
    PublishedLong("LLaMA 3.1-70B", "128K", (33.55, 36.08, 69.00, 46.21), (96.1, 93.2, 67.8, 85.7)),
    PublishedLong("LLaMA 3.1-8B", "128K", (28.06, 30.47, 58.08, 38.87), (97.93, 91.4, 64.7, 84.68)),
    PublishedLong("GLM-4-9B", "128K", (14.84, 9.51, 67.25, 30.53), (96.51, 97.3, 64.80, 86.20)),
    PublishedLong("GLM-4-9B-1M", "1M", (28.3, 9.7, 68.6, 35.53), (98.2, 99.4, 69.4, 89.0)),
    PublishedLong("LWM-7B-1M", "1M", (4.33, 0.0, 3.06, 2.46), (87.20, 57.5, 56.4, 67.03)),
    PublishedLong("YaRN-Mistral-7B", "128K", (9.09, 9.55, 27.95, 15.53), (63.4, 36.1, 25.9, 41.8)),
    PublishedLong("Mistral-7B-Instruct-v0.2", "32K", (22.13, 4.93, 14.41, 13.82), (72.60, 74.40, 52.2, 66.4)),
    PublishedLong("Mistral-7B SFT", "128K", (23.44, 13.45, 53.21, 30.03), (88.73, 79.64, 51.08, 73.15)),
    PublishedLong("Mistral-7B DPO", "128K", (15.21, 10.34, 48.14, 25.56), (74.25, 72.36, 50.24, 65.62)),
    PublishedLong("Mistral-7B-LongPO-128K", "128K", (27.05, 23.51, 67.25, 39.27), (96.88, 96.49, 64.81, 86.06)),
    PublishedLong("Mistral-7B-LongPO-256K", "256K", (28.16, 24.43, 66.35, 39.65), (96.80, 97.0, 64.87, 86.22)),
    PublishedLong("Mistral-7B-LongPO-512K", "512K", (29.10, 27.85, 66.67, 41.21), (97.28, 97.48, 64.92, 86.56)),
    PublishedLong("Qwen2.5-7B-Instruct", "128K", (22.89, 6.08, 52.4, 27.12), (82.1, 80.09, 54.30, 72.16)),
    PublishedLong("Qwen2.5-7B-LongPO-128K", "128K", (32.06, 17.32, 72.05, 40.48), (95.81, 89.71, 59.4, 81.64)),
)

SHORT: Mapping[str, tuple[float, float, float, float]] = {
    "Mistral-7B-Instruct-v0.2": (59.15, 59.26, 83.2, 78.4),
    "Mistral-7B-LongPO-128K": (59.99, 59.34, 82.99, 78.53),
    "Mistral-7B-LongPO-256K": (59.47, 60.28, 83.14, 78.14),
    "Mistral-7B-LongPO-512K": (59.51, 60.58, 82.87, 77.66),
    "Qwen2.5-7B-Instruct": (74.28, 67.15, 81.41, 74.66),
    "Qwen2.5-7B-LongPO-128K": (73.64, 65.70, 80.82, 74.98),
}
"""Table 3: MMLU (5-shot), ARC-C (25), HellaSwag (10), Winogrande (5)."""
