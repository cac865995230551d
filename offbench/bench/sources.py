"""Sources of settings: the layer that each value comes from."""

from enum import Enum, auto
from typing import NamedTuple


class Layer(Enum):
    """The layers of settings, in the order of `offbench.bench.plan`."""

    # of the class
    DEFAULT = auto()
    # conf/run.yaml
    RUN = auto()
    # conf/method/NAME.yaml
    METHOD = auto()
    # conf/view/NAME.yaml and the like, replacing that of the method
    OPTION = auto()
    # the number in `iql+nstep3`
    ENTRY = auto()
    SUITE = auto()
    BUDGET = auto()
    PRESET = auto()
    COMMAND_LINE = auto()
    # evaluation where a task has no environment
    NO_ENVIRONMENT = auto()


class Source(NamedTuple):
    """The layer of a value and its name; `str()` is the wording in records."""

    layer: Layer
    # of the method, option ("view/chunk"), suite or entry; variant of a preset, "" for the usual one
    name: str = ""
    # the publication of a budget or preset
    published: str = ""
    # budget of the first part of a mixture
    carried: bool = False

    @property
    def words(self) -> str:
        """The source in words, without its publication."""
        match self.layer:
            case Layer.RUN:
                return "conf/run.yaml"
            case Layer.METHOD:
                return f"conf/method/{self.name}.yaml"
            case Layer.OPTION:
                return f"conf/{self.name}.yaml"
            case Layer.SUITE | Layer.ENTRY:
                return f"{self.layer.name.lower()} {self.name}"
            case Layer.PRESET:
                return f"preset={self.name}" if self.name else "preset"
            case Layer.BUDGET:
                return f"{'carried over from its first part: ' if self.carried else ''}budget"
        return self.layer.name.lower().replace("_", " ")

    @property
    def brief(self) -> str:
        """The source in one or two words, for the header of a benchmark."""
        if self.layer in (Layer.DEFAULT, Layer.METHOD):
            return "method default"
        return "published budget" if self.layer is Layer.BUDGET else self.words

    def __str__(self) -> str:
        return f"{self.words} ({self.published})" if self.published else self.words


DEFAULT = Source(Layer.DEFAULT)
RUN = Source(Layer.RUN)
COMMAND_LINE = Source(Layer.COMMAND_LINE)
NO_ENVIRONMENT = Source(Layer.NO_ENVIRONMENT)
