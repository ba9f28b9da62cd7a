"""Turns exported conversation trees into lists of messages, by choosing one path through each tree."""

from collections import Counter
from typing import Any

from rlhi_jax.data.tree import BadRecord

MAX_DEPTH = 10_000  # maximum number of messages on a path


def unfolded(record: dict[str, Any], counts: Counter) -> dict[str, Any]:
    """Return a record with its message tree replaced by a list of messages; other records are returned unchanged.

    - A tree from Open Assistant has nested replies. The path follows the best-ranked reply of each message.
    - A conversation exported from ChatGPT has a `mapping` from ids to messages. The path leads to the message that was
      shown last.

    Messages outside the path are counted as left out.

    Raises:
      BadRecord: the tree is damaged.
    """
    try:
        if isinstance(record.get('mapping'), dict) and 'messages' not in record:
            return _from_chatgpt(record, counts)
        if isinstance(record.get('prompt'), dict) and isinstance(record['prompt'].get('replies'), list):
            return _from_open_assistant(record, counts)
    except (AttributeError, KeyError, TypeError):  # a value whose type does not occur in these exports
        raise BadRecord('tree_is_damaged') from None
    return record


def _from_open_assistant(record: dict[str, Any], counts: Counter) -> dict[str, Any]:
    root = record['prompt']
    messages, node = [], root
    while isinstance(node, dict) and len(messages) < MAX_DEPTH:
        role = {'prompter': 'user'}.get(node.get('role'), node.get('role'))
        messages.append(dict(role=role, content=node.get('text'), timestamp=node.get('created_date')))
        replies = [reply for reply in node.get('replies') or [] if isinstance(reply, dict)]
        counts['messages_on_other_branches'] += max(len(replies) - 1, 0)
        node = min(replies, key=_rank, default=None)
    return dict(
        id=record.get('message_tree_id'),
        user_id=root.get('user_id'),
        language=root.get('lang'),
        messages=messages,
    )


def _rank(reply: dict[str, Any]) -> float:
    """Return a reply's rank, 0 for the best; replies without a rank come last."""
    rank = reply.get('rank')
    return rank if isinstance(rank, int | float) else float('inf')


def _from_chatgpt(record: dict[str, Any], counts: Counter) -> dict[str, Any]:
    nodes = {name: node for name, node in record['mapping'].items() if isinstance(node, dict)}
    leaves = [name for name, node in nodes.items() if not node.get('children')]
    name = record.get('current_node') if record.get('current_node') in nodes else (leaves or [None])[-1]
    path: list[dict[str, Any]] = []
    while name in nodes:
        path.append(nodes[name])
        if len(path) > len(nodes):
            raise BadRecord('messages_form_a_circle')
        name = nodes[name].get('parent')
    messages = [message for node in reversed(path) if (message := _chatgpt_message(node.get('message')))]
    counts['messages_on_other_branches'] += len(nodes) - len(path)
    return dict(
        id=record.get('conversation_id') or record.get('id'),
        user_id=record.get('user_id'),
        timestamp=record.get('update_time') or record.get('create_time'),
        messages=messages,
    )


def _chatgpt_message(message: Any) -> dict[str, Any] | None:
    """Return a message in OpenAI's layout; None if it is hidden or empty, like the first messages of an export."""
    if not isinstance(message, dict) or not isinstance(message.get('author'), dict):
        return None
    content = message.get('content')
    parts = content.get('parts') if isinstance(content, dict) else None
    metadata = message.get('metadata')
    hidden = isinstance(metadata, dict) and metadata.get('is_visually_hidden_from_conversation')
    if hidden or (isinstance(parts, list) and not any(parts)):
        return None
    role = message['author'].get('role')
    if role == 'assistant' and message.get('recipient', 'all') != 'all':
        role = 'tool_call'
    elif parts is None and role == 'assistant':
        role = 'tool'  # thoughts, code and what a browser showed
    parts = [{'text': part} if isinstance(part, str) else part for part in parts or []]
    return dict(role=role, content=parts, timestamp=message.get('create_time'))
