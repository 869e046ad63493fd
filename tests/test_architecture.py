"""Holds the code to its plan: the rooms and their order, and what may stand where.

The sources are read, not imported, so nothing here depends on what a module does when it runs.
Each test collects every offence before it fails, and names file and line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import from its own rank and from lower ones. A room is ranked as a whole.
RANKS = (
    {"errors", "choice", "line_writer", "logs"},
    {"config"},
    {"net"},
    {"http1"},
    {"balancing"},
    {"observing"},
    {"serving"},
    {"proxying"},
    {"control"},
    {"admin"},
    {"main", "__main__", "bundle", "demo"},
)

# What a room or module must not know, beyond the order above.
FORBIDDEN = {
    "atlas_pkg.http1": {"socket", "select", "selectors", "ssl", "threading", "time", "logging"},
    "atlas_pkg.observing": {"socket", "ssl", "atlas_pkg.net", "atlas_pkg.http1"},
    "atlas_pkg.serving.server": {"atlas_pkg.serving.connection"},
}

THIRD_PARTY = {"tomli", "watchdog"}

# Who has a socket in hand outside `net/`, and what for. All others have streams.
SOCKETS = {
    "atlas_pkg.balancing.resolver": "looks names up",
    "atlas_pkg.balancing.upstream": "names the family of an address",
    "atlas_pkg.admin.server": "opens and hands on a listener",
    "atlas_pkg.control.channel": "speaks between processes, over pairs of its own",
    "atlas_pkg.control.service": "opens and hands on listeners",
    "atlas_pkg.control.worker_process": "hands on a listener",
    "atlas_pkg.control.supervisor": "opens and hands on listeners",
    "atlas_pkg.control.systemd": "takes listeners from systemd, and tells it things",
    "atlas_pkg.control.takeover": "leaves listeners to another process",
    "atlas_pkg.demo": "makes upstreams for a demonstration",
    "atlas_pkg.main": "opens listeners before anything else",
    "atlas_pkg.proxying.https_redirect": "hands on listeners",
    "atlas_pkg.serving.frontend": "is handed a listener",
    "atlas_pkg.serving.server": "accepts",
}

# What a TLS connection cannot do, or a stream does by itself: for `net/` only. The pairs between
# processes are no streams.
SOCKET_CALLS = {
    *("MSG_DONTWAIT", "MSG_PEEK", "SO_RCVTIMEO", "SO_SNDTIMEO"),
    *("sendmsg", "recvmsg", "recv_into", "recv", "sendall", "settimeout", "splice", "_sock"),
}
NOT_STREAMS = {"atlas_pkg.control.channel"}

# Where any exception at all may be caught, and how often in that file. Where errors become answers:
ANSWERS = {
    "atlas_pkg/serving/connection.py": 3,
}
THREAD_THAT_SERVES = {
    "atlas_pkg/serving/frontend.py": 2,
    "atlas_pkg/serving/lane.py": 2,
    "atlas_pkg/net/tunnel.py": 2,
}
BACKGROUND_THREAD = {
    "atlas_pkg/balancing/resolver.py": 1,
    "atlas_pkg/observing/observers.py": 1,
    "atlas_pkg/control/channel.py": 1,
    "atlas_pkg/admin/aggregate.py": 1,
    "atlas_pkg/balancing/health.py": 1,
    "atlas_pkg/control/reload.py": 1,
    "atlas_pkg/observing/access_log.py": 1,
    "atlas_pkg/logs.py": 1,
}

FEWEST_DOCSTRING_LINES = 4

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its text and its tree."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        """Name a place in this file."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"

    def functions(self) -> Iterator[Function]:
        """Yield every function, methods and inner ones included."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def read_module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    text = path.read_text(encoding="utf-8")
    return Module(path, name, text, ast.parse(text))


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """Every module of the program."""
    paths = [ROOT / "atlas.py", *sorted((ROOT / "atlas_pkg").rglob("*.py"))]
    return [read_module(path) for path in paths]


def imports_of(module: Module, known: set[str]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the dotted name of every module that is imported, wherever the statement stands."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            for alias in node.names:
                # `from room import module` imports the module, `from module import name` its home.
                inner = f"{origin}.{alias.name}"
                yield (inner if inner in known else origin), node


def rank_of(name: str) -> int:
    """Rank a dotted name; the package itself, which holds only the version, is below all."""
    parts = name.split(".")
    if parts == ["atlas"]:
        return len(RANKS)
    if parts == ["atlas_pkg"]:
        return -1
    for rank, rooms in enumerate(RANKS):
        if parts[1] in rooms:
            return rank
    raise AssertionError(
        f"{name}: has no rank; give it one in RANKS, in tests/test_architecture.py"
    )


def test_every_module_has_a_rank(modules: list[Module]) -> None:
    for module in modules:
        assert rank_of(module.name) < len(RANKS) + 1


def test_imports_lead_only_downward(modules: list[Module]) -> None:
    known = {module.name for module in modules}

    upward = [
        f"{module.at(node)} imports {target}"
        for module in modules
        for target, node in imports_of(module, known)
        if target.split(".")[0] == "atlas_pkg" and rank_of(target) > rank_of(module.name)
    ]

    assert upward == []


def test_no_imports_lead_in_a_circle(modules: list[Module]) -> None:
    known = {module.name for module in modules}
    edges = {
        module.name: {target for target, _ in imports_of(module, known) if target in known}
        for module in modules
    }

    # Take away what imports nothing that is left, until nothing more can be taken.
    while free := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in free:
            del edges[name]

    assert edges == {}


def test_rooms_do_not_know_what_is_not_their_business(modules: list[Module]) -> None:
    known = {module.name for module in modules}

    offences = [
        f"{module.at(node)} imports {target}"
        for module in modules
        for place, banned in FORBIDDEN.items()
        if is_within(module.name, place)
        for target, node in imports_of(module, known)
        if any(is_within(target, name) for name in banned)
    ]

    assert offences == []


def is_within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def test_only_those_who_need_one_have_a_socket(modules: list[Module]) -> None:
    known = {module.name for module in modules}

    owners = {
        module.name
        for module in modules
        for target, _ in imports_of(module, known)
        if target == "socket" and not is_within(module.name, "atlas_pkg.net")
    }

    assert owners == SOCKETS.keys()


def test_nobody_touches_the_socket_of_a_stream(modules: list[Module]) -> None:
    # A TLS connection knows no flags, no `sendmsg` and no timeouts of the kernel. Whoever used them
    # could only ever serve plain ones.
    offences = [
        f"{module.at(node)} uses {node.attr}"
        for module in modules
        if not is_within(module.name, "atlas_pkg.net") and module.name not in NOT_STREAMS
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in SOCKET_CALLS
    ]

    assert offences == []


def test_only_two_packages_are_imported_from_outside(modules: list[Module]) -> None:
    allowed = set(sys.stdlib_module_names) | THIRD_PARTY | {"atlas_pkg"}
    known = {module.name for module in modules}

    foreign = [
        f"{module.at(node)} imports {target}"
        for module in modules
        for target, node in imports_of(module, known)
        if target.split(".")[0] not in allowed
    ]

    assert foreign == []


def test_imports_stand_at_the_top(modules: list[Module]) -> None:
    lazy = [
        f"{module.at(node)} in {function.name}"
        for module in modules
        for function in module.functions()
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]

    assert lazy == []


def test_no_module_is_imported_by_a_trick(modules: list[Module]) -> None:
    tricks = {"__import__", "import_module", "exec", "eval", "find_spec", "__getattr__"}
    # It imports whatever lies in its folder, so that a strategy of one's own is one file.
    exempt = "atlas_pkg.balancing.strategies"

    found = []
    for module in modules:
        if module.name == exempt:
            continue
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                    found += [f"{module.at(node)} calls {name}"] if name in tricks else []
        for node in module.tree.body:
            if isinstance(node, Function) and node.name in tricks:
                found.append(f"{module.at(node)} defines {node.name}")

    assert found == []


def test_every_module_says_what_it_is_for(modules: list[Module]) -> None:
    silent = [
        f"{module.at(module.tree)}: {lines} lines"
        for module in modules
        if module.path.name != "__init__.py"
        and (lines := count_docstring_lines(module)) < FEWEST_DOCSTRING_LINES
    ]

    assert silent == []


def count_docstring_lines(module: Module) -> int:
    docstring = ast.get_docstring(module.tree)
    return len(docstring.splitlines()) if docstring else 0


def test_everything_public_has_a_docstring(modules: list[Module]) -> None:
    described = described_by_protocols(modules)
    silent = [
        f"{module.at(node)} {node.name}"
        for module in modules
        for node in public_definitions(module.tree, described)
        if ast.get_docstring(node) is None
    ]

    assert silent == []


def described_by_protocols(modules: list[Module]) -> set[str]:
    """Name the methods that a Protocol describes, for all classes that follow it."""
    return {
        method.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and "Protocol" in base_names(node)
        for method in node.body
        if isinstance(method, Function) and ast.get_docstring(method) is not None
    }


def base_names(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}


def public_definitions(
    scope: ast.Module | ast.ClassDef, described: set[str]
) -> Iterator[Function | ast.ClassDef]:
    """Yield public functions, classes and methods, but no method that is described elsewhere.

    That is one in `described`, or one of a class with a base: most are the base's.
    """
    for node in scope.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(scope, ast.Module) or node.name not in described:
            yield node
        if isinstance(node, ast.ClassDef) and not base_names(node) - {"Protocol", "NamedTuple"}:
            yield from public_definitions(node, described)


def test_any_exception_is_caught_in_three_kinds_of_places_only(modules: list[Module]) -> None:
    allowed = ANSWERS | THREAD_THAT_SERVES | BACKGROUND_THREAD

    offences = []
    for module in modules:
        places = list(catch_alls(module.tree))
        if len(places) > allowed.get(str(module.path.relative_to(ROOT)), 0):
            offences += [module.at(node) for node in places]

    assert offences == []


def catch_alls(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield each `except` and `suppress` that stops every exception and does not raise it again."""
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(body=[*_, ast.Raise(exc=None)]):
                pass
            case ast.ExceptHandler(type=None):
                yield node
            case ast.ExceptHandler(type=caught) if caught and is_catch_all(caught):
                yield node
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments):
                if name == "suppress" and any(is_catch_all(argument) for argument in arguments):
                    yield node


def is_catch_all(node: ast.expr) -> bool:
    return any(
        isinstance(part, ast.Name) and part.id in {"Exception", "BaseException"}
        for part in ast.walk(node)
    )
