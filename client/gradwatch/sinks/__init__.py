"""The same statistics for another tracker too: ``watch.add_sink(TensorBoard("runs/one"))``."""

from gradwatch.sinks.figures import Figures
from gradwatch.sinks.mirror import Sink
from gradwatch.sinks.tensorboard import TensorBoard

__all__ = ["Figures", "Sink", "TensorBoard"]
