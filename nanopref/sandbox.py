"""Where the one program runs that a model brings along, its chat template: it can do what transformers' can, nothing to
this machine, and not for long."""
import contextlib
import json
import os
import signal
import threading

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanopref.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

SECONDS, MEMORY, LONGEST = 10, 2 ** 30, 2 ** 20  # bytes beyond what the process has; characters of a template
STATM = "/proc/self/statm" if os.path.exists("/proc/self/statm") else None  # pages that this process has: Linux


class Environment(ImmutableSandboxedEnvironment):
    """transformers' settings. No large powers: while Python computes one, it does not hear that its time is over."""
    intercepted_binops = frozenset(["**"])

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.globals["raise_exception"] = _refuse
        self.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})

    def call_binop(self, context, operator, left, right):
        if not isinstance(right, int) or abs(right) > 64:
            _refuse("a chat template has no use for large powers")
        return super().call_binop(context, operator, left, right)


def _refuse(message):  # what templates call as raise_exception("...")
    raise jinja2.TemplateError(message)


def read_template(text) -> jinja2.Template:
    """A Jinja template. UserError where it is none. Reading it may already compute something, as 'a' * 4000000000."""
    if isinstance(text, str) and len(text) > LONGEST:
        raise UserError(f"the chat template has {len(text):,} characters, and the longest in use some 20,000: it is no "
                        "template")
    try:
        with bounded():
            return Environment().from_string(text)
    except MemoryError:
        raise UserError("the chat template cannot be read: it wants more than a gigabyte of memory") from None
    except Exception as error:  # TypeError: it is not even a string; RecursionError, SyntaxError: nested too deep
        raise UserError(f"the chat template cannot be read: {error}") from None


@contextlib.contextmanager
def bounded():
    """Its block may take SECONDS, and MEMORY beyond what the process has: TimeoutError, MemoryError. Seconds are
    counted in the main thread, memory on Linux; elsewhere nothing is bounded."""
    with contextlib.ExitStack() as after:
        if resource and STATM:
            limits = resource.getrlimit(resource.RLIMIT_AS)
            with open(STATM, "rb", buffering=0) as file:  # for every row of a data set: the plainest way to read it
                most = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
            if limits[0] == resource.RLIM_INFINITY or most < limits[0]:
                resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
                after.callback(resource.setrlimit, resource.RLIMIT_AS, limits)
        if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
            after.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, _stop))
            after.callback(signal.setitimer, signal.ITIMER_REAL, *signal.setitimer(signal.ITIMER_REAL, SECONDS))
        yield


def _stop(*_):
    raise TimeoutError(f"it takes more than {SECONDS} seconds")
