"""TensorFlow Datasets builders for conversations and interactions."""
