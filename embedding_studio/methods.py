"""What a fine-tuning method is, and where methods are found."""

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import json
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from embedding_studio.clickstream import EVENT_WEIGHTS, Session, Splits
from embedding_studio.errors import MethodError, PluginError, UnknownMethod
from embedding_studio.projects import check_model_name
from embedding_studio.tasks import Budget, Promote, Pruner, Sampler
from embedding_studio.threads import in_own_thread

if TYPE_CHECKING:
    import numpy as np
    import optuna
    from numpy.typing import NDArray

Model = TypeVar("Model")

MetricValues: TypeAlias = "float | NDArray[np.floating[Any]]"
"""A metric of a model: one number, or an array with one value per query (logged as its mean)."""

Scores: TypeAlias = "Mapping[str, MetricValues]"
"""Metrics by name."""

Direction: TypeAlias = Literal["maximize", "minimize"]


def is_better(direction: Direction, scores: MetricValues, than: "MetricValues | None") -> bool:
    """Return whether a main metric is better by more than one standard error of the difference;
    anything is better than None.

    scores, than: a value per query, of the same queries, or one number each, which has no error.
    Breiman et al. 1984 (section 3.4.3): a difference within the noise decides nothing."""
    import numpy as np

    if than is None:
        return True
    if np.shape(scores) != np.shape(than):
        scores, than = float(np.mean(scores)), float(np.mean(than))
    difference = np.atleast_1d(np.asarray(scores, float) - np.asarray(than, float))
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    gain = difference.mean() * (-1 if direction == "minimize" else 1)
    return bool(gain > error)


Parameters: TypeAlias = dict[str, Any]
"""One hyperparameter set, as Optuna suggested it: str, int, float, bool or None by name."""


@dataclass(frozen=True, slots=True)
class PluginMeta:
    """What a plugin says of itself.

    name: what a task names, unique among the plugins of an installation; letters, digits,
    spaces and ._+- only, for it is also the name of the registered model."""

    name: str
    version: str = "1.0.0"
    description: str = ""

    def __post_init__(self) -> None:
        check_model_name(self.name)


class TrialRun(ABC):
    """What `train` holds while it runs: its seed, what it has cost, and the one checkpoint.

    trained_tokens: tokens seen times epochs, padding apart; `train` adds to it as it goes.
    baseline: the starting model's validation metrics; None where nobody has scored it.
    should_stop: set by `report` when somebody wants to see what there is: return the model as it
    stands. Whoever reports once more instead is interrupted, and the trial does not count."""

    seed: int
    trained_tokens: int = 0
    baseline: Mapping[str, float] | None = None
    should_stop: bool = False

    @abstractmethod
    def report(self, scores: Scores, step: int) -> None:
        """Log validation scores at a step (an epoch, say); they must contain the main metric.

        Raises TrialPruned or TrialCanceled when the trial must end: let it pass.
        Raises MethodError when the main metric is missing or no finite number."""


class FineTuningMethod(ABC, Generic[Model]):
    """How to load, train and score one kind of model. Subclass it in a file under plugins/.

    One instance serves one process; `train` and `evaluate` run in a process of their own per
    trial. Metrics are computed on held-out queries: `train` never sees `data.test`.

    sampler, pruner: how to search unless the task says so: tpe, random, gp or grid; hyperband,
    asha, median, patient or none.
    recommended: a set that `suggest` can draw, tried before any other.
    event_weights: as how many clicks an event of a type counts, where EVENT_WEIGHTS does not say
    what this method needs; 0: not at all.
    promote: what a new model has to show to become champion, unless the task says so: significant,
    better or never, as in Promote.
    folds: how many parts of the queries judge, unless the task says so. 1: the best model is judged
    by the test queries and may be served. From 2 on, its hyperparameter set is: it is trained once
    per part of the queries, without them, and judged by all these parts together; what is served is
    trained on all of them.
    num_cpus, num_gpus: what a trial takes on a Ray cluster; None for one core. It gets GPUs where
    there are any, else it does without."""

    meta: ClassVar[PluginMeta]
    main_metric: ClassVar[str]
    direction: ClassVar[Direction] = "maximize"
    budget: ClassVar[Budget] = Budget(max_trials=8, max_minutes=60)
    sampler: ClassVar[str] = Sampler.TPE
    pruner: ClassVar[str] = Pruner.MEDIAN
    recommended: ClassVar[Parameters | None] = None
    event_weights: ClassVar[Mapping[str, float]] = EVENT_WEIGHTS
    promote: ClassVar[str] = Promote.SIGNIFICANT
    num_cpus: ClassVar[float | None] = None
    num_gpus: ClassVar[float] = 0
    validation_share: ClassVar[float] = 0.15
    test_share: ClassVar[float] = 0.15
    folds: ClassVar[int] = 3
    plugin_file: "PluginFile | None" = None
    """Where it was loaded from; None for an entry point."""

    @property
    def learns_from_labels(self) -> bool:
        """Whether `prepare` takes labels, as its third parameter, `labels`; else a task that names
        some is refused."""
        return "labels" in inspect.signature(self.prepare).parameters

    @abstractmethod
    def load_initial_model(self) -> Model:
        """Return what the first iteration starts from."""

    def load_model(self, place: str) -> Model:
        """Return what a task names to start from: a folder, or the id of a model on a hub. The
        default reads what `save` wrote, and knows no hub."""
        if not Path(place).is_dir():
            raise MethodError(
                f"initial_model is {place!r}, which is no folder here, and {self.meta.name!r} "
                "takes no model of a hub"
            )
        return self.load(Path(place))

    def check_initial_model(self) -> None:
        """Raise MethodError when what `load_initial_model` reads is not there, and say what to do.
        It is called every minute, for `health`."""

    @abstractmethod
    def suggest(self, trial: "optuna.Trial") -> Parameters:
        """Draw one hyperparameter set with `trial.suggest_float(...)` and its siblings."""

    @abstractmethod
    def train(self, model: Model, params: Parameters, data: Splits[Any], run: TrialRun) -> Model:
        """Return the model to keep; call `run.report` now and then."""

    @abstractmethod
    def evaluate(self, model: Model, split: Any) -> Scores:
        """Score a model on one split, the main metric per query where that makes sense: then the
        promotion gate asks whether a difference is more than chance."""

    def note_start(self, model: Model, folder: Path) -> Mapping[str, float]:
        """Write, beside what `prepare` wrote, what `evaluate` needs of the model that all trials
        start from, if anything: scores that others are compared with, say. Returns figures, as
        `prepare` does."""
        return {}

    def explain(self, model: Model, split: Any) -> Mapping[str, float]:
        """Return how good a model is on single queries, by the query's text, so that people see
        which gained and which lost; nothing where that cannot be told. More is better, whatever
        the direction of the main metric."""
        return {}

    def rank(self, model: Model, split: Any) -> Mapping[str, Sequence[str]]:
        """Return what a model ranks first for single queries, by the query's text: items as people
        know them, ten at most, so that people see what changed where `explain` tells how good it
        is; nothing where that cannot be told."""
        return {}

    def estimate_trained_tokens(self, params: Parameters, data: Splits[Any]) -> int | None:
        """Return about how many tokens `train` would count with these, if it counts any.

        Called before the search, for sets drawn at random: quick, and `data.test` is None."""
        return None

    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        """Write once, into an empty folder, what every trial of the iteration reads.

        Returns figures worth seeing in MLflow (counts, say). The default writes the sessions as
        they are, one JSON document per line. Raises NotEnoughData when nothing can be learnt."""
        for name, part in sessions.named().items():
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
                for session in part:
                    document = dataclasses.asdict(session)
                    lines.write(json.dumps(document, default=lambda time: time.isoformat()) + "\n")
        return {f"{name}_sessions": len(part) for name, part in sessions.named().items()}

    def load_data(self, folder: Path) -> Splits[Any]:
        """Open what `prepare` wrote. The default gives each split as a list of Session."""
        from pydantic import TypeAdapter

        session = TypeAdapter(Session)

        def read(name: str) -> list[Session]:
            with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
                return [session.validate_json(line) for line in lines]

        return Splits.of(read)

    def save(self, model: Model, folder: Path) -> None:
        """Write a model into an empty folder, without pickle. The default takes one NumPy array
        or a dictionary of them and writes safetensors."""
        import numpy as np
        from safetensors.numpy import save_file

        arrays = model if isinstance(model, dict) else {_SINGLE: np.asarray(model)}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / _ARRAYS_FILE)

    def load(self, folder: Path) -> Model:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays: Any = load_file(folder / _ARRAYS_FILE)
        model: Model = arrays[_SINGLE] if set(arrays) == {_SINGLE} else arrays
        return model


_ARRAYS_FILE = "arrays.safetensors"
_SINGLE = "array"


AnyMethod: TypeAlias = FineTuningMethod[Any]


@dataclass(frozen=True, slots=True)
class PluginFile:
    """A plugin's file as it was read, so that all jobs of a task run what the task began with."""

    path: Path
    code: bytes

    def load(self) -> "Loaded":
        """Return its methods, loaded once per process and the processes forked from it."""
        if self not in _loaded:
            loaded = _make_all(_classes_of(self), self)
            for former in [file for file in _loaded if file.path == self.path]:
                del _loaded[former]
            _loaded[self] = loaded
        return _loaded[self]


Loaded: TypeAlias = tuple[Sequence[AnyMethod], Sequence[str]]
"""The methods of a plugin, and why others in it are none."""
_loaded: dict[PluginFile, Loaded] = {}


@dataclass(frozen=True, slots=True)
class MethodCatalog:
    """The methods of one installation by name, and what kept others from loading.

    failures: file or entry point -> why it is not among the methods, or not in its latest version.
    seen: the files of the folder, and what tells that one of them has changed."""

    methods: Mapping[str, AnyMethod]
    failures: Mapping[str, str]
    folder: Path
    import_seconds: float
    seen: Mapping[Path, tuple[int, ...]]

    def get(self, name: str) -> AnyMethod:
        """Raises UnknownMethod, which names the methods there are and the files that failed."""
        if name in self.methods:
            return self.methods[name]
        known = ", ".join(repr(known) for known in sorted(self.methods)) or "none"
        failed = "".join(f"; {place} did not load: {why}" for place, why in self.failures.items())
        raise UnknownMethod(f"no fine-tuning method is named {name!r}; known: {known}{failed}")

    def renewed(self) -> "MethodCatalog":
        """Return the methods of the folder as it is now; itself if no file has changed.

        Where the new version of a file does not load, its former methods stay."""
        if _look(self.folder) == self.seen:
            return self
        return discover_methods(self.folder, self.import_seconds, former=self)


def discover_methods(
    folder: Path, import_seconds: float = 120.0, former: MethodCatalog | None = None
) -> MethodCatalog:
    """Load every method in `folder`/*.py and in the entry points "embedding_studio.methods".

    A plugin that fails to import, takes longer than import_seconds for it, states what cannot be or
    repeats a name is reported in `failures`; the rest load. former: whose methods stay where a file
    fails that they came from."""
    methods: dict[str, AnyMethod] = {}
    failures: dict[str, str] = {}
    seen = _look(folder)
    sources: list[tuple[str, Callable[[], Loaded]]] = [
        (str(file), partial(_methods_in_file, file)) for file in seen
    ]
    sources += [
        (f"entry point {point.name}", partial(_methods_of_entry_point, point))
        for point in importlib.metadata.entry_points(group="embedding_studio.methods")
    ]
    for place, load in sources:
        try:
            loaded, problems = _within(import_seconds, load)
        except Exception as error:  # noqa: BLE001 - one bad plugin must not take the others down
            loaded, problems = (), [describe_failure(error, place)]
        why = list(problems)
        for method in loaded:
            if method.meta.name in methods:
                why.append(f"the name {method.meta.name!r} is taken by another plugin")
            else:
                methods[method.meta.name] = method
        if why:
            failures[place] = "; ".join(why)
    for method in former.methods.values() if former else ():
        place = str(method.plugin_file.path) if method.plugin_file else ""
        if place in failures and method.meta.name not in methods:
            methods[method.meta.name] = method
            failures[place] += f" ({method.meta.name!r} stays as it was before)"
    return MethodCatalog(methods, failures, folder, import_seconds, seen)


def _look(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return the plugins of a folder, each with what changes when it is written."""
    files: dict[Path, tuple[int, ...]] = {}
    for file in sorted(folder.glob("[!_]*.py")):
        with suppress(FileNotFoundError):
            status = file.stat()
            files[file] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return files


def _within(seconds: float, load: Callable[[], Loaded]) -> Loaded:
    """Return what `load` returns, in a thread that is left to itself when it takes too long."""
    future = in_own_thread(load)
    try:
        error = future.exception(seconds)
    except TimeoutError:
        raise PluginError(
            f"its import did not end within {seconds:g} s (ES_PLUGIN_IMPORT_SECONDS)"
        ) from None
    if error is not None and not isinstance(error, Exception):  # it may not end our process
        raise PluginError(f"its import raised {error!r}")
    return future.result()


def _methods_of_entry_point(point: importlib.metadata.EntryPoint) -> Loaded:
    return _make_all([point.load()])


def _methods_in_file(file: Path) -> Loaded:
    return PluginFile(file, file.read_bytes()).load()


def _make_all(classes: Sequence[Any], file: PluginFile | None = None) -> Loaded:
    from embedding_studio.plugin_checks import check_attributes, check_class

    methods: list[AnyMethod] = []
    problems: list[str] = []
    for method_class in classes:
        try:
            check_class(method_class)
            method: AnyMethod = method_class()
            check_attributes(method)
        except Exception as error:  # noqa: BLE001 - nor one bad class those beside it
            problems.append(describe_failure(error, str(file.path) if file else ""))
        else:
            method.plugin_file = file
            methods.append(method)
    return methods, problems


def describe_failure(error: Exception, file: str) -> str:
    """Say what an error is, and at which line of a plugin's file it arose."""
    if isinstance(error, PluginError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")


def _classes_of(file: PluginFile) -> list[type[AnyMethod]]:
    """Return the methods that a file defines; one that lacks something, too, if it is no base."""
    module_name = f"embedding_studio_plugins.{file.path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file.path)
    if spec is None:
        raise PluginError(f"{file.path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(module_name)
    # registered before it runs, so that dataclasses and pickles find their module by name
    sys.modules[module_name] = module
    try:
        # what was read, whatever the file holds by now
        exec(compile(file.code, file.path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[module_name]
        if before is not None:
            sys.modules[module_name] = before
        raise
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, FineTuningMethod)
        and value.__module__ == module_name
    ]
    bases = {base for value in own for base in value.__mro__[1:]}
    found = [value for value in own if not value.__abstractmethods__ or value not in bases]
    if not found:
        raise PluginError("defines no concrete subclass of FineTuningMethod")
    return found
