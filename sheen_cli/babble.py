"""Babble: sound that stands in for speech where any backbone must be tried and no recording is
at hand.
"""

import numpy as np

LETTER = 0.08  # seconds
PITCH = 120.0  # Hz
VOWELS = ((310, 2020), (360, 640), (440, 1020), (490, 1350), (600, 1720), (730, 1090))  # Hz


def speech(text: str, rate: int) -> np.ndarray:
    """A sound for each letter, float32 (n,) at `rate` Hz: equal texts sound equal, others do not.

    Harmonics of one pitch under two formants, which follow from the letter's code; white space is
    a hush, and nothing is ever silent.
    """
    time = np.arange(round(LETTER * rate)) / rate
    harmonics = np.arange(1, int(min(rate / 2, 4000) / PITCH)) * PITCH
    sounds = []
    for letter in text.casefold():
        code = ord(letter)
        first, second = VOWELS[code % len(VOWELS)]
        moved = second * (1 + 0.08 * (code // len(VOWELS) % 5))
        distance = np.minimum(abs(harmonics - first), abs(harmonics - moved))
        weights = np.exp(-distance / 200)
        waves = np.sin(2 * np.pi * harmonics[:, None] * time + harmonics[:, None])
        envelope = 0.2 + 0.8 * np.sin(np.pi * time / time[-1])
        loud = 0.02 if letter.isspace() else 0.3
        sounds.append(loud * envelope * (weights @ waves) / weights.sum())
    return np.concatenate(sounds).astype(np.float32)
