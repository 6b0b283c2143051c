"""The type of vectors inside the core."""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
"""float32, of shape (n, d), or (d,) for one vector."""
