"""Conversations and interactions as TensorFlow Datasets builders."""
