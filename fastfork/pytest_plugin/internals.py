"""All that is used of pytest's private names. Tested with pytest 8.3 to 9.2; `check` tells other versions apart."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import sys
import warnings
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import pytest
from _pytest._code.code import TerminalRepr
from _pytest.fixtures import FuncFixtureInfo
from _pytest.logging import LogCaptureHandler, LoggingPlugin, catching_logs
from _pytest.outcomes import OutcomeException
from _pytest.python import Package
from _pytest.runner import CallInfo
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks
from _pytest.warnings import catch_warnings_for_item

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from _pytest.capture import CaptureManager

    from .needs import Key
    from .slot import Slot

TEST_OUTCOME = (OutcomeException, Exception)
"""What the set-up of a test or fixture may raise without ending the session."""

_PACKAGE_FUNCTIONS = (b"setup_module", b"setUpModule", b"teardown_module", b"tearDownModule")


def check(session: pytest.Session) -> None:
    """Raise `pytest.UsageError` where this pytest is not built as those that fastfork knows."""
    stack = getattr(getattr(session, "_setupstate", None), "stack", None)
    if not isinstance(stack, dict):
        raise pytest.UsageError(
            f"--fastfork does not know pytest {pytest.__version__}: it works with 8.3 to 9.2"
        )


# Fixtures and nodes


def static_definitions(item: pytest.Item) -> dict[str, Sequence[Any]]:
    """Return the definitions of each fixture that a test is known to need, the innermost last."""
    info = getattr(item, "_fixtureinfo", None)
    definitions: dict[str, Sequence[Any]] = getattr(info, "name2fixturedefs", {})
    return definitions


def scope_of(item: pytest.Item, name: str, definition: Any) -> str:
    """Return the scope that a fixture has for a test: parametrize() may give it another one."""
    callspec = getattr(item, "callspec", None)
    scope = getattr(callspec, "_arg2scope", {}).get(name, definition._scope)
    value: str = scope.value
    return value


def parameter_of(item: pytest.Item, name: str) -> object:
    """Return the parameter with which a test asks for a fixture; None without."""
    callspec = getattr(item, "callspec", None)
    return getattr(callspec, "params", {}).get(name)


def is_same_parameter(one: object, other: object) -> bool:
    """Whether a fixture with one parameter serves a test that asks for another: as FixtureDef.execute() sees it."""
    try:
        return one is other or bool(one == other)
    except (ValueError, RuntimeError):
        return False


def forget_fixture(definition: Any) -> None:
    """Have a fixture be as if it had never been set up, without tearing it down."""
    definition.cached_result = None
    definition._finalizers.clear()


def is_plain_parameter(definition: Any) -> bool:
    """Whether a fixture only hands out a value of parametrize()."""
    return getattr(definition.func, "__name__", "") == "get_direct_param_fixture_func"


def package_of(item: pytest.Item, definition: Any) -> pytest.Collector | pytest.Session:
    """Return the node at which a fixture of package scope lives."""
    for node in item.iter_parents():
        if isinstance(node, Package) and node.nodeid == definition.baseid:
            return node
    return item.session


def has_set_up(node: pytest.Collector) -> bool:
    """Whether setting up a node does anything, apart from its fixtures."""
    if isinstance(node, Package) and type(node).setup is Package.setup:
        return _mentions_module_functions(node)
    plain = pytest.Collector
    return type(node).setup is not plain.setup or type(node).teardown is not plain.teardown


def _mentions_module_functions(node: pytest.Collector) -> bool:
    try:
        source = (node.path / "__init__.py").read_bytes()
    except OSError:
        return False
    return any(name in source for name in _PACKAGE_FUNCTIONS)


def locate(items: Sequence[pytest.Item]) -> None:
    """Find out where tests are defined, as pytest does once for each: its processes inherit what is known."""
    for item in items:
        with contextlib.suppress(Exception):  # what its own protocol will report
            item.location  # noqa: B018


def is_skipped(item: pytest.Item) -> bool:
    """Whether marks have a test skipped before any of its fixtures is set up."""
    try:
        if evaluate_skip_marks(item) is not None:
            return True
        xfail = evaluate_xfail_marks(item)
    except TEST_OUTCOME:  # a condition that cannot be evaluated: the test itself will say so
        return True
    return xfail is not None and not xfail.run and not item.config.getoption("runxfail")


# Setting up and tearing down in a template


def disown(session: pytest.Session) -> None:
    """Leave what is set up to the process that has set it up: this one will not tear it down."""
    for finalizers, _ in _stack(session).values():
        finalizers.clear()


def _stack(session: pytest.Session) -> dict[Any, tuple[list[Callable[[], object]], Any]]:
    stack: dict[Any, tuple[list[Callable[[], object]], Any]] = session._setupstate.stack
    return stack


def set_up_wide_fixtures(item: pytest.Item, keys: Sequence[Key], depth: int) -> None:
    """Set up some fixtures of a test, and the nodes in which they live; these are the first `depth` of its chain.

    The test itself is as if it had never been touched, and nodes further in that are set up already stay so.
    """
    stack = _stack(item.session)
    depth = max(depth, len(stack))
    chain = item.listchain()
    try:
        _raise_if_broken(stack)
        for node in chain[len(stack) : depth]:
            _set_up_node(stack, node)
        for node in chain[len(stack) :]:
            stack[node] = ([], None)
        for name, over in keys:
            with _overridden_less(item, name, over):
                item._request.getfixturevalue(name)  # type: ignore[attr-defined]
    finally:
        while len(stack) > depth:
            stack.popitem()
        if hasattr(item, "_initrequest"):
            item._initrequest()


@contextlib.contextmanager
def _overridden_less(item: pytest.Item, name: str, over: int) -> Iterator[None]:
    """Have a name mean, for a test, a fixture that `over` others override."""
    if over == 0:
        yield
        return
    request = item._request  # type: ignore[attr-defined]
    known = request._arg2fixturedefs
    definitions = known[name]
    known[name] = definitions[:-over]
    try:
        yield
    finally:
        known[name] = definitions
        request._fixture_defs.pop(name, None)


def failed_and_missing(item: pytest.Item, keys: Sequence[Key]) -> tuple[list[Key], list[Key]]:
    """Return those of a test's fixtures whose set-up has failed, and those whose set-up has not been tried."""
    definitions = static_definitions(item)
    results = {(name, over): definitions[name][-1 - over].cached_result for name, over in keys}
    failed = [key for key, result in results.items() if result is not None and result[2] is not None]
    return failed, [key for key, result in results.items() if result is None]


def _raise_if_broken(stack: dict[Any, Any]) -> None:
    """Do as SetupState.setup() does where the set-up of a node has failed before: nothing in it is set up."""
    for _, failure in stack.values():
        if failure is not None:
            raise failure[0].with_traceback(failure[1])


def _set_up_node(stack: dict[Any, Any], node: Any) -> None:
    """Do as SetupState.setup() does for one node."""
    stack[node] = ([node.teardown], None)
    try:
        node.setup()
    except TEST_OUTCOME as error:
        stack[node] = (stack[node][0], (error, error.__traceback__))
        raise


def leave_out_own_frames(call: pytest.CallInfo[None]) -> None:
    """Have the traceback of what a phase of a test has raised be that of plain pytest."""
    if call.excinfo is None:
        return
    entries = list(_entries(call.excinfo.tb))
    foreign = [entry for entry in entries if not _is_own(entry)]
    if len(foreign) == len(entries):
        return
    traceback = None
    for entry in reversed(foreign):
        traceback = TracebackType(traceback, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    error = call.excinfo.value.with_traceback(traceback)
    assert traceback is not None
    call.excinfo = pytest.ExceptionInfo.from_exc_info((type(error), error, traceback))


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_own(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_filename.startswith(_PACKAGE)


_PACKAGE = os.path.dirname(__file__) + os.sep


def tear_down(item: pytest.Item, next_item: pytest.Item | None) -> pytest.TestReport:
    """Tear down what the next test does not need, and report that on the last test that could use it."""
    state = item.session._setupstate
    item._report_sections.clear()  # of what has been torn down before, and been reported
    with _capturing(item, "teardown"):
        call = CallInfo.from_call(partial(state.teardown_exact, next_item), when="teardown")
    # No hook: what plugins remember of a test is in the process that has run it.
    report = pytest.TestReport.from_item_and_call(item, call)
    if call.excinfo is not None:
        expect_failure(item, report, call.excinfo.value)
    return report


@contextlib.contextmanager
def _capturing(item: pytest.Item, when: str) -> Iterator[None]:
    """Add what is printed and logged to the report sections of a test; its warnings go to their hook."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(catch_warnings_for_item(item.config, item.ihook, "runtest", item))
        capture = _capture_manager(item.config)
        if capture is not None:
            stack.enter_context(capture.item_capture(when, item))
        plugin = item.config.pluginmanager.getplugin("logging-plugin")
        if isinstance(plugin, LoggingPlugin):
            for key in _caplog_keys():
                item.stash.setdefault(key, {})
            stack.enter_context(_as_context(plugin._runtest_for(item, when)))
        yield


def _as_context(logging: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context manager; before pytest 9 there is its generator."""
    if hasattr(logging, "__enter__"):
        context: contextlib.AbstractContextManager[Any] = logging
        return context
    return contextlib.contextmanager(lambda: logging)()


def _caplog_keys() -> list[Any]:
    from _pytest.logging import caplog_records_key

    return [caplog_records_key]


class Prepared:
    """What setting up fixtures for a test in a template has printed, logged and raised: the test will tell."""

    def __init__(self) -> None:
        self.output: tuple[str, str] = ("", "")
        self.records: list[logging.LogRecord] = []
        self.error: BaseException | None = None

    @contextlib.contextmanager
    def recording(self, item: pytest.Item) -> Iterator[None]:
        """Record what happens in a block."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(catch_warnings_for_item(item.config, item.ihook, "runtest", item))
            stack.enter_context(self._logs(item))
            stack.enter_context(self._streams(item))
            try:
                yield
            except TEST_OUTCOME as error:
                self.error = error

    @contextlib.contextmanager
    def _streams(self, item: pytest.Item) -> Iterator[None]:
        capture = _capture_manager(item.config)
        if capture is None or capture._global_capturing is None:
            yield
            return
        capture.resume_global_capture()
        try:
            yield
        finally:
            capture.suspend_global_capture(in_=False)
            out, err = capture.read_global_capture()
            self.output = (self.output[0] + out, self.output[1] + err)

    @contextlib.contextmanager
    def _logs(self, item: pytest.Item) -> Iterator[None]:
        plugin = item.config.pluginmanager.getplugin("logging-plugin")
        if not isinstance(plugin, LoggingPlugin):
            yield
            return
        handler = LogCaptureHandler()
        with catching_logs(handler, level=plugin.log_level):
            yield
        self.records += handler.records

    def tell_in_set_up(self, item: pytest.Item) -> None:
        """Have all that appear in the test's own set-up, as if it had happened there."""
        request = getattr(item, "_request", None)
        owner, name = (item, "setup") if request is None else (request, "_fillfixtures")
        go_on = getattr(owner, name)

        def tell_and_go_on() -> None:
            delattr(owner, name)
            self._tell()
            if self.error is not None:
                raise self.error
            go_on()

        setattr(owner, name, tell_and_go_on)

    def _tell(self) -> None:
        for stream, text in zip((sys.stdout, sys.stderr), self.output):
            if text:
                stream.write(text)
        handlers = [
            handler for handler in logging.getLogger().handlers if isinstance(handler, LogCaptureHandler)
        ]
        for record in self.records:
            for handler in handlers:
                handler.handle(record)


# Capture


def _capture_manager(config: pytest.Config) -> CaptureManager | None:
    manager: CaptureManager | None = config.pluginmanager.getplugin("capturemanager")
    return manager


def captured_descriptors(config: pytest.Config) -> dict[str, int]:
    """Return the descriptors of the files to which standard output ("out") and error ("err") are captured.

    Empty when they are not, or are in memory.
    """
    capture = _capture_manager(config)
    capturing = None if capture is None else capture._global_capturing
    descriptors = {}
    for name in ("out", "err"):
        file = getattr(getattr(capturing, name, None), "tmpfile", None)
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            descriptors[name] = file.fileno()  # type: ignore[union-attr]
    return descriptors


def resume_capture(config: pytest.Config) -> None:
    """Go on capturing, where a debugger has had it suspended."""
    capture = _capture_manager(config)
    if capture is not None:
        capture.resume()


def redirect(captured: dict[str, int], slot: Slot) -> None:
    """Have what is captured from now on be in a slot's files."""
    for name, descriptor in captured.items():
        os.dup2(getattr(slot, name), descriptor, inheritable=False)


# Hooks


def silence_reporting(config: pytest.Config) -> None:
    """Have no plugin but the logging one learn of reports in this process: they are for pytest's own."""
    hooks = config.hook
    keep = {config.pluginmanager.getplugin("logging-plugin"), config.pluginmanager.getplugin("session")}
    for caller in (
        hooks.pytest_runtest_logstart,
        hooks.pytest_runtest_logreport,
        hooks.pytest_runtest_logfinish,
        hooks.pytest_warning_recorded,
    ):
        for implementation in caller.get_hookimpls():
            if implementation.plugin not in keep:
                caller._remove_plugin(implementation.plugin)


_RENDERED = "$fastfork_rendered"
_SUBTEST = "_subtest.context"


def serialise(config: pytest.Config, report: pytest.TestReport) -> dict[str, Any]:
    """Serialise a report as pytest does, and note where that has made a text of what was none."""
    data: dict[str, Any] = config.hook.pytest_report_to_serializable(config=config, report=report)
    if isinstance(data.get("longrepr"), str) and not isinstance(report.longrepr, str):
        data[_RENDERED] = True
    return data


def deserialise(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """Read a report that `serialise` has written."""
    rendered = data.pop(_RENDERED, False)
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=data)
    if _SUBTEST in data:  # reading it has quoted what is quoted already
        object.__setattr__(report.context, "kwargs", data[_SUBTEST]["kwargs"])
    if rendered:
        report.longrepr = _Rendered(str(report.longrepr))
    return report


class _Rendered(TerminalRepr):
    """An error that has become its text: the summary does not quote it, as it does with texts."""

    def __init__(self, text: str) -> None:
        self._text = text

    def toterminal(self, tw: Any) -> None:
        tw.line(self._text)


def create_base_temp(config: pytest.Config) -> None:
    """Make the base directory of tmp_path now, so that all processes share it."""
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        factory.getbasetemp()


def failed_subtests(item: pytest.Item) -> int:
    """Return how many subtests of a test have failed in this process, as far as pytest counts them."""
    counts = _subtest_counts(item.config)
    return counts[_subtest_key(item)] if counts is not None else 0


def add_failed_subtests(item: pytest.Item, count: int) -> None:
    """Have pytest know in this process of subtests that have failed in another one."""
    counts = _subtest_counts(item.config)
    if counts is not None:
        counts[_subtest_key(item)] += count


def _subtest_counts(config: pytest.Config) -> Any:
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:  # pytest 8, and the plugin of that name
        return None
    return config.stash.get(failed_subtests_key, None)


def _subtest_key(item: pytest.Item) -> Any:
    return getattr(item, "id", item.nodeid)


# JUnit's XML


def junit_extras(config: pytest.Config, nodeid: str, known: int) -> dict[str, Any]:
    """Return what a test has recorded for the XML report beside its own reports.

    Parameters
    ----------
    config:
        pytest's.
    nodeid:
        The test.
    known:
        How many properties of the suite there were before it.

    """
    xml = _xml(config)
    if xml is None:
        return {}
    extras: dict[str, Any] = {}
    if len(xml.global_properties) > known:
        extras["suite"] = [(str(name), str(value)) for name, value in xml.global_properties[known:]]
    for (name, _), reporter in xml.node_reporters.items():
        if str(name) == nodeid and reporter.attrs:
            extras["attributes"] = {str(name): str(value) for name, value in reporter.attrs.items()}
    return extras


def junit_suite_properties(config: pytest.Config) -> int:
    """Return how many properties of the suite have been recorded."""
    xml = _xml(config)
    return 0 if xml is None else len(xml.global_properties)


def add_junit_extras(config: pytest.Config, nodeid: str, extras: dict[str, Any]) -> None:
    """Record in this process what `junit_extras` has found in another one."""
    xml = _xml(config)
    if xml is None:
        return
    for name, value in extras.get("suite", ()):
        xml.add_global_property(name, value)
    for name, value in extras.get("attributes", {}).items():
        xml.node_reporter(nodeid).add_attribute(name, value)


def _xml(config: pytest.Config) -> Any:
    from _pytest.junitxml import xml_key

    return config.stash.get(xml_key, None)


def fork_without_warning() -> int:
    """Fork, and say nothing of other threads: pytest-xdist's workers have some, and so may fixtures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def expect_failure(item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> None:
    """Have the failure of a test that is marked as failing be an expected one. No error: it has crashed."""
    try:
        xfail = None if item.config.getoption("runxfail") else evaluate_xfail_marks(item)
    except TEST_OUTCOME:
        return
    if xfail is not None and (xfail.raises is None or _matches(error, xfail.raises)):
        report.outcome = "skipped"
        report.wasxfail = xfail.reason


def _matches(error: BaseException | None, raises: Any) -> bool:
    return raises.matches(error) if hasattr(raises, "matches") else isinstance(error, raises)


@contextlib.contextmanager
def rehearsal(session: pytest.Session) -> Iterator[pytest.Function]:
    """Make a test that does nothing, needs nothing, and in this block is known to pytest's own plugins alone.

    It is of the class that tests have: bytecode is specialised for that. Its hooks are those for a path to which no
    conftest applies, and meanwhile other plugins count as such.
    """
    manager = session.config.pluginmanager
    conftests = manager._conftest_plugins
    manager._conftest_plugins = {plugin for plugin in manager.get_plugins() if not _is_builtin(plugin)}
    path = pathlib.Path(os.devnull)
    try:
        item: pytest.Function = pytest.Function.from_parent(
            session, name="rehearsal", callobj=_do_nothing, fixtureinfo=FuncFixtureInfo((), (), [], {})
        )
        item.path = path
        yield item
    finally:
        manager._conftest_plugins = conftests
        session._bestrelpathcache.pop(path, None)


def _is_builtin(plugin: object) -> bool:
    module = getattr(plugin, "__name__", None) or type(plugin).__module__
    return str(module).startswith(("_pytest.", "fastfork."))


def _do_nothing() -> None:
    pass


def run_protocol(item: pytest.Item) -> None:
    """Run a test as pytest's loop does."""
    hooks = item.ihook if item.name == "rehearsal" and item.parent is item.session else item.config.hook
    hooks.pytest_runtest_protocol(item=item, nextitem=None)
