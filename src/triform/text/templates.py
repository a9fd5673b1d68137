"""Chat templates for models that have none yet.

chatml: each message between <|im_start|> and <|im_end|>, which the tokenizer must have. plain: "User: …" and "Assistant: …", with
the tokenizer's eos after what the assistant says; for a tokenizer without tokens to spare. Both tell what the assistant wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_LARGEST = 2**20  # bytes of a file

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "plain": (
        "{{ bos_token or '' }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}Assistant:{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
        "{% elif message['role'] == 'user' %}User: {{ message['content'] }}"
        "{% else %}{{ message['content'] }}{% endif %}"
        "{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}
_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>")}


def read_template(name: str, tokenizer: Tokenizer) -> str:
    """A template by its name, or out of a file.

    Raises ValueError for a file that is not there or no template, and for a tokenizer without the tokens that a named one writes.
    """
    from .template import parsed

    if name not in TEMPLATES:
        file = Path(name)
        if not file.is_file() or file.stat().st_size > _LARGEST:
            raise ValueError(f"tokenizer.chat_template: expected {' or '.join(TEMPLATES)}, or a file with a template (Jinja), got {name!r}")
        try:
            written = file.read_text("utf-8")
            parsed(written)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        return written
    lacking = [token for token in _TOKENS.get(name, ()) if tokenizer.id(token) is None]
    if lacking:
        told = ", ".join(f"'{token}'" for token in lacking)
        raise ValueError(f"tokenizer.chat_template: {name} writes tokens that the tokenizer has not; set tokenizer.add: [{told}]")
    if name == "plain" and tokenizer.eos is None:
        raise ValueError("tokenizer.chat_template: plain ends an answer with the tokenizer's eos, and it has none; take chatml")
    return TEMPLATES[name]
