"""Settings of all tests.

Hypothesis draws the same examples in every run, so that a red run is red again. HYPOTHESIS_PROFILE=explore draws new
ones, and more.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
