"""Where the value of a setting comes from, as data; its words are for people and for records."""

from enum import Enum, auto
from typing import NamedTuple


class Layer(Enum):
    """The layers of settings, in the order of `offbench.bench.plan`."""

    DEFAULT = auto()  # of the class
    RUN = auto()  # conf/run.yaml
    METHOD = auto()  # conf/method/NAME.yaml
    OPTION = auto()  # conf/view/NAME.yaml and the like, in place of the method's own
    ENTRY = auto()  # the number in `iql+nstep3`
    SUITE = auto()
    BUDGET = auto()
    PRESET = auto()
    COMMAND_LINE = auto()
    # evaluation where a task has no environment
    NO_ENVIRONMENT = auto()


class Source(NamedTuple):
    """The layer that a value comes from, and which one of its kind; `str()` says it in words."""

    layer: Layer
    # of the method, option ("view/chunk"), suite or entry; of a preset whose it is, "" for the usual one
    name: str = ""
    # the publication of a budget or preset
    published: str = ""
    # a mixture's budget is that of its first part
    carried: bool = False

    @property
    def words(self) -> str:
        """Without the publication."""
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
        """In a word or two, for the first lines of a benchmark."""
        if self.layer in (Layer.DEFAULT, Layer.METHOD):
            return "method default"
        return "published budget" if self.layer is Layer.BUDGET else self.words

    def __str__(self) -> str:
        return f"{self.words} ({self.published})" if self.published else self.words


DEFAULT = Source(Layer.DEFAULT)
RUN = Source(Layer.RUN)
COMMAND_LINE = Source(Layer.COMMAND_LINE)
NO_ENVIRONMENT = Source(Layer.NO_ENVIRONMENT)
