"""Where preferences come from: one module a source, each a program that writes preference JSONL."""
