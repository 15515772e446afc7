"""Every error a caller can meet, and the exit status the command line gives it.

    OnnxpruneError           something failed; nothing was written          exit 1
    ├── ModelError           the file is not a model that can be pruned
    │   └── GradientError    a derivative is asked for that can't be written
    ├── PlanError            a plan does not fit the model
    ├── ProfileError         a device profile can't be read
    ├── TapeError            a tape of progressive pruning can't be read, or is of another run
    ├── SidecarError         what brings back a sparse model's weights can't be read, or is of another model
    ├── StateError           the state of a training run can't be read, or is of another run
    ├── DataError            calibration or evaluation data do not fit the model
    ├── OptionError          an option has a value that makes no sense
    ├── OutputError          the result can't be written
    ├── TargetError          no model meets the target, or none that may be taken
    ├── VerificationError    pruned and masked model disagree, or a runtime refuses the result
    └── UsageError           the request itself is incomplete               exit 2

Messages are one line and say where, what, why and what to do.
"""


class OnnxpruneError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ModelError(OnnxpruneError):
    """The given file or proto is not a model that can be read, understood or run."""


class GradientError(ModelError):
    """A derivative through a node without a rule, or of a loss that does not fit the model's outputs. ``node``: its label."""

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class PlanError(OnnxpruneError):
    """A plan names tensors, axes or indices that the model does not have, or splits coupled channels."""


class ProfileError(OnnxpruneError):
    """A device profile that can't be read."""


class TapeError(OnnxpruneError):
    """A tape of progressive pruning that can't be read, or is of a run with other settings."""


class SidecarError(OnnxpruneError):
    """The file that brings back a sparse model's weights can't be read, or belongs to another model."""


class StateError(OnnxpruneError):
    """The state of a training run that can't be read, or is of a run with other settings."""


class DataError(OnnxpruneError):
    """Data whose names, shapes, types or values do not fit the model."""


class OptionError(OnnxpruneError):
    """An option outside the range in which it means something."""


class OutputError(OnnxpruneError):
    """The output path can't be used."""


class TargetError(OnnxpruneError):
    """No cut of the model meets the target; the message names the nearest that there is."""


class VerificationError(OnnxpruneError):
    """The pruned model does not equal the masked original, or onnxruntime refuses it."""


class UsageError(OnnxpruneError):
    """The call lacks something it needs, or names something that does not exist."""

    exit_code = 2
