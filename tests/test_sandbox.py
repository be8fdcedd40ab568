"""Chat templates are programs of strangers': they can neither hang the process nor eat its memory."""
import resource
import signal
import threading
import time

import pytest

from nanopref import sandbox
from nanopref.errors import UserError
from nanopref.sandbox import bounded, read_template

HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "a long string": "{{ 'a' * 4000000000 }}",
    "a long string, computed later": "{{ messages[0]['content'] * 4000000000 }}",
    "doubled": "{% set x = namespace(s='aa') %}{% for i in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}",
    "a wide format": "{{ '%4000000000d' % 1 }}", "another": "{{ '{:>4000000000}'.format(messages) }}",
    "padding": "{{ messages[0]['content']|center(4000000000) }}",
    "a power": "{{ 10 ** 1000000000 }}", "another power": "{{ messages|length ** 10 ** 10 }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "ten megabytes": "x" * 10 ** 7, "a list": ["x"],
    "a long range": "{{ range(10 ** 9)|list }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(name, monkeypatch, tokenizer):
    from nanopref.text import ChatTokenizer
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    began, limits = time.time(), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match="the chat template") as error:
        ChatTokenizer(tokenizer.tokenizer, {**tokenizer.described, "chat_template": HOSTILE[name]})
    assert time.time() - began < 5 and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert resource.getrlimit(resource.RLIMIT_AS) == limits and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_was_before_is_restored():
    """Also somebody else's alarm, less what the block took."""
    mine = lambda *_: None
    before = signal.signal(signal.SIGALRM, mine)
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with bounded():
            assert signal.getsignal(signal.SIGALRM) is sandbox._stop
        assert signal.getsignal(signal.SIGALRM) is mine and 99 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_another_thread_may_render():
    """There is no alarm for it; the memory is bounded all the same."""
    said = []
    thread = threading.Thread(target=lambda: said.append(read_template("{{ 1 + 1 }}").render()))
    thread.start()
    thread.join()
    assert said == ["2"]
