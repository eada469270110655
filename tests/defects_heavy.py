"""A backbone that imports a model library although it only wants its own module."""

import transformers  # noqa: F401
from defects import defective

imports = defective("imports")
