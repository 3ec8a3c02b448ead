"""A chat template that never ends, or makes a text without end, is an error within seconds."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from diffpipe.core.errors import UsageError
from diffpipe.engine.loading import chat_templates

checkpoints = pytest.importorskip("checkpoints")
jinja2 = pytest.importorskip("jinja2")

CHAT = [{"role": "user", "content": "a fox"}]
LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
POWER = "{{ 9**9999999 // 7**9999998 }}"  # of constants: as it is read
LIST = "{% set l = [0]*99999999 %}{% for i in range(9999) %}{{ 5 in l }}{% endfor %}"
FORK = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}"


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(jinja2.Template, "render", jinja2.Template.render)  # put back afterwards
    monkeypatch.setattr(jinja2.Environment, "from_string", jinja2.Environment.from_string)
    sandbox = pytest.importorskip("jinja2.sandbox").SandboxedEnvironment
    for name in ("call_binop", "intercepted_binops"):
        monkeypatch.setattr(sandbox, name, getattr(sandbox, name))
    monkeypatch.setattr(chat_templates, "SLOWEST", 0.3)
    chat_templates.bound()
    chat_templates.bound()
    return checkpoints.clip_tokenizer()


@pytest.mark.parametrize("template", [LOOP, FORK, POWER, LIST, "{{ 'a' * 10**11 }}", "{{ 'a' * 10**7 }}aaa"])
def test_a_template_without_end_is_an_error(tokenizer: Any, template: str) -> None:
    before = sys.gettrace()
    with pytest.raises(UsageError, match="chat template of the model's tokenizer does not come to an end"):
        tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False)
    assert sys.gettrace() is before


def test_any_other_says_what_it_says(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "SLOWEST", 60.0)  # of a machine that does much else
    template = "{% for one in messages %}{{ one.role }}: {{ one.content }}{% endfor %}"
    assert tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False) == "user: a fox"


@pytest.mark.parametrize(
    "escape", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('x') }}"]
)
def test_a_template_reaches_nothing_outside(tokenizer: Any, escape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "SLOWEST", 60.0)
    with pytest.raises(jinja2.TemplateError):
        tokenizer.apply_chat_template(CHAT, chat_template=escape, tokenize=False)
