"""The code that a result stands on, so that an edit makes a new run, and an edit that cannot matter does not.

From a function, say train_po.train, `code_of` follows every name in its source to that name's definition in this
project, and the names in there, until nothing new is reached. The definitions reached in one file are hashed together,
without comments, docstrings and layout: {"nanopref/model.py": "5be0c1d2", ...}.

It errs to one side: what merely has the name of a definition is followed, too. It does not see what is reached without
its name, as by getattr; nothing that trains is.
"""
import ast
import hashlib
import inspect
import sys
from functools import cache
from pathlib import Path

from nanopref.errors import UserError

ROOT = Path(__file__).parent.parent.parent
FILES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
         for file in [*sorted(ROOT.glob("train_*.py")), *sorted((ROOT / "nanopref").rglob("*.py"))]}
# Read when this process begins, which is when it imports them: what is edited while it runs is code of the next run.
SOURCES = {module: file.read_text(encoding="utf-8") for module, file in FILES.items()}


def code_of(*roots, stop=()) -> dict:
    """{file: hash} of all that `roots` can reach: full names such as "nanopref.logps.score", or functions, whose code
    may stand elsewhere, as a loss of a notebook does. `stop`: definitions, modules and rooms that are not followed.

    UserError in a notebook or an interactive session where one of the files has been edited since it began."""
    pending, reached = list(roots), {}
    while pending:
        root = pending.pop()
        if callable(root) and root.__module__ not in SOURCES:
            module, name = root.__module__, root.__qualname__
            known = [root.__globals__.get(used) for used in root.__code__.co_names]
            code, more = inspect.getsource(root), [value for value in known if inspect.isfunction(value)]
        else:
            module, name = locate(f"{root.__module__}.{root.__qualname__}" if callable(root) else root)
            if module is None or any(f"{module}.{name}.".startswith(f"{each}.") for each in stop):
                continue
            code, more = definition(module, SOURCES[module], name)
        if (module, name) not in reached:
            reached[module, name] = code
            pending += more
    files = {}
    for (module, name), code in sorted(reached.items()):
        files.setdefault(module, hashlib.sha256()).update(f"{name}\n{code}\n".encode())
    for module in files.keys() & FILES if hasattr(sys, "ps1") else ():
        if FILES[module].read_text(encoding="utf-8") != SOURCES[module]:
            raise UserError(f"{FILES[module].relative_to(ROOT)} was edited after this session had imported it: restart "
                            "the session (a notebook's kernel), which runs the old code")
    return {FILES[module].relative_to(ROOT).as_posix() if module in FILES else module: sha.hexdigest()[:8]
            for module, sha in files.items()}


def changed(now: dict, then: dict) -> list[str]:
    """The files that are different in two results of `code_of`."""
    return sorted(file for file in now.keys() | then.keys() if now.get(file) != then.get(file))


def locate(full_name: str) -> tuple:
    """(module, name in it) of a definition, where other modules have imported it from; (module, "") for a module, that
    is, for what it does besides defining; (None, "") for what is not of this project."""
    if full_name in SOURCES:
        return full_name, ""
    module, _, name = full_name.rpartition(".")
    if module not in SOURCES:
        return None, ""
    source = SOURCES[module]
    return locate(imports(source)[name]) if name in imports(source) else (module, name)


@cache
def definition(module: str, source: str, name: str) -> tuple[str, list[str]]:
    """(code of a definition in a module's source, full names of the definitions of this project that it names)."""
    here, there, used = definitions(source), imports(source), [module]
    for node in here.get(name, []):
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):  # losses.LOSSES
                used.append(f"{there.get(part.value.id)}.{part.attr}")
            elif isinstance(part, ast.Name):
                used.append(f"{module}.{part.id}" if part.id in here else there.get(part.id, ""))
    return "".join(map(text, here.get(name, []))), used


parsed = cache(ast.parse)


@cache
def definitions(source: str) -> dict:
    """{name: statements that define it or add to it, as LOSSES["x"] = ... and FACTS.update(...) do} on the first level
    of a module; under "" the other statements."""
    found = {}
    for node in parsed(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) or is_docstring(node) or is_main_guard(node):
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = {node.name}
        elif isinstance(node, ast.Expr):
            names = {part.id for part in named(node)[:1]}
        else:  # also inside a try or an if
            names = {part.id for part in named(node) if isinstance(part.ctx, ast.Store)}
            names |= {part.value.id for part in ast.walk(node) if isinstance(part, (ast.Subscript, ast.Attribute))
                      and isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name)}
        for name in names or {""}:
            found.setdefault(name, []).append(node)
    return found


@cache
def imports(source: str) -> dict:
    """{name: full name} of what a module imports, also inside its functions."""
    found = {}
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
    return found


def text(node) -> str:
    """A piece of code as it is parsed, the same in every version of Python; without docstrings."""
    if isinstance(node, list):
        return "[" + ",".join(text(part) for part in node if not is_docstring(part)) + "]"
    if isinstance(node, ast.AST):
        fields = [f"{name}={text(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({','.join(fields)})"
    return repr(node)


def is_docstring(node) -> bool:
    """Whether it is a statement that consists of a string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_main_guard(node) -> bool:
    """if __name__ == "__main__": what a command does is named in its function."""
    return isinstance(node, ast.If) and "__name__" in {part.id for part in named(node.test)}


def named(node) -> list[ast.Name]:
    """All names in a piece of code."""
    return [part for part in ast.walk(node) if isinstance(part, ast.Name)]
