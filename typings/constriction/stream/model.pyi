import numpy as np
from numpy.typing import NDArray

class Model: ...

class Categorical(Model):
    def __init__(
        self,
        probabilities: NDArray[np.float32] | None = None,
        lazy: bool | None = None,
        perfect: bool | None = None,
    ) -> None: ...

class Uniform(Model):
    def __init__(self, size: int | None = None) -> None: ...
