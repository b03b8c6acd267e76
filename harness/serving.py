"""How one variant of a release is run: the session settings that its manifest entry names, and the sessions made with them.

Judging and serving open models here and nowhere else, so what was judged is what runs. Chooses no settings and
measures none: a recipe does, and writes them into the manifest. Imports a runtime only once a session is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from harness.errors import ArtifactError, UsageError, one_line
from harness.instruction_sets import entry_of_target

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

# With more, one query after another is seldom faster, and sessions that share a process disturb each other.
JUDGED_THREADS = 1
_ERRORS_ONLY = 3


class OptimizationLevel(Enum):
    """How far onnxruntime rewrites a graph when it is loaded, by onnxruntime's own names.

    A graph that was optimized before it was shipped is loaded with `NONE` or `BASIC`.
    https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
    """

    NONE = "ORT_DISABLE_ALL"
    BASIC = "ORT_ENABLE_BASIC"
    EXTENDED = "ORT_ENABLE_EXTENDED"
    LAYOUT = "ORT_ENABLE_LAYOUT"
    ALL = "ORT_ENABLE_ALL"


class Runtime(Enum):
    """What runs a release's model files; a program or a judging session asks for it, no manifest does."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"  # an extra; another program on the same file, so it answers with other numbers

    @classmethod
    def named(cls, name: str) -> Runtime:
        """Look a runtime up.

        Raises:
            UsageError: there is none of that name.
        """
        try:
            return cls(name)
        except ValueError as err:
            known = " or ".join(runtime.value for runtime in cls)
            message = f"there is no runtime {one_line(repr(name), 60)}. Ask for {known}."
            raise UsageError(message) from err


class Provider(Enum):
    """What computes; other providers answer with other numbers, so none but the judged ones is taken."""

    CPU = "CPUExecutionProvider"


class Session(Protocol):
    """A model that is loaded; onnxruntime's sessions are such. Threads may share one."""

    def get_inputs(self) -> Sequence[Any]:
        """What it is fed with, each with `name`, `type` (`tensor(int64)`) and `shape`."""
        ...

    def get_outputs(self) -> Sequence[Any]:
        """What it answers with, described alike."""
        ...

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]], /) -> Sequence[Any]:
        """Run it once, for the outputs named."""
        ...


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """What a session is opened with.

    Attributes:
        threads: threads inside one model run.
        graph_optimization_level: how far the graph is rewritten at load.
        disabled_optimizers: rewrites that are left out, by onnxruntime's names (`SkipLayerNormFusion`).
            onnxruntime passes over names that it does not know, in silence.
        provider: what computes.
    """

    threads: int = JUDGED_THREADS
    graph_optimization_level: OptimizationLevel = OptimizationLevel.ALL
    disabled_optimizers: tuple[str, ...] = ()
    provider: Provider = Provider.CPU

    def __post_init__(self) -> None:
        """Refuse a number of threads that no session has, and names that are given twice or are none."""
        if type(self.threads) is not int or self.threads < 0:
            message = f"threads must be 0 (onnxruntime's choice) or more, not {self.threads!r}"
            raise ValueError(message)
        names = self.disabled_optimizers
        if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            message = f"disabled_optimizers must be different names of onnxruntime's, not {', '.join(map(repr, names))}"
            raise ValueError(message)

    def to_json(self) -> dict[str, Any]:
        """Write the entry `serving` of a manifest; `from_json(settings.to_json(), …) == settings`."""
        return {
            "intra_op_num_threads": self.threads,
            "graph_optimization_level": self.graph_optimization_level.value,
            "disabled_optimizers": list(self.disabled_optimizers),
            "provider": self.provider.value,
        }

    @classmethod
    def from_json(cls, entry: object, where: str) -> ServingSettings:
        """Read what `to_json` writes. Releases of manifest version 1 name no disabled optimizers.

        Raises:
            ArtifactError: a setting is missing, unknown, or has a value that it cannot have; nothing is guessed, for
                a model under other settings is another model.
        """
        if not isinstance(entry, dict):
            message = f"{where} has no serving settings. Release again."
            raise ArtifactError(message)
        content = {"disabled_optimizers": [], **entry}
        names = ("intra_op_num_threads", "graph_optimization_level", "disabled_optimizers", "provider")
        if differing := sorted(set(content) ^ set(names)):
            problem = "is missing" if differing[0] in names else "is no setting that this harness knows"
            message = f"{where}: serving.{one_line(differing[0], 60)} {problem}. Update the harness, or release again."
            raise ArtifactError(message)
        threads, level, optimizers, provider = (content[name] for name in names)
        try:
            return cls(threads, OptimizationLevel(level), _names(optimizers), Provider(provider))
        except ValueError as err:
            message = f"{where}: serving cannot be followed: {one_line(err)}. Update the harness, or release again."
            raise ArtifactError(message) from err

    def session_options(self) -> onnxruntime.SessionOptions:
        """Build onnxruntime's options; the disabled optimizers are not among them, see `open_session`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel.__members__[self.graph_optimization_level.value]
        options.graph_optimization_level = level
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Without it, threads spin for some ms after each call and take a small machine's other core away.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def open_session(self, model: Path, runtime: Runtime = Runtime.ONNXRUNTIME) -> Session:
        """Open a model file. OpenVINO takes the number of threads alone from the settings: the rest is onnxruntime's.

        Raises:
            ArtifactError: the runtime cannot load it.
            MissingPackageError: the runtime is not installed.
        """
        if runtime is Runtime.OPENVINO:
            from harness.openvino_session import OpenVinoSession

            return OpenVinoSession(model, self.threads)
        session: Session = self._onnxruntime_session(model)
        return session

    def _onnxruntime_session(self, model: Path) -> onnxruntime.InferenceSession:
        import onnxruntime

        try:
            return onnxruntime.InferenceSession(
                str(model),
                sess_options=self.session_options(),
                providers=[self.provider.value],
                disabled_optimizers=list(self.disabled_optimizers) or None,
            )
        except Exception as err:
            message = (
                f"{model} cannot be loaded by onnxruntime {onnxruntime.__version__}: {one_line(err)}. Export again."
            )
            raise ArtifactError(message) from err


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        message = f"disabled_optimizers is {one_line(repr(value), 60)}, not a list of names"
        raise ValueError(message)
    return tuple(cast("list[str]", value))


@dataclass(frozen=True, slots=True)
class VariantEntry:
    """What a manifest says about one variant.

    Attributes:
        serving: what its session is opened with.
        cpu: which CPUs its numbers are right on; empty where nothing says.
        recipe: how it was quantized, enough to do so again; None where it was not.
    """

    serving: ServingSettings = ServingSettings()
    cpu: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Write the variant's entry of a manifest; `from_json(entry.to_json(), …) == entry`."""
        content: dict[str, Any] = {"serving": self.serving.to_json(), "cpu": dict(self.cpu)}
        return content if self.recipe is None else {**content, "recipe": dict(self.recipe)}

    @classmethod
    def from_json(cls, entry: object, where: str) -> VariantEntry:
        """Read what `to_json` writes.

        Raises:
            ArtifactError: it is something else.
        """
        if not isinstance(entry, dict):
            message = (
                f"{where} is {one_line(repr(entry), 60)}, not what a manifest says about a variant. Release again."
            )
            raise ArtifactError(message)
        cpu, recipe = entry.get("cpu"), entry.get("recipe")
        if not isinstance(cpu, dict) or not isinstance(recipe, dict | None):
            name = "recipe" if isinstance(cpu, dict) else "cpu"
            message = f"{where}: {name} is {one_line(repr(entry.get(name)), 60)}, not an object. Release again."
            raise ArtifactError(message)
        return cls(ServingSettings.from_json(entry.get("serving"), where), cpu, recipe)

    @classmethod
    def of_version_1(cls, serving: object, recipe: Mapping[str, Any] | None, where: str) -> VariantEntry:
        """Read the settings that all variants of an earlier manifest share; it may have none, and then had the defaults."""
        settings = ServingSettings() if serving in (None, {}) else ServingSettings.from_json(serving, where)
        return cls(settings, entry_of_target((recipe or {}).get("target")), recipe)
